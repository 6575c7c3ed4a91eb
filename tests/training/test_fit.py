"""`fit`: it learns, can be resumed from any moment, and leaves what loads."""

from __future__ import annotations

import csv
import multiprocessing
import random

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from tests.training.small import TEXTS, examples, shift, small_ocr, train_until_killed
from trocr_jax import TrOCR
from trocr_jax.datasets import Example
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.processing.image import ImageError
from trocr_jax.training import Batches, TrainingSettings, fit
from trocr_jax.training.plan import Plan


@pytest.fixture(scope="module")
def ocr():
    return small_ocr()


@pytest.fixture(scope="module")
def trained(ocr, tmp_path_factory):
    """(folder, result) of a training long enough to learn the lines by heart."""
    folder = tmp_path_factory.mktemp("fit") / "out"
    options = {"batch_size": 5, "learning_rate": 1e-2, "eval_every": 50, "warmup_steps": 10, "schedule": "linear"}
    return folder, fit(ocr, examples(), examples(), folder, max_steps=150, **options)


def rows(folder):
    with (folder / "training" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_and_leaves_the_best_weights(ocr, trained):
    folder, result = trained
    assert result.first_cer > 0.9
    assert result.best_cer < 0.3
    assert (result.num_steps, result.num_skipped) == (150, 0)
    before = np.asarray(ocr.params["decoder"]["embed_tokens"]["embedding"]).copy()
    lines = TrOCR.from_pretrained(folder)([example.open() for example in examples()])
    texts = [line.text for line in lines]
    assert character_error_rate(texts, TEXTS) == result.best_cer
    assert [line.text for line in result.ocr([example.open() for example in examples()])] == texts
    np.testing.assert_array_equal(ocr.params["decoder"]["embed_tokens"]["embedding"], before)  # a copy was trained


def test_the_log_and_the_curves(trained):
    folder, result = trained
    found = rows(folder)
    assert [int(row["step"]) for row in found] == list(range(151))
    cers = {int(row["step"]): float(row["cer"]) for row in found if row["cer"]}
    assert sorted(cers) == [0, 50, 100, 150]
    assert cers[result.best_step] == min(cers.values()) == result.best_cer
    losses = [float(row["loss"]) for row in found[1:]]
    assert losses[-1] < 0.2 * losses[0]
    assert float(found[1]["learning_rate"]) == pytest.approx(1e-3)
    assert float(found[10]["learning_rate"]) == pytest.approx(1e-2)
    assert float(found[-1]["learning_rate"]) == pytest.approx(1e-2 / 140)
    assert all(float(row["images_per_second"]) > 0 for row in found[10::10])
    with Image.open(folder / "training" / "curves.png") as image:
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    assert [31, 119, 180] in colours  # the loss
    assert [214, 39, 40] in colours  # the error rate


def test_a_training_that_is_there_is_not_written_over(ocr, trained):
    folder, result = trained
    options = {"batch_size": 5, "learning_rate": 1e-2, "eval_every": 50, "warmup_steps": 10, "schedule": "linear"}
    with pytest.raises(FileExistsError, match="holds a training"):
        fit(ocr, examples(), examples(), folder, max_steps=150, **options)
    with pytest.raises(ValueError, match=r"seed \(was 0, is 1\)"):
        fit(ocr, examples(), examples(), folder, max_steps=150, resume=True, seed=1, **options)
    with pytest.raises(ValueError, match=r"training lines \(was '5 lines"):
        fit(ocr, examples(TEXTS[:4]), examples(), folder, max_steps=150, resume=True, **options)
    # One that ended has nothing left to do.
    again = fit(ocr, examples(), examples(), folder, max_steps=150, resume=True, **options)
    assert (again.best_cer, again.best_step, again.num_steps) == (result.best_cer, result.best_step, 150)


def test_what_cannot_be_trained_is_told_before_anything_is_written(ocr, tmp_path):
    lines = examples()

    def complaint(train=lines, validation=lines, **options):
        with pytest.raises((ValueError, TypeError)) as caught:
            fit(ocr, train, validation, tmp_path / "out", **options)
        return str(caught.value)

    assert "no training lines" in complaint(train=[])
    assert "hold no text" in complaint(validation=[])
    assert "batch_size is 0" in complaint(batch_size=0)
    assert "accumulate=3" in complaint(accumulate=3)
    assert "choose one of" in complaint(schedule="step")
    assert "found in 0 of" in complaint(frozen="encodr")
    assert "label_smoothing is 1" in complaint(label_smoothing=1)
    assert "epochs" in complaint(epochs=3)
    assert "none is left" in complaint(train=examples(["0" * 200]))
    assert not (tmp_path / "out").exists()


def test_lines_over_length_are_left_out_with_a_warning(ocr, tmp_path):
    settings = TrainingSettings()
    with pytest.warns(UserWarning, match="1 of 3 training lines .* 24 tokens .*line 1: trained without"):
        plan = Plan.of(ocr, examples(["a", "0" * 200, "b" * 12]), examples(), tmp_path, settings, augment=None)
    assert [example.text for example in plan.batches.examples] == ["a", "b" * 12]
    # A text of 12 tokens would be cut at the length of 9 that the model was read with.
    assert plan.generation_config.max_length == (plan.batches.labels[1] != -100).sum() + 1 > 9


def test_settings_suit_the_number_of_lines(ocr):
    config = ocr.config
    steps = [TrainingSettings().resolved(count, config).max_steps for count in (100, 1000, 100_000)]
    assert steps == [400, 1875, 20_000]
    chosen = TrainingSettings(max_steps=50, learning_rate=1e-3).resolved(100, config)
    assert (chosen.max_steps, chosen.learning_rate, chosen.warmup_steps, chosen.eval_every) == (50, 1e-3, 5, 20)


class TestBatches:
    def batches(self, ocr, lines=None, **options):
        lines = examples() if lines is None else lines
        labels = np.arange(len(lines) * 2, dtype=np.int32).reshape(-1, 2)
        return Batches(lines, labels, ocr.processor.image_processor, **{"batch_size": 2, "seed": 3, **options})

    def test_every_epoch_has_each_line_once_in_an_order_of_its_own(self, ocr):
        batches = self.batches(ocr)
        places = [place for step in range(10) for place in batches.of_step(step)]
        epochs = [[i for e, i in places if e == epoch] for epoch in range(4)]
        assert all(sorted(order) == [0, 1, 2, 3, 4] for order in epochs)
        assert len({tuple(order) for order in epochs}) > 2
        assert places != [p for step in range(10) for p in self.batches(ocr, seed=4).of_step(step)]

    def test_a_stream_depends_on_nothing_but_its_place(self, ocr):
        whole = list(self.batches(ocr, augment=shift).stream(0, 6))
        part = list(self.batches(ocr, augment=shift).stream(4, 6))
        assert (len(whole), len(part)) == (6, 2)
        for a, b in zip(whole[4:], part, strict=True):
            np.testing.assert_array_equal(a.levels, b.levels)
            np.testing.assert_array_equal(a.labels, b.labels)
        # The second epoch shows the same lines otherwise.
        first = {
            label[0]: level for batch in whole[:3] for label, level in zip(batch.labels, batch.levels, strict=True)
        }
        again = whole[3]
        assert not any(np.array_equal(first[n[0]], x) for n, x in zip(again.labels, again.levels, strict=True))

    def test_a_line_that_cannot_be_read_is_a_row_that_does_not_count(self, ocr):
        def broken():
            raise ImageError("line 9 is damaged")

        [batch] = self.batches(ocr, [*examples(["a"]), Example("line 9", "x", broken)]).stream(0, 1)
        assert sorted(batch.labels.sum(axis=1)) == [-200, 1]
        assert [str(error) for error in batch.unread] == ["line 9 is damaged"]
        with pytest.raises(ImageError, match="line 9"):
            list(self.batches(ocr, [Example("line 9", "x", broken)]).stream(0, 1))


def run_process(context, *arguments):
    process = context.Process(target=train_until_killed, args=tuple(map(str, arguments[:3])) + arguments[3:])
    process.start()
    process.join(300)
    return process.exitcode


def final_state(folder):
    with ocp.CheckpointManager(folder / "training" / "checkpoints") as manager:
        assert manager.latest_step() == 24
        return manager.restore(24, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_it_ends_bitwise_the_same(ocr, tmp_path, num_kills):
    ocr.save_pretrained(tmp_path / "model")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.small"])
    paths = (tmp_path / "model", tmp_path / "cache")
    assert run_process(context, *paths, tmp_path / "whole", None) == 0
    rng, killed = random.Random(num_kills), 0
    for _ in range(num_kills):
        killed += run_process(context, *paths, tmp_path / "killed", rng.randint(3, 24)) == -9
    assert killed >= 3
    assert run_process(context, *paths, tmp_path / "killed", None) == 0
    expected, found = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert len(jax.tree.leaves(expected)) > 100
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)
    name = "flax_model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for a, b in zip(rows(tmp_path / "killed"), rows(tmp_path / "whole"), strict=True):
        assert {**a, "images_per_second": ""} == {**b, "images_per_second": ""}
