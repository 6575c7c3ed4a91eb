"""The command's mistakes, told before anything is trained; the training itself is in test_docs.py."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shutil

import pytest

import trocr_jax.training
from tests.conftest import SAMPLES
from trocr_jax import cli
from trocr_jax.commands.finetune import NAMES, process_of, to_lines
from trocr_jax.training import FitResult, TrainingSettings


def complaint(capsys, *arguments, train=SAMPLES):
    assert cli.main(["finetune", "--train", str(train), "--val", str(SAMPLES), *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trocr-jax: ")
    assert "training lines as well" not in err  # which matters where something is trained
    return err


def test_mistakes_are_told_in_a_line(capsys, tmp_path):
    output = tmp_path / "out"
    assert "nowhere" in complaint(capsys, "--output", output, train=tmp_path / "nowhere")
    assert "nobody/nothing" in complaint(capsys, "--output", output, "--model", "nobody/nothing")
    assert "cannot be divided" in complaint(capsys, "--output", output, "--batch-size", 6, "--accumulate", 4)
    assert "is found in 0" in complaint(capsys, "--output", output, "--freeze", "encodr")
    assert "holds no tokenizer" in complaint(capsys, "--output", output, "--tokenizer", tmp_path / "nowhere")
    assert "never be learned" in complaint(capsys, "--output", output, "--add-characters", "ж", "--lora-rank", 4)
    assert not output.exists()
    assert "is a file" in complaint(capsys, "--output", SAMPLES / "date.png")


@pytest.mark.filterwarnings("always::UserWarning")
def test_lines_left_out_are_told_of(capsys, tmp_path):
    lines = "date.png\t09\n" + "date.png\t" + "0" * 200 + "\n"
    (tmp_path / "labels.tsv").write_text(lines)
    shutil.copy(SAMPLES / "date.png", tmp_path)
    told = complaint(capsys, "--output", SAMPLES / "date.png", train=tmp_path)
    assert told.startswith("trocr-jax: 1 of 2 training lines have texts of more than the 64 tokens")


def test_an_interrupted_training_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trocr_jax.training, "fit", interrupted)
    arguments = ["finetune", "--train", str(SAMPLES), "--val", str(SAMPLES), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 130
    anew = "trocr-jax: interrupted before the first checkpoint; the same command starts anew\n"
    assert capsys.readouterr().err == anew
    for name in ("8", "16", "24.orbax-checkpoint-tmp"):
        (tmp_path / "out" / "training" / "checkpoints" / name).mkdir(parents=True)
    assert cli.main(arguments) == 130
    on = "trocr-jax: interrupted; the same command with --resume goes on from step 16\n"
    assert capsys.readouterr().err == on


def test_processes_are_named_by_address_and_number():
    expected = {"coordinator_address": "node-1:1234", "process_id": 1, "num_processes": 4}
    assert process_of("node-1:1234,1/4") == expected
    for text in ("node-1,1/4", "node-1:1234", "node-1:1234,4/4"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT,I/N"):
            process_of(text)


def test_every_setting_is_an_option():
    assert {field.name for field in dataclasses.fields(TrainingSettings)} == set(NAMES)


@pytest.mark.parametrize(
    ("best_step", "skipped", "kept", "count"),
    [
        (40, 0, "after step 40", 2),
        (0, 0, "of the model that was started from (step 0)", 3),
        (40, 3, "after step 40", 3),
    ],
)
def test_what_it_came_to(best_step, skipped, kept, count):
    lines = to_lines(FitResult(None, 0.5, 0.125, best_step, 100, skipped, max_steps=100), pathlib.Path("mine"))
    assert lines[0] == "CER of the validation lines: 50.00 % before, 12.50 % now"
    assert lines[1] == f"100 steps were run; mine holds the weights {kept}"
    assert len(lines) == count


def test_a_training_that_patience_ended_says_so():
    result = FitResult(None, 0.5, 0.125, 40, 100, 0, max_steps=400)
    lines = to_lines(result, pathlib.Path("mine"))
    assert lines[1] == "100 of 400 steps were run; mine holds the weights after step 40"
    assert "--patience" in lines[2]


def test_an_augmentation_is_passed_on_by_its_name(monkeypatch, capsys):
    found = []

    def fit(*_, augment, tell, **__):
        found.append(augment)
        tell("said")
        return FitResult(None, 0.5, 0.125, 40, 100, 0, max_steps=100)

    monkeypatch.setattr(trocr_jax.training, "fit", fit)
    command = ["finetune", "--train", str(SAMPLES), "--val", str(SAMPLES), "--output", "mine"]
    for options in ([], ["--augment=none"], ["--augment=da2"], ["--augment=randaugment"]):
        assert cli.main([*command, *options]) == 0
    assert found == [None, None, "da2", "randaugment"]
    told = capsys.readouterr()
    assert told.err.count("trocr-jax: said\n") == 4
    assert "mine holds the weights after step 40\n" in told.out
