"""`trocr-jax evaluate` with the embedded model, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import SAMPLES
from trocr_jax import cli

NAMES = ("price.png", "printed.png", "number.png")


@pytest.fixture
def lines(tmp_path, cache_home):
    """A folder of samples, of which the first has a label with two errors and one more has no image."""
    folder = tmp_path / "lines"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(SAMPLES / name, folder)
    (folder / "labels.tsv").write_text("price.png\tRM9.O1\nprinted.png\tsuch a structure.\nnumber.png\tNo. 139KN\n")
    return folder


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of `trocr-jax evaluate`."""
    status = cli.main(["evaluate", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_report_says_what_was_read(lines, tmp_path, capsys):
    output, page = tmp_path / "r.json", tmp_path / "r.html"
    arguments = ("--data", lines, "--train", lines, "--output", output, "--html", page, "--batch-size", 2)
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    table = [line.split() for line in out.splitlines()]
    assert out.startswith(f"trocr-nano-printed on {lines}; both texts as they are\n")
    assert table[1] == ["all,", "3", "lines", "unseen,", "0", "lines"]
    assert table[2][:3] == ["CER", "6.25", "%"]  # 2 of 6 + 17 + 9 characters
    content = json.loads(output.read_text())
    assert (content["lines"], content["cer"], content["wer"]) == (3, 2 / 32, 1 / 6)
    assert content["model"] == "trocr-nano-printed"
    assert [reading["text"] for reading in content["readings"]] == ["RM3.01", "such a structure.", "No. 139KN"]
    assert "RM<del>9</del>.<del>O</del>1" in page.read_text()


def test_options_are_followed_and_images_that_cannot_be_read_are_named(lines, capsys):
    (lines / "printed.png").write_bytes(b"")
    arguments = ("--limit", 2, "--protocol", "str", "--ignore-case", "--max-new-tokens", 2, "--batch-size", 2)
    status, out, err = run(capsys, "--data", lines / "labels.tsv", "--data-format", "tsv", *arguments)
    assert status == 1
    assert "both texts: lower case" in out
    assert "all, 1 lines" in out
    assert "word accuracy   0.00 %" in out
    assert "1 images could not be read and count nowhere" in out
    assert err.startswith(f"trocr-jax: {lines / 'printed.png'} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nothing.zip/test"), "nothing.zip/test does not exist"),
        (("--data", "{lines}", "--train", "none"), "none does not exist"),
        (("--data", "{lines}", "--output", "{lines}/none/r.json"), "there is no folder to write"),
        (("--data", "{lines}", "--data-format", "page"), "hold no line with a text"),
        (("--data", "{lines}", "--model", "no-such-folder"), "neither a folder nor a hub id"),
        (("--data", "{lines}", "--max-new-tokens", "9999"), "max_new_tokens"),
    ],
)
def test_mistakes_are_told_and_give_status_2(lines, capsys, arguments, message):
    status, out, err = run(capsys, *(argument.format(lines=lines) for argument in arguments))
    assert (status, out) == (2, "")
    assert message in err
