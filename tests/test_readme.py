"""README's commands on checkpoints, run as they stand there, in the order that a new user would."""

from __future__ import annotations

import shutil

import pytest
import transformers

from tests.conftest import SAMPLES
from tests.pages import README, blocks, commands, make_fairseq, run_command


@pytest.fixture
def downloads(tmp_path, cache_home, monkeypatch):
    """A folder with what the commands name: a fairseq file of trocr-small's kind, its tokenizer, an image."""
    work = tmp_path / "work"
    work.mkdir()
    make_fairseq(work)
    shutil.copy(SAMPLES / "price.png", work / "line.png")
    monkeypatch.chdir(work)
    return work


def test_bring_your_own_checkpoint(downloads, capsys):
    section = [block for block in blocks(README) if block.heading == "Bring your own checkpoint"]
    told = [command for block in section if block.language == "bash" for command in commands(block.code)]
    assert len(told) == 5
    out = [run_command(command) for command in told]
    # A model with random weights may not find an end.
    assert [line for line in capsys.readouterr().err.splitlines() if "cut off at the length limit" not in line] == []
    assert "architecture of" in out[0]
    assert "small-printed" in out[1]
    assert out[-1].endswith("equal\n")
    model = transformers.VisionEncoderDecoderModel.from_pretrained("for-pytorch")
    assert model.config.decoder.d_model == 32
    assert (downloads / "small-printed" / "flax_model.safetensors").is_file()
