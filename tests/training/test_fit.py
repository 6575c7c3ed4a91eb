"""`fit`: it learns, can be resumed from any moment, and leaves what loads."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training.runs import STEPS, rows
from tests.training.small import TEXTS, examples, options, shift
from trocr_jax import TrOCR
from trocr_jax.datasets import Example
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.processing.image import ImageError
from trocr_jax.training import Batches, TrainingSettings, fit, labels, loop, plan
from trocr_jax.training.plan import Plan


def again(folder, train=None, **changes):
    """Resumes that training, in this process."""
    start, lines = TrOCR.from_pretrained(folder / "model"), examples()
    return fit(start, train or lines, lines, folder / "whole", **{"resume": True, **options(STEPS), **changes})


@pytest.fixture(scope="module")
def trained(folder):
    """(folder, result) of that training; one that ended has nothing left to do."""
    return folder / "whole", again(folder)


def test_it_learns_and_leaves_the_best_weights(trained):
    folder, result = trained
    assert result.first_cer > 0.9
    assert result.best_cer < 0.3
    assert (result.num_steps, result.num_skipped) == (STEPS, 0)
    images = [example.open() for example in examples()]
    texts = [line.text for line in TrOCR.from_pretrained(folder)(images)]
    assert character_error_rate(texts, TEXTS) == result.best_cer
    assert [line.text for line in result.ocr(images)] == texts


def test_the_log_and_the_curves(trained):
    folder, result = trained
    found = rows(folder)
    assert [int(row["step"]) for row in found] == list(range(151))
    cers = {int(row["step"]): float(row["cer"]) for row in found if row["cer"]}
    assert sorted(cers) == [0, 75, 150]
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


def test_a_training_that_is_there_is_not_written_over(folder):
    other = folder / "whole" / ".trocr_jax-being-written"
    other.mkdir()
    with pytest.raises(FileExistsError, match="holds a training"):
        again(folder, resume=False)
    with pytest.raises(ValueError, match=r"seed \(was 0, is 1\)"):
        again(folder, seed=1)
    with pytest.raises(ValueError, match=r"training lines \(was '5 lines"):
        again(folder, examples(TEXTS[:4]))
    with pytest.raises(ValueError, match=r"augmentation \(was 'shift', is None\)"):
        again(folder, augment=None)
    with pytest.raises(ValueError, match="model and labels"):
        again(folder, label_format="hf")
    assert other.is_dir()  # it may be another process's, that trains there
    other.rmdir()


def test_a_training_is_not_resumed_on_other_pixels(folder):
    start, lines = TrOCR.from_pretrained(folder / "model"), examples()
    images = dataclasses.replace(start.processor.image_processor, image_mean=(0.25, 0.5, 0.5))
    other = start.with_params(start.params, image_processor=images)
    told = r"differs in image processor's image_mean \(was \[0.5, 0.5, 0.5\], is \[0.25, 0.5, 0.5\]\); resume"
    with pytest.raises(ValueError, match=told):
        fit(other, lines, lines, folder / "whole", resume=True, **options(STEPS))


def test_a_model_that_is_there_is_not_written_over(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    with pytest.raises(FileExistsError, match="holds a model"):
        fit(ocr, examples(), examples(), tmp_path / "mine", max_steps=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


def test_what_cannot_be_trained_is_told_before_anything_is_written(ocr, tmp_path):
    lines = examples()

    def complaint(train=lines, validation=lines, **options):
        with pytest.raises((ValueError, TypeError)) as caught:
            fit(ocr, train, validation, tmp_path / "out", **options)
        return str(caught.value)

    assert "no training lines" in complaint(train=[])
    assert "no validation lines" in complaint(validation=[])
    assert "hold no text" in complaint(validation=examples([""]))
    assert "training line 1 (counted from 0) is int" in complaint(train=[("a.png", "a"), 3])
    assert "batch_size is 0" in complaint(batch_size=0)
    assert "accumulate=3" in complaint(batch_size=16, accumulate=3)
    assert "choose one of" in complaint(schedule="step")
    assert "found in 0 of" in complaint(frozen="encodr")
    assert "found in none of" in complaint(not_decayed="biass")
    assert "no regular expression" in complaint(not_decayed="(")
    assert "label_smoothing is 1" in complaint(label_smoothing=1)
    assert "unknown options of fit ['epochs']. There are ['accumulate', 'add_characters'" in complaint(epochs=3)
    assert "unknown options of fit ['freeze']; is 'frozen' meant? There are" in complaint(freeze="^encoder/")
    assert "['max_step']; is 'max_steps' meant?" in complaint(max_step=2)
    assert "['augmentation']; is 'augment' meant?" in complaint(augmentation="da2")
    assert "augment is 'da3'; pass one of da2, randaugment" in complaint(augment="da3")
    assert "augment is 3, of type int" in complaint(augment=3)
    assert "none is left" in complaint(train=examples(["0" * 200]))
    assert not (tmp_path / "out").exists()


def test_where_memory_ends_it_says_what_helps_and_other_settings_may_follow(ocr, tmp_path, monkeypatch):
    def step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(Plan, "step", lambda _: step)
    adapters = tmp_path / "out" / "training" / "adapters.safetensors"
    with pytest.raises(MemoryError, match="lower batch_size"):
        fit(ocr, examples(), examples(), tmp_path / "out", max_steps=2, lora_rank=2)
    assert adapters.is_file()
    with pytest.raises(MemoryError, match="lower batch_size"):
        fit(ocr, examples(), examples(), tmp_path / "out", max_steps=2, batch_size=4)
    assert not adapters.exists()  # which do not belong to the weights that are there now


def test_lines_over_length_are_left_out_with_a_warning(ocr, tmp_path):
    settings = TrainingSettings()
    with pytest.warns(UserWarning, match="1 of 3 training lines .* 24 tokens .*line 1: trained without"):
        plan = Plan.of(ocr, examples(["a", "0" * 200, "b" * 12]), examples(), tmp_path, settings, augment=None)
    assert [example.text for example in plan.batches.examples] == ["a", "b" * 12]
    # A text of 12 tokens would be cut at the length of 9 that the model was read with.
    assert plan.generation_config.max_length == (plan.batches.labels[1] != -100).sum() + 1 > 9


def test_a_few_long_texts_are_told_of(ocr, tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "LENGTH_STEP", 4)
    lines = examples([*["a"] * 199, "b" * 20])
    with pytest.warns(UserWarning, match=r"99 of 100 .* at most 2 tokens, the longest 21: every step computes 24 for"):
        Plan.of(ocr, lines, examples(), tmp_path, TrainingSettings(), augment=None)


def test_the_best_weights_are_gone_on_from_however_rare_checkpoints_are(ocr, tmp_path, monkeypatch):
    cers = iter((0.9, 0.5, 0.7))
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(cers))
    settings = {"max_steps": 9, "batch_size": 2, "eval_every": 2, "checkpoint_every": 1000, "patience": 0}
    with pytest.raises(StopIteration):  # as where it is interrupted, at step 6
        fit(ocr, examples(), examples(), tmp_path / "out", **settings)
    best = (tmp_path / "out" / "flax_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a training"):
        fit(ocr, examples(), examples(), tmp_path / "out", **settings)
    monkeypatch.setattr(loop, "validate", lambda *_, **__: 0.6)
    result = fit(ocr, examples(), examples(), tmp_path / "out", resume=True, **settings)
    assert (result.first_cer, result.best_cer, result.best_step) == (0.9, 0.5, 2)
    assert (tmp_path / "out" / "flax_model.safetensors").read_bytes() == best


def test_settings_suit_the_number_of_lines(ocr):
    config = ocr.config
    steps = [TrainingSettings().resolved(count, config).max_steps for count in (100, 1000, 100_000)]
    assert steps == [400, 1875, 20_000]
    chosen = TrainingSettings(max_steps=50, learning_rate=1e-3).resolved(100, config)
    assert (chosen.max_steps, chosen.learning_rate, chosen.warmup_steps, chosen.eval_every) == (50, 1e-3, 5, 20)


@pytest.mark.parametrize(
    ("num_devices", "accumulate", "expected"),
    [(1, 1, 16), (2, 1, 16), (3, 1, 18), (5, 1, 20), (6, 1, 18), (7, 1, 21), (12, 1, 24), (32, 1, 32),
     (1, 3, 18), (1, 20, 20), (8, 2, 16), (3, 4, 24)],
)  # fmt: skip
def test_a_batch_that_is_not_set_suits_devices_and_parts(ocr, num_devices, accumulate, expected):
    chosen = TrainingSettings(accumulate=accumulate).resolved(1000, ocr.config, num_devices)
    assert (chosen.batch_size, chosen.max_steps) == (expected, 30 * 1000 // expected)


def test_a_batch_that_is_set_stays_or_is_refused(ocr, tmp_path, monkeypatch):
    settings = TrainingSettings(batch_size=8, accumulate=2)
    assert settings.resolved(1000, ocr.config, 4).batch_size == 8
    # As if the recogniser were on three devices.
    monkeypatch.setattr(plan, "axis_size", lambda *_: 3)
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of 6, accumulate=2 times 3 devices"):
        Plan.of(ocr, examples(), examples(), tmp_path, settings, augment=None)
    assert Plan.of(ocr, examples(), examples(), tmp_path, TrainingSettings(), augment=None).batches.batch_size == 18


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

    def test_gray_lines_are_those_of_rgb(self, ocr):
        def seen(image):
            [batch] = self.batches(ocr, [Example("line", "a", image.copy)], augment=shift).stream(0, 1)
            return batch.levels

        gray = examples()[0].open().convert("L")
        np.testing.assert_array_equal(seen(gray), seen(gray.convert("RGB")))

    def test_a_line_that_cannot_be_read_is_a_row_that_does_not_count(self, ocr):
        def broken():
            raise ImageError("line 9 is damaged")

        [batch] = self.batches(ocr, [*examples(["a"]), Example("line 9", "x", broken)]).stream(0, 1)
        assert sorted(batch.labels.sum(axis=1)) == [-200, 1]
        assert [str(error) for error in batch.unread] == ["line 9 is damaged"]
        lines = [*examples(["a", "b"]), Example("line 9", "x", broken)]
        batches = list(self.batches(ocr, lines, batch_size=1).stream(0, 9))
        assert sum(bool(batch.unread) for batch in batches) == 3
        assert all((batch.labels == -100).all() == bool(batch.unread) for batch in batches)
        with pytest.raises(ImageError, match="line 9"):
            list(self.batches(ocr, [Example("line 9", "x", broken)]).stream(0, 1))
