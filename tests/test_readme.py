"""README's commands on checkpoints, run as they stand there, in the order that a new user would."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil

import pytest
import transformers

import convert.__main__
from tests.checkpoints.test_conversion import reduced, write
from tests.conftest import SAMPLES, compiled_in_a_hurry
from tests.processing.test_tokenizer import train_sentencepiece
from tests.twins import make_oracle, torch_tensors
from trocr_jax import TrOCR, cli
from trocr_jax.checkpoints import names, store

README = pathlib.Path(__file__).parents[1] / "README.md"


def commands(heading):
    """The lines of the code blocks for a shell below a heading, in order."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """A folder with what the commands name: a fairseq file of trocr-small's kind, its tokenizer, an image."""
    config = reduced("trocr-small-printed")
    state = {key: tensor.numpy() for key, tensor in make_oracle(config.to_dict(), seed=3).state_dict().items()}
    tensors = torch_tensors(store.from_torch(state, names.table(config), "the oracle"), config)
    shutil.move(write(tmp_path / "source", "fairseq", tensors, config), tmp_path / "trocr-small-printed.pt")
    train_sentencepiece(tmp_path / "unilm3-cased.model")
    shutil.copy(SAMPLES / "price.png", tmp_path / "line.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bring_your_own_checkpoint(downloads, capsys):
    told = commands("Bring your own checkpoint")
    assert len(told) == 5
    for command in told:
        program, *arguments = shlex.split(command)
        if program == "trocr-jax":
            assert cli.main(arguments) == 0, command
        else:
            assert [program, *arguments[:2]] == ["python", "-m", "convert"]
            assert convert.__main__.main(arguments[2:]) == 0, command
    out, err = capsys.readouterr()
    assert err == ""
    assert "architecture of" in out
    assert "small-printed" in out
    assert out.endswith("equal\n")
    model = transformers.VisionEncoderDecoderModel.from_pretrained("for-pytorch")
    assert model.config.decoder.d_model == 32
    assert (downloads / "small-printed" / "flax_model.safetensors").is_file()


def blocks(heading):
    """The code blocks of Python below a heading."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_python_in_it_runs(monkeypatch, capsys):
    monkeypatch.chdir(README.parent)
    names: dict = {}
    assert len(blocks("From Python")) == 2
    for block in blocks("From Python"):
        exec(block, names)
    assert capsys.readouterr().out.startswith("Date: 09.10.93 07:53:40 ")
    assert [line.text for line in names["lines"]] == ["RM3.01", "Date: 09.10.93 07:53:40"]
    (block,) = blocks("Evaluation")
    exec(block, names)
    assert capsys.readouterr().out == "0.0 []\n"


def test_evaluation(monkeypatch, tmp_path, capsys):
    shutil.copytree(SAMPLES, tmp_path / "notebooks" / "samples")
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(commands("Evaluation")[0])
    assert program == "trocr-jax"
    assert cli.main(arguments) == 0
    assert "all, 9 lines" in capsys.readouterr().out
    assert (tmp_path / "worst.html").is_file()
    section = README.read_text().split("\n## Evaluation\n")[1].split("\n## ")[0]
    told = commands("Evaluation") + re.findall(r"`(trocr-jax [^`]+)`", section)
    assert len(told) == 5
    for command in told:  # exits on what it does not know
        assert cli._parser().parse_args(shlex.split(command)[1:]).run


@pytest.fixture
def in_a_hurry():
    with compiled_in_a_hurry():
        yield


def test_training(in_a_hurry, monkeypatch, tmp_path, capsys):
    shutil.copytree(SAMPLES, tmp_path / "notebooks" / "samples")
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(commands("Training")[0])
    assert program == "trocr-jax"
    assert arguments[-1] == "20"  # two steps show as much
    assert cli.main([*arguments[:-1], "2"]) == 0
    out, err = capsys.readouterr()
    expected = "CER of 9 validation lines: 0.00 % before, 0.00 % after 0 of 2 steps, whose weights are in mine\n"
    assert out.startswith(expected)
    assert err == ""
    assert cli.main([*arguments[:-1], "2"]) == 2
    assert "mine holds a training: resume it" in capsys.readouterr().err
    fitting, own_loop = blocks("Training")
    names: dict = {"ocr": TrOCR.from_pretrained()}
    exec(fitting.replace('"mine", max_steps=20', '"other", max_steps=2'), names)
    assert capsys.readouterr().out == "0.0 0.0 Date: 09.10.93 07:53:40\n"
    assert (tmp_path / "other" / "training" / "curves.png").is_file()
    exec(own_loop, names)
    assert names["metrics"].is_updated
    assert names["trained"]("notebooks/samples/date.png").text == "Date: 09.10.93 07:53:40"
