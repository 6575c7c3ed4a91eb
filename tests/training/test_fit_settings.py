"""Settings of `fit` arrive where they act, and the error rates of validation decide what is kept and when it ends."""

from __future__ import annotations

import io
import json
import re
import sys
import unittest.mock

import jax
import numpy as np
import pytest

from tests.training.small import TEXTS, examples, write_lines
from trocr_jax import TrOCR
from trocr_jax.datasets import Example
from trocr_jax.processing.image import ImageError
from trocr_jax.training import TrainingSettings, fit, loop, plan

STEADY = {"batch_size": 5, "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0, "eval_every": 1}


class Validation:
    """In place of `validate`: error rates that were thought out, and what it was asked."""

    def __init__(self, *rates: float) -> None:
        self.rates, self.weights, self.options = iter(rates), [], []

    def __call__(self, ocr: TrOCR, examples: list[Example], **options) -> float:
        self.weights.append(jax.tree.map(np.array, ocr.params))
        self.options.append(options)
        return next(self.rates)


def train(ocr, output, monkeypatch, rates, lines=None, **options):
    validation = Validation(*rates)
    monkeypatch.setattr(loop, "validate", validation)
    result = fit(ocr, lines or examples(), examples(), output, **{**STEADY, **options})
    return result, validation


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_told_on_a_terminal_alone(ocr, tmp_path, monkeypatch, capsys):
    train(ocr, tmp_path / "quiet", monkeypatch, [1.0, 0.5, 0.25], max_steps=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    train(ocr, tmp_path / "told", monkeypatch, [1.0, 0.5, 0.25], max_steps=2)
    last = sys.stderr.getvalue().split("\r")[-1]
    assert re.search(r" 2/2 \[.*, cer=0\.25, images=[\d.]+/s, loss=\d+\.\d{3}\]", last), last


def test_a_folder_pairs_and_an_augmentation_by_name(ocr, tmp_path):
    folder, told = write_lines(tmp_path / "lines"), []
    pairs = [(line.open().convert("L"), line.text) for line in examples()]
    options = {**STEADY, "max_steps": 1, "augment": "da2", "tell": told.append}
    result = fit(ocr, folder, (pair for pair in pairs), tmp_path / "out", **options)
    assert (result.num_steps, result.max_steps, result.is_early) == (1, 1, False)
    settings = json.loads((tmp_path / "out" / "training" / "settings.json").read_text())
    assert settings["augmentation"] == "da2 {'size': (32, 320)}"  # by which trainings are known that were begun before
    assert (settings["training lines"][:8], settings["validation lines"][:8]) == ("5 lines,", "5 lines,")
    assert settings["training lines"] != settings["validation lines"]  # names of files are not numbers
    assert not told
    fit(ocr, folder, folder, tmp_path / "same", **options)
    assert told == [
        "5 of the 5 validation lines are training lines as well: the CER will say little of lines that are new "
        "(trocr-jax data check TRAIN VAL also finds copies)"
    ]


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_it_ends_when_nothing_gets_better_and_keeps_the_best(ocr, tmp_path, monkeypatch):
    rates, settings = [0.9, 0.5, 0.4, 0.6, 0.4], {"max_steps": 9, "patience": 2, "num_beams": 3, "keep": 2}
    output = tmp_path / "out"
    result, validation = train(ocr, output, monkeypatch, rates, **settings)
    assert (result.first_cer, result.best_cer, result.best_step, result.num_steps) == (0.9, 0.4, 2, 4)
    assert (result.is_early, result.max_steps) == (True, 9)
    kept = TrOCR.from_pretrained(output).params
    assert [equal(kept, weights) for weights in validation.weights] == [False, False, True, False, False]
    assert {options["num_beams"] for options in validation.options} == {3}
    checkpoints = {path.name for path in (output / "training" / "checkpoints").iterdir()}
    assert checkpoints == {"3", "4"}
    # Resumed, it is still over.
    again, nothing = train(ocr, output, monkeypatch, [], resume=True, **settings)
    assert (again.best_step, again.num_steps, again.is_early, nothing.weights) == (2, 4, True, [])


def test_the_moving_average_is_what_is_read_with_and_kept(ocr, tmp_path, monkeypatch):
    _, plain = train(ocr, tmp_path / "plain", monkeypatch, [0.9, 0.5], max_steps=1)
    result, averaged = train(ocr, tmp_path / "averaged", monkeypatch, [0.9, 0.5], max_steps=1, ema_decay=0.9)
    assert not result.is_early
    before, behind = plain.weights
    assert not equal(before, behind)
    # Its first decay is a tenth.
    for found in (averaged.weights[1], result.ocr.params):
        jax.tree.map(lambda x, a, b: np.testing.assert_allclose(x, 0.1 * a + 0.9 * b, atol=1e-6), found, before, behind)


@pytest.mark.filterwarnings("ignore:trained without a line")
def test_steps_without_a_label_are_counted(ocr, tmp_path, monkeypatch):
    def fail():
        raise ImageError("line 9 is damaged")

    lines, settings = [*examples(), Example("line 9", "x", fail)], {"batch_size": 1, "max_steps": 6, "eval_every": 6}
    result, _ = train(ocr, tmp_path / "out", monkeypatch, [0.9, 0.5], lines, **settings)
    assert result.num_skipped == 1


def test_settings_reach_what_they_set(ocr, tmp_path):
    settings = TrainingSettings(
        batch_size=4, max_steps=8, learning_rate=3e-3, schedule="linear", warmup_steps=2, weight_decay=0.5,
        not_decayed="bias", max_grad_norm=0.25, label_smoothing=0.125, label_format="hf", frozen="^encoder/",
        ema_decay=0.75, accumulate=2, remat=True, seed=3,
    )  # fmt: skip
    ocr.save_pretrained(tmp_path / "model")
    half = TrOCR.from_pretrained(tmp_path / "model", dtype="bfloat16")
    ours = plan.Plan.of(half, examples(), examples(), tmp_path / "out", settings, augment=None)
    with unittest.mock.patch.multiple(plan, make_optimizer=unittest.mock.DEFAULT, make_train_step=unittest.mock.DEFAULT,
                                      create_state=unittest.mock.DEFAULT) as calls:  # fmt: skip
        ours.step()
        ours.first_state()
    [schedule], optimizer = calls["make_optimizer"].call_args
    assert optimizer == {"weight_decay": 0.5, "not_decayed": "bias", "max_grad_norm": 0.25}
    assert [float(schedule(count)) for count in (0, 1, 5)] == pytest.approx([1.5e-3, 3e-3, 1.5e-3])
    [model, _], step = calls["make_train_step"].call_args
    assert (model.policy.name, model.policy.remat) == ("bfloat16", True)
    assert step.pop("layout") is None  # of one device
    assert step == {"start_token_id": 2, "label_smoothing": 0.125, "accumulate": 2, "ema_decay": 0.75}
    state = calls["create_state"].call_args[1]
    assert state == {"seed": 3, "frozen": "^encoder/", "lora": None, "with_ema": True}
    # <s> text </s> whatever the model starts from.
    assert set(ours.batches.labels[:, 0]) == {0}
    assert (ours.batches.batch_size, ours.batches.seed, len(ours.batches.labels)) == (4, 3, len(TEXTS))
