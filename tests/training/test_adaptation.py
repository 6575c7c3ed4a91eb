"""The benchmark of how few lines adapt a model: what it keeps, and what it does not take for its own."""

from __future__ import annotations

import json
import re
import sys

import pytest
from PIL import Image

from benchmarks import adaptation
from tests.datasets.files import pack
from tests.training.runs import rows
from tests.training.small import write_lines
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.training import FitResult


@pytest.fixture(scope="module")
def start(ocr, tmp_path_factory):
    """Holds `model`, what trainings start from, and the folder `lines` and `lines.zip` with its content."""
    folder = tmp_path_factory.mktemp("adaptation")
    ocr.save_pretrained(folder / "model")
    (folder / "lines").mkdir()
    for split in ("train", "val", "test"):
        write_lines(folder / "lines" / split)
    pack(folder / "lines", folder / "lines.zip")
    return folder


@pytest.fixture
def run(start, tmp_path, monkeypatch, capsys):
    """Runs the benchmark with these options and returns what it prints; its folder is `tmp_path`."""
    command = ["adaptation", "--data", str(start / "lines.zip"), "--model", str(start / "model")]
    command += ["--fewest", "2", "--most", "2", "--output", str(tmp_path)]

    def run(*options):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        adaptation.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def changes(monkeypatch):
    """Nothing is trained or read; gets what each training would have changed its images by."""
    found = []

    def fit(ocr, *_, augment, **__):
        found.append(augment)
        return FitResult(ocr, 0.5, 0.5, 0, 2, 0, max_steps=2)

    rates = {"cer": [0.5, 0.4, 0.6], "wer": [0.9, 0.8, 1.0]}
    monkeypatch.setattr(adaptation, "fit", fit)
    monkeypatch.setattr(adaptation, "measure", lambda *_, **known: known | rates)
    monkeypatch.setattr(adaptation, "plot", lambda *_: None)
    return found


def test_each_count_is_trained_once(run, tmp_path, monkeypatch):
    printed = run("--counts", "2", "4")
    kept = (tmp_path / "results.json").read_bytes()
    found = json.loads(kept)["rows"]
    assert [(row["count"], row["steps"]) for row in found] == [(0, 0), (2, 2), (4, 2)]
    assert found[0]["cer"][0] > 0.9
    for row in found:
        assert 0 <= row["best_step"] <= row["steps"]
        for value, low, high in (row["cer"], row["wer"]):
            assert 0 <= low <= value <= high
    for count in (2, 4):
        assert [int(row["step"]) for row in rows(tmp_path / f"lines-{count}")] == [0, 1, 2]
    assert printed == (tmp_path / "results.md").read_text() == adaptation.table(found)
    assert re.findall(r"^\| (\d+) \| (\d+) \|", printed, re.MULTILINE) == [("0", "0"), ("2", "2"), ("4", "2")]
    with Image.open(tmp_path / "learning_curve.png") as image:
        assert image.width > image.height > 100
    for name in ("evaluate", "fit"):
        monkeypatch.setattr(adaptation, name, None)
    assert run("--counts", "2", "4") == printed
    assert (tmp_path / "results.json").read_bytes() == kept


def test_counts_that_are_asked_for_later_take_their_places(run, changes):
    run("--counts", "4")
    printed = run("--counts", "2", "9")
    assert re.findall(r"^\| (\d+) \|", printed, re.MULTILINE) == ["0", "2", "4", "5"]  # there are five
    assert changes == [None] * 3


def test_images_are_changed_where_it_is_asked_for(run, changes):
    run("--counts", "2", "--augment")
    assert changes == ["da2"]


def test_results_of_other_options_are_not_taken_for_these(run, changes, start, tmp_path):
    run("--counts", "2")
    kept = (tmp_path / "results.json").read_bytes()
    refused = {
        r"differ in data \(was '.*lines\.zip', is '.*lines'\); ask .* another folder": ["--data", str(start / "lines")],
        r"differ in model \(was '.*model', is '.*'\);": ["--model", str(EMBEDDED)],
        r"differ in epochs \(was 20, is 3\), seed \(was 0, is 1\);": ["--epochs", "3", "--seed", "1"],
        r"differ in fewest \(was 2, is 1\), most \(was 2, is 3\);": ["--fewest", "1", "--most", "3"],
        r"differ in augment \(was False, is True\);": ["--augment"],
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            run("--counts", "2", "4", *options)
    assert (tmp_path / "results.json").read_bytes() == kept
    content = json.loads(kept)
    del content["asked"]  # as it was before that was kept
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"differ in data \(was None, is "):
        run("--counts", "2")
