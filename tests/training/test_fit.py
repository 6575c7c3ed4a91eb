"""`fit`: it learns, can be resumed from any moment, and leaves what loads."""

from __future__ import annotations

import csv
import json
import multiprocessing
import pathlib
import random
import socket

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from tests.training.small import TEXTS, command, divide, examples, options, shift, small_ocr, train
from trocr_jax import TrOCR
from trocr_jax.datasets import Example
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.processing.image import ImageError
from trocr_jax.training import Batches, TrainingSettings, fit
from trocr_jax.training.checkpoints import Checkpoints
from trocr_jax.training.plan import Plan
from trocr_jax.training.validation import validate

STEPS = 150
WEIGHTS = "flax_model.safetensors"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.small"])


def run(folder, output, max_steps=STEPS, num_images=None, num_devices=1, **changes):
    """The exit status of a process that trains; -9 if it was killed."""
    arguments = (folder / "model", str(folder / "cache"), output, max_steps, num_images, num_devices)
    return status(train, *arguments, **changes)


def status(target, *arguments, **options):
    """The exit status of a process of its own."""
    return statuses(target, [arguments], **options)[0]


def statuses(target, calls, **options):
    """The exit statuses of processes that run at once, each with arguments of its own."""
    processes = [CONTEXT.Process(target=target, args=arguments, kwargs=options) for arguments in calls]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(300)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def ocr():
    return small_ocr()


@pytest.fixture(scope="module")
def folder(ocr, tmp_path_factory):
    """Holds `model`, what trainings start from, and `whole`, one without interruption."""
    folder = tmp_path_factory.mktemp("fit")
    ocr.save_pretrained(folder / "model")
    assert run(folder, folder / "whole") == 0
    return folder


def again(folder, train=None, **changes):
    """Resumes that training, in this process."""
    start, lines = TrOCR.from_pretrained(folder / "model"), examples()
    return fit(start, train or lines, lines, folder / "whole", **{"resume": True, **options(STEPS), **changes})


@pytest.fixture(scope="module")
def trained(folder):
    """(folder, result) of that training; one that ended has nothing left to do."""
    return folder / "whole", again(folder)


