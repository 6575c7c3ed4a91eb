"""A training that is killed, at any moment, and resumed is the one that was left alone, on CPU to the bit."""

from __future__ import annotations

import random

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training.runs import STEPS, WEIGHTS, last_checkpoint, rows, run
from tests.training.small import examples, write_lines
from trocr_jax import TrOCR, cli
from trocr_jax.training import TrainingSettings, loop
from trocr_jax.training.checkpoints import Checkpoints, Progress
from trocr_jax.training.plan import Plan


def final_state(output, max_steps):
    with ocp.CheckpointManager(output / "training" / "checkpoints") as manager:
        assert manager.latest_step() == max_steps
        return manager.restore(max_steps, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def kill(folder, output, max_steps, **when):
    """A run that begins or resumes and is killed; the step of the last checkpoint that is then there."""
    assert run(folder, output, max_steps, checkpoint_every=4, **when) == -9
    return last_checkpoint(output)


def assert_resumed_is_whole(folder, whole, killed, max_steps, **changes):
    assert run(folder, killed, max_steps, checkpoint_every=4, **changes) == 0
    assert_same(killed, whole, max_steps)


def assert_same(killed, whole, max_steps):
    expected, found = final_state(whole, max_steps), final_state(killed, max_steps)
    assert len(jax.tree.leaves(expected)) > 100
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    for a, b in zip(rows(killed), rows(whole), strict=True):
        assert {**a, "images_per_second": ""} == {**b, "images_per_second": ""}


def random_moments(count):
    """Numbers of images, of which 8 are a step and up to 24 are opened ahead: 9 to 23 steps, 2 checkpoints at least."""
    random_images = random.Random(0)
    return [random_images.randint(100, 190) for _ in range(count)]


def test_killed_at_any_moment_and_resumed_it_ends_bitwise_the_same(folder):
    killed = folder / "killed"
    # While the model that is started from is put in its place, the weights last.
    assert kill(folder, killed, STEPS, num_files=6) == 0
    assert any(path.is_file() for path in killed.iterdir())
    assert not (killed / WEIGHTS).exists()
    assert len(list(killed.glob(".trocr_jax-*"))) == 1
    reached = [kill(folder, killed, STEPS, num_images=count) for count in random_moments(3)]
    assert 0 < reached[0] < reached[1] < reached[2]  # each went on from where another had been killed
    # While the better one behind step 75 is: what is there is still a model. The checkpoint before may be unfinished.
    assert kill(folder, killed, STEPS, num_files=6) in (68, 72)
    start, found = (TrOCR.from_pretrained(place).params for place in (folder / "model", killed))
    jax.tree.map(np.testing.assert_array_equal, found, start)
    assert_resumed_is_whole(folder, folder / "whole", killed, STEPS)
    assert not list(killed.glob(".trocr_jax-*"))


# Adapters leave all weights as they are, so that there is no training with both.
@pytest.mark.parametrize("part", [{"lora_rank": 2}, {"frozen": "^encoder/"}], ids=["adapters", "frozen"])
def test_the_same_where_a_part_is_trained_and_batches_are_accumulated(folder, part):
    changes, name = {**part, "accumulate": 2}, next(iter(part))
    whole, killed = folder / f"whole-{name}", folder / f"killed-{name}"
    assert run(folder, whole, 16, **changes) == 0
    assert kill(folder, killed, 16, num_images=100, **changes) in (4, 8)
    assert_resumed_is_whole(folder, whole, killed, 16, **changes)


def test_what_is_saved_on_cpu_is_a_copy_whatever_else_jax_could_compute_on(ocr, tmp_path, monkeypatch):
    settings, saved = TrainingSettings(max_steps=1, batch_size=5), []
    state = Plan.of(ocr, examples(), examples(), tmp_path / "out", settings, augment=None).first_state()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", lambda _, args: saved.extend(args.state.item.values()))
        checkpoints.save(state, Progress(step=1))
    buffers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.trainable)}
    assert len(saved) > len(buffers) > 20
    assert not buffers & {leaf.unsafe_buffer_pointer() for leaf in saved}


@pytest.mark.filterwarnings("always::UserWarning")
def test_the_command_goes_on_where_it_was_interrupted(ocr, cache_home, tmp_path, monkeypatch, capsys):
    ocr.save_pretrained(tmp_path / "model")
    lines, whole, resumed = write_lines(tmp_path / "lines"), tmp_path / "whole", tmp_path / "resumed"
    command = ["finetune", f"--model={tmp_path / 'model'}", f"--train={lines}", f"--val={lines}"]
    command += ["--max-steps=6", "--batch-size=4", "--checkpoint-every=2", "--max-grad-norm=0"]
    assert cli.main([*command, f"--output={whole}"]) == 0
    between_steps = loop._Loop._between_steps

    def interrupted(self, state, progress, bar):
        if progress.step == 3:
            raise KeyboardInterrupt
        return between_steps(self, state, progress, bar)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_between_steps", interrupted)
        assert cli.main([*command, f"--output={resumed}"]) == 130
    assert last_checkpoint(resumed) == 2
    assert "goes on from step 2\n" in capsys.readouterr().err
    ocr.save_pretrained(tmp_path / "other")
    command[1] = f"--model={tmp_path / 'other'}"
    assert cli.main([*command, f"--output={resumed}", "--resume"]) == 0
    told = capsys.readouterr()
    assert "6 steps were run" in told.out
    assert "was started from model and goes on with its own weights, none of other" in told.err
    assert '"max_grad_norm": 0.0' in (resumed / "training" / "settings.json").read_text()
    assert_same(resumed, whole, 6)


@pytest.mark.slow
def test_the_same_with_twenty_kills(folder):
    assert run(folder, folder / "long", 800) == 0
    reached = [kill(folder, folder / "often", 800, num_images=count) for count in random_moments(20)]
    assert reached == sorted(set(reached))
    assert_resumed_is_whole(folder, folder / "long", folder / "often", 800)
