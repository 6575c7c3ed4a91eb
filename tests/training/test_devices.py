"""Many devices, and several processes, train as one does."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from tests.conftest import free_port
from tests.training.runs import last_checkpoint, rows, run, status, statuses
from tests.training.small import TEXTS, command, divide, examples, train, write_lines
from trocr_jax import TrOCR
from trocr_jax.datasets import Example
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.processing.image import ImageError
from trocr_jax.training import TrainingSettings
from trocr_jax.training.checkpoints import Checkpoints
from trocr_jax.training.plan import Plan
from trocr_jax.training.validation import validate


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
def test_eight_devices_find_the_gradients_of_one(folder, ocr):
    lines, settings = examples(), TrainingSettings(max_steps=1, batch_size=8, ema_decay=0.9)
    like = Plan.of(ocr, lines, lines, folder, settings, augment=None).first_state()

    def gradients(num_devices, fsdp):
        output = folder / f"step-{num_devices}-{fsdp}"
        assert run(folder, output, 1, num_devices=num_devices, warmup_steps=0, fsdp=fsdp) == 0
        with Checkpoints(output / "training" / "checkpoints", keep=2) as checkpoints:
            state, _ = checkpoints.latest(like)
        # Adam's first moment: a tenth of the clipped gradient.
        return {name: 10 * np.asarray(leaf) for name, leaf in state.opt_state[1][0].mu.items()}

    one = gradients(1, False)
    assert max(np.abs(leaf).max() for leaf in one.values()) > 0.1
    for fsdp in (False, True):
        eight = gradients(8, fsdp)
        assert eight.keys() == one.keys()
        for name, leaf in one.items():
            np.testing.assert_allclose(eight[name], leaf, atol=1e-5, rtol=0, err_msg=name)


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
    output, lines = folder / "two-adapters", write_lines(folder / "lines")
    arguments = ["finetune", f"--model={folder / 'model'}", f"--train={lines}", f"--val={lines}"]
    arguments += ["--fsdp", "--lora-rank=8", "--max-steps=2", "--warmup-steps=1", "--batch-size=8"]
    host = f"127.0.0.1:{free_port()}"
    calls = [
        (str(folder / f"cache-{number}"), 2, [*arguments, f"--output={output}", f"--distributed={host},{number}/2"])
        for number in range(2)
    ]
    assert statuses(command, calls) == [0, 0]
    assert (output / "training" / "adapters.safetensors").is_file()
    TrOCR.from_pretrained(output)
    alone = folder / "one-adapters"
    assert status(command, str(folder / "cache"), 4, [*arguments, f"--output={alone}"]) == 0
    assert [row["step"] for row in rows(output)] == ["0", "1", "2"]
    assert_trains_alike(output, alone, 2)


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