def rows(folder):
    with (folder / "training" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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
    assert "hold no text" in complaint(validation=[])
    assert "batch_size is 0" in complaint(batch_size=0)
    assert "accumulate=3" in complaint(accumulate=3)
    assert "choose one of" in complaint(schedule="step")
    assert "found in 0 of" in complaint(frozen="encodr")
    assert "label_smoothing is 1" in complaint(label_smoothing=1)
    assert "epochs" in complaint(epochs=3)
    assert "none is left" in complaint(train=examples(["0" * 200]))
    assert not (tmp_path / "out").exists()


def test_where_memory_ends_it_says_what_helps_and_other_settings_may_follow(ocr, tmp_path, monkeypatch):
    def step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(Plan, "step", lambda _: step)
    with pytest.raises(MemoryError, match="lower batch_size"):
        fit(ocr, examples(), examples(), tmp_path / "out", max_steps=2)
    with pytest.raises(MemoryError, match="lower batch_size"):
        fit(ocr, examples(), examples(), tmp_path / "out", max_steps=2, batch_size=4)


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
        lines = [*examples(["a", "b"]), Example("line 9", "x", broken)]
        batches = list(self.batches(ocr, lines, batch_size=1).stream(0, 9))
        assert sum(bool(batch.unread) for batch in batches) == 3
        assert all((batch.labels == -100).all() == bool(batch.unread) for batch in batches)
        with pytest.raises(ImageError, match="line 9"):
            list(self.batches(ocr, [Example("line 9", "x", broken)]).stream(0, 1))


def final_state(output, max_steps):
    with ocp.CheckpointManager(output / "training" / "checkpoints") as manager:
        assert manager.latest_step() == max_steps
        return manager.restore(max_steps, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def last_checkpoint(output):
    """The step of the last that is whole; 0 where there is none."""
    names = [path.name for path in (output / "training" / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def assert_killed_and_resumed_is_whole(folder, whole, killed, max_steps, kills):
    """Each of `kills` is when a run is killed, which the next resumes; the steps that they left behind are returned."""
    reached = []
    for kill in kills:
        assert run(folder, killed, max_steps, checkpoint_every=4, **kill) == -9
        reached.append(last_checkpoint(killed))
    assert run(folder, killed, max_steps, checkpoint_every=4) == 0
    expected, found = final_state(whole, max_steps), final_state(killed, max_steps)
    assert len(jax.tree.leaves(expected)) > 100
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    for a, b in zip(rows(killed), rows(whole), strict=True):
        assert {**a, "images_per_second": ""} == {**b, "images_per_second": ""}
    assert reached == sorted(reached)
    return reached


# While the untrained model is being written at first, and once more behind the 75th step.
FILES = {"num_files": 6}


def random_kills(count):
    random_images = random.Random(0)
    return [{"num_images": random_images.randint(40, 240)} for _ in range(count)]


def test_killed_at_any_moment_and_resumed_it_ends_bitwise_the_same(folder):
    kills = [FILES, *random_kills(3), FILES]
    reached = assert_killed_and_resumed_is_whole(folder, folder / "whole", folder / "killed", STEPS, kills)
    first, *among, last = reached
    # Nothing was saved at first; then each went on from where another had been killed, the last up to its 75th step.
    assert (first, last) == (0, 72)
    assert among[0] > 0
    assert len(set(among)) == 3


@pytest.mark.slow
def test_the_same_with_twenty_kills(folder):
    assert run(folder, folder / "long", 800) == 0
    reached = assert_killed_and_resumed_is_whole(folder, folder / "long", folder / "often", 800, random_kills(20))
    assert len(set(reached)) > 15


def assert_trains_alike(found, expected, num_steps):
    one, other = rows(expected), rows(found)
    for name, scale in (("loss", 1e-5), ("grad_norm", 1e-4)):
        wanted, values = ([float(row[name]) for row in table[1 : num_steps + 1]] for table in (one, other))
        assert len(values) == num_steps
        np.testing.assert_allclose(values, wanted, rtol=scale)
    assert wanted[-1] != wanted[0]


@pytest.mark.slow
def test_eight_devices_train_as_one(folder):
    # While the learning rate grows it is the same, whatever the number of steps.
    assert run(folder, folder / "eight", 12, num_devices=8) == 0
    assert_trains_alike(folder / "eight", folder / "whole", 10)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_eight_devices_find_the_gradients_of_one(folder, ocr, fsdp):
    lines, settings, found = examples(), TrainingSettings(max_steps=1, batch_size=8, ema_decay=0.9), {}
    like = Plan.of(ocr, lines, lines, folder, settings, augment=None).first_state()
    for num_devices in (1, 8):
        output = folder / f"step-{num_devices}-{fsdp}"
        assert run(folder, output, 1, num_devices=num_devices, warmup_steps=0, fsdp=fsdp) == 0
        with Checkpoints(output / "training" / "checkpoints", keep=2) as checkpoints:
            state, _ = checkpoints.latest(like)
        # Adam's first moment: a tenth of the gradient.
        found[num_devices] = {name: 10 * np.asarray(leaf) for name, leaf in state.opt_state[1][0].mu.items()}
    assert found[1].keys() == found[8].keys()
    assert max(np.abs(leaf).max() for leaf in found[1].values()) > 0.1
    for name, leaf in found[1].items():
        np.testing.assert_allclose(found[8][name], leaf, atol=1e-5, rtol=0, err_msg=name)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_two(folder, output, max_steps, num_images=(None, None), **changes):
    """The exit statuses of two processes with two devices each that train together."""
    port = free_port()
    calls = [
        (folder / "model", str(folder / f"cache-{number}"), output, max_steps, count, 2, (port, number))
        for number, count in enumerate(num_images)
    ]
    return statuses(train, calls, **changes)


@pytest.mark.slow
def test_two_processes_of_the_command_train_divided_adapters(folder):
    output, lines = folder / "two-adapters", folder / "lines"
    lines.mkdir()
    for line in examples():
        line.open().save(lines / f"{line.text}.png")
    (lines / "labels.tsv").write_text("".join(f"{text}.png\t{text}\n" for text in TEXTS))
    arguments = ["finetune", f"--model={folder / 'model'}", f"--train={lines}", f"--val={lines}", f"--output={output}"]
    arguments += ["--fsdp", "--lora-rank=8", "--max-steps=2", "--warmup-steps=1", "--batch-size=8"]
    host = f"127.0.0.1:{free_port()}"
    calls = [
        (str(folder / f"cache-{number}"), 2, [*arguments, f"--distributed={host},{number}/2"]) for number in range(2)
    ]
    assert statuses(command, calls) == [0, 0]
    assert (output / "training" / "adapters.safetensors").is_file()


def test_a_process_that_can_read_nothing_does_not_leave_the_others_waiting(ocr):
    class Second:
        """The second of two processes; the first found 1 edit in 4 characters."""

        number, size = 1, 2

        def total(self, edits):
            return edits + np.array([1, 4])

    def fail():
        raise ImageError("missing")

    lines = [*examples()[:1], Example("line 1", "abc", fail)]
    assert validate(ocr, lines, team=Second()) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_train_as_one(folder, fsdp):
    output = folder / f"two-{fsdp}"
    assert run_two(folder, output, 12, fsdp=fsdp) == [0, 0]
    assert_trains_alike(output, folder / "whole", 10)
    first, second = (json.loads(pathlib.Path(f"{output}-{number}.json").read_text()) for number in range(2))
    # Each opened its half of every batch.
    assert (first.pop("opened"), second.pop("opened")) == (48, 48)
    assert first == second
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["training"]
    one = TrOCR.from_pretrained(output)
    assert [line.text for line in one([line.open() for line in examples()])] == first["texts"]
    assert character_error_rate(first["texts"], TEXTS) == first["best_cer"]


@pytest.mark.slow
def test_eight_devices_hold_an_eighth_of_the_state_each(folder):
    assert status(divide, folder / "model", str(folder / "cache"), folder / "none") == 0


@pytest.mark.slow
def test_eight_devices_that_divide_the_weights_train_as_one_and_the_checkpoint_does_not_tell(folder):
    # Killed on eight devices behind a checkpoint, and resumed on one that holds all.
    assert run(folder, folder / "divided", 12, num_images=95, num_devices=8, fsdp=True, checkpoint_every=2) == -9
    assert last_checkpoint(folder / "divided") >= 2
    assert run(folder, folder / "divided", 12, checkpoint_every=2) == 0
    assert_trains_alike(folder / "divided", folder / "whole", 10)
