"""Beam search over Markov chains, against plain Python and against paths known by hand."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.decoding.markov import beam_search, chain
from trocr_jax.decoding import beam, greedy
from trocr_jax.decoding.search import EARLY_STOPPING, NEG_INF, SearchOptions, own_slots

LENGTH = 16


@functools.partial(jax.jit, static_argnames=("num_beams",))
def search(tables, prompt, options, *, num_beams):
    """The compiled search over one chain an image: tables [B, position, last, next]; its cache counts the steps."""
    images = jnp.arange(tables.shape[0])

    def step(tokens, position, ancestors, cache):
        return tables[images[:, None], position, tokens], cache + 1

    vocab_size, dtype = tables.shape[-1], tables.dtype
    if num_beams == 1:
        state = greedy.start(step, prompt, jnp.int32(0), options, 1, LENGTH, vocab_size, dtype)
        end = lax.while_loop(
            lambda state: greedy.is_unfinished(state, options),
            lambda state: greedy.advance(step, state, options),
            state,
        )
        return greedy.finish(end, 1, prompt.shape[1], options), end.cache
    state = beam.start(step, prompt, jnp.int32(0), options, num_beams, LENGTH, vocab_size, dtype)
    end = lax.while_loop(
        lambda state: beam.is_unfinished(state, options),
        lambda state: beam.advance(step, state, options, prompt.shape[1]),
        state,
    )
    return beam.finish(end), end.cache


def options(batch, *, length_penalty=1.0, early_stopping=False, max_length=LENGTH, is_image=None):
    return SearchOptions(
        max_length=np.int32(max_length),
        end_tokens=np.array([2], np.int32),
        fill_token=np.int32(1),
        length_penalty=np.float32(length_penalty),
        early_stopping=np.int32(EARLY_STOPPING[early_stopping]),
        is_image=np.ones(batch, bool) if is_image is None else is_image,
        processors=(),
    )


@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_equals_plain_python_on_random_chains(num_beams, x64):
    batch, ends = 24, set()
    tables = np.stack([chain(7, 1.5, seed) for seed in range(batch)])
    prompt = np.full((batch, 1), 2, np.int32)
    for length_penalty, early_stopping in itertools.product((0.0, 0.6, 1.0, 2.0, -1.0), (False, True, "never")):
        settings = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        found, _ = search(tables, prompt, options(batch, **settings), num_beams=num_beams)
        for image in range(batch):
            expected = beam_search(tables[image], num_beams=num_beams, max_length=LENGTH, **settings)
            for rank, text in enumerate(expected):
                count = int(found.num_tokens[image, rank])
                assert found.sequences[image, rank, : 1 + count].tolist() == text.tokens, (settings, image, rank)
                assert np.all(found.sequences[image, rank, 1 + count :] == 1)
                np.testing.assert_allclose(found.scores[image, rank], text.score, rtol=1e-6)
                total = found.token_log_probs[image, rank].sum()
                np.testing.assert_allclose(total / count**length_penalty, text.score, rtol=1e-6)
                ends.add(len(text.tokens))
    assert len(ends) >= 8, "the chains end at too few different steps to test anything"


def test_finds_the_path_that_greedy_misses():
    #                        0.6 /-> 3 -- 0.4 --> end        0.24
    #   start (2) --------------|
    #                        0.4 \\-> 4 -- 1.0 --> end        0.40
    with np.errstate(divide="ignore"):
        table = np.full((64, 5, 5), 1e-9)
        table[0, 2, 3], table[0, 2, 4] = 0.6, 0.4
        table[1, 3, 2], table[1, 3, 3], table[1, 3, 4] = 0.4, 0.3, 0.3
        table[1, 4, 2] = 1.0
        tables = np.log(table)[None].astype(np.float32)
    prompt = np.full((1, 1), 2, np.int32)
    beams, _ = search(tables, prompt, options(1, length_penalty=0.0), num_beams=2)
    assert beams.sequences[0, 0, :4].tolist() == [2, 4, 2, 1]
    np.testing.assert_allclose(beams.scores[0, 0], np.log(0.4), rtol=1e-5)
    alone, _ = search(tables, prompt, options(1), num_beams=1)
    assert alone.sequences[0, 0, :3].tolist() == [2, 3, 2]
    np.testing.assert_allclose(alone.scores[0, 0], np.log(0.6 * 0.4), rtol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_stops_as_soon_as_every_image_is_decided(num_beams):
    tables = np.stack([chain(7, 0.5, seed) for seed in range(4)]).astype(np.float32)
    tables[:, 3:] = -20.0
    tables[:, 3:, :, 2] = 0.0  # everything ends behind three tokens
    prompt = np.full((4, 1), 2, np.int32)
    _, steps = search(tables, prompt, options(4), num_beams=num_beams)
    assert steps < 8


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_that_fill_the_batch_never_hold_it_up(num_beams):
    tables = np.stack([chain(7, 1.0, 0)] * 2).astype(np.float32)
    tables[1, :, :, 2] = -1e6  # the second row would never end
    prompt = np.full((2, 1), 2, np.int32)
    alone, steps = search(tables[:1], prompt[:1], options(1), num_beams=num_beams)
    both, steps_of_both = search(tables, prompt, options(2, is_image=np.array([True, False])), num_beams=num_beams)
    assert steps_of_both == steps < LENGTH - 1
    np.testing.assert_array_equal(both.sequences[0], alone.sequences[0])


def test_prompt_is_read_and_kept():
    tables = np.stack([chain(7, 1.0, 3)]).astype(np.float32)
    prompt = np.array([[2, 5, 4]], np.int32)
    found, _ = search(tables, prompt, options(1), num_beams=3)
    assert np.all(found.sequences[0, :, :3] == prompt)
    # The same as starting where the prompt ends.
    later, _ = search(tables[:, 2:], prompt[:, 2:], options(1, max_length=LENGTH - 2), num_beams=3)
    np.testing.assert_array_equal(found.sequences[0, :, 2:], later.sequences[0, :, : LENGTH - 2])


def test_top_continuations_are_those_of_the_whole_row():
    scores = np.random.default_rng(0).integers(0, 6, (5, 4, 11)).astype(np.float32)  # full of ties
    values, beams, tokens = beam.top_continuations(jnp.asarray(scores), 8)
    flat_values, flat = lax.top_k(scores.reshape(5, -1), 8)
    np.testing.assert_array_equal(values, flat_values)
    np.testing.assert_array_equal(beams * 11 + tokens, flat)


def test_top_continuations_of_a_vocabulary_smaller_than_the_candidates():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)))
    values, beams, tokens = beam.top_continuations(scores, 8)
    np.testing.assert_array_equal(values, lax.top_k(scores.reshape(2, -1), 8)[0])
    np.testing.assert_array_equal(scores[jnp.arange(2)[:, None], beams, tokens], values)


def test_inherit_takes_the_parents_past_only():
    ancestors = own_slots(1, 2, 3)
    found = beam.inherit(ancestors, jnp.array([[1, 1]]), jnp.int32(1))
    assert found.tolist() == [[[1, 1, 0], [1, 1, 1]]]


def test_impossible_scores_stay_finite():
    assert np.isfinite(np.float32(NEG_INF) * 3)
