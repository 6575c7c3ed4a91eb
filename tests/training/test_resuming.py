"""A training that is killed, at any moment, and resumed is the one that was left alone, on CPU to the bit."""

from __future__ import annotations

import random

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training.runs import STEPS, WEIGHTS, last_checkpoint, rows, run
from trocr_jax import TrOCR


def final_state(output, max_steps):
    with ocp.CheckpointManager(output / "training" / "checkpoints") as manager:
        assert manager.latest_step() == max_steps
        return manager.restore(max_steps, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def kill(folder, output, max_steps, **when):
    """A run that begins or resumes and is killed; the step of the last checkpoint that is then there."""
    assert run(folder, output, max_steps, checkpoint_every=4, **when) == -9
    return last_checkpoint(output)


def assert_resumed_is_whole(folder, whole, killed, max_steps):
    assert run(folder, killed, max_steps, checkpoint_every=4) == 0
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
    reached = [kill(folder, killed, STEPS, num_images=count) for count in random_moments(3)]
    assert 0 < reached[0] < reached[1] < reached[2]  # each went on from where another had been killed
    # While the better one behind step 75 is: what is there is still a model. The checkpoint before may be unfinished.
    assert kill(folder, killed, STEPS, num_files=6) in (68, 72)
    start, found = (TrOCR.from_pretrained(place).params for place in (folder / "model", killed))
    jax.tree.map(np.testing.assert_array_equal, found, start)
    assert_resumed_is_whole(folder, folder / "whole", killed, STEPS)


@pytest.mark.slow
def test_the_same_with_twenty_kills(folder):
    assert run(folder, folder / "long", 800) == 0
    reached = [kill(folder, folder / "often", 800, num_images=count) for count in random_moments(20)]
    assert reached == sorted(set(reached))
    assert_resumed_is_whole(folder, folder / "long", folder / "often", 800)
