"""Every processor by itself and in lists, on random rows and scores: equal to the oracle's, step by step."""

from __future__ import annotations

import random

import jax
import numpy as np
import pytest

from tests.decoding.processors import (
    NAMES,
    VOCAB_SIZE,
    WARPERS,
    RandomOptions,
    oracle_processors,
    oracle_scores,
    random_scores,
)
from tests.twins import default_twin
from trocr_jax.decoding.logits_processors import process, start_processors
from trocr_jax.decoding.processor_list import make_processors
from trocr_jax.generation_config import GenerationConfig

# What XLA's older emitters make of scores at a threshold may differ: see sampling.py.
pytestmark = pytest.mark.usefixtures("optimized")

SETTINGS = GenerationConfig(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
ROWS, LENGTH = 6, 16


def random_rows(seed):
    """Rows [N, L] that repeat themselves, so that n-grams and words come up again."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.arange(3, 12), (ROWS, LENGTH))
    rows[:, 0] = 2
    return rows


def compare(options, *, prompt_length, seed, damaged=False):
    """Both sides on the same rows and scores, at every length that a search would pass."""
    options = {"max_length": LENGTH, **options}
    settings = SETTINGS.resolve(options, prompt_length=prompt_length, max_positions=48)
    processors = make_processors(settings, VOCAB_SIZE, prompt_length)
    theirs = oracle_processors(default_twin().oracle, options, prompt_length=prompt_length)
    rows, step = random_rows(seed), jax.jit(process)
    states = start_processors(processors, ROWS, rows[:, :prompt_length], VOCAB_SIZE)
    for length in range(prompt_length, LENGTH):
        scores = random_scores(100 * seed + length, ROWS, damaged=damaged)
        expected = oracle_scores(theirs, rows[:, :length].astype(np.int64), scores)
        states, found = step(processors, states, rows.astype(np.int32), np.int32(length), scores)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=f"{options}, length {length}")


@pytest.mark.parametrize("name", NAMES)
def test_each_processor_is_the_oracles(name):
    for seed in range(4):
        draw = RandomOptions(random.Random(seed), [row[1:].tolist() for row in random_rows(seed)])
        compare({name: draw.draw(name)}, prompt_length=1 + 3 * (seed % 2), seed=seed)


@pytest.mark.parametrize("name", WARPERS)
def test_each_warper_is_the_oracles(name):
    others = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for seed in range(4):
        draw = RandomOptions(random.Random(seed), [[5, 6]])
        compare({"do_sample": True, **others, name: draw.draw(name)}, prompt_length=1, seed=seed)
    # Under beams at least two tokens stay.
    compare({"do_sample": True, **others, name: draw.draw(name), "num_beams": 2}, prompt_length=1, seed=5)


def test_lists_of_processors_are_the_oracles():
    rng = random.Random(3)
    for seed in range(25):
        draw = RandomOptions(rng, [row[1:].tolist() for row in random_rows(seed)])
        options = draw.combination(rng.sample(NAMES, rng.randint(3, 6)))
        if seed % 2:
            warpers = rng.sample(WARPERS, rng.randint(1, 3))
            options |= {"do_sample": True, "top_k": 0} | {name: draw.draw(name) for name in warpers}
        compare(options, prompt_length=rng.choice([1, 4]), seed=seed)


def test_damaged_scores_are_mended_as_the_oracle_does():
    for seed in range(3):
        compare({"remove_invalid_values": True}, prompt_length=1, seed=seed, damaged=True)
