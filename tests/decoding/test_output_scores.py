"""output_scores and output_logits: every step's numbers are transformers', and say where each token came from."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.decoding.processors import oracle_processors, oracle_scores
from tests.twins import config_dict, make_reader
from trocr_jax.decoding.generate import generate
from trocr_jax.generation_config import GenerationConfig

SETTINGS = GenerationConfig(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
PENALTIES = {"repetition_penalty": 1.3, "suppress_tokens": [7]}


@functools.cache
def reader():
    twin = make_reader(config_dict(encoder={"num_hidden_layers": 1}, decoder={"decoder_layers": 1}))
    return twin, *twin.prepared()


def both(batch, **options):
    twin, model, params = reader()
    options = {"max_length": 20, "output_scores": True, "output_logits": True, **PENALTIES, **options}
    pixels = twin.pixels(batch, seed=2)
    with torch.inference_mode():
        theirs = twin.oracle.generate(torch.from_numpy(pixels), return_dict_in_generate=True, **options)
    return generate(model, params, SETTINGS, pixel_values=pixels, options=options), theirs


def test_greedy_steps_are_the_oracles():
    ours, theirs = both(5)
    assert ours.scores.shape == (5, ours.sequences.shape[1] - 1, 41)
    assert ours.beam_indices is None
    for name in ("scores", "logits"):
        expected = np.stack([step.numpy() for step in getattr(theirs, name)], axis=1)
        found = getattr(ours, name)
        for row, count in enumerate(ours.num_tokens):  # behind its end a row is of no interest
            np.testing.assert_allclose(found[row, :count], expected[row, :count], rtol=1e-4, atol=1e-4)
    assert np.isneginf(ours.scores[..., 7]).all()
    assert np.isfinite(ours.logits).all()


@pytest.mark.parametrize("returned", [1, 3])
def test_beam_steps_and_indices_are_the_oracles(returned):
    ours, theirs = both(3, num_beams=3, num_return_sequences=returned)
    width = ours.token_log_probs.shape[1]
    np.testing.assert_array_equal(ours.sequences, theirs.sequences.numpy())
    np.testing.assert_array_equal(ours.beam_indices, theirs.beam_indices.numpy()[:, :width])
    scores = np.stack([step.numpy() for step in theirs.scores], axis=1)
    assert ours.scores.shape[0] == 9
    for row, count in enumerate(ours.num_tokens):
        for t in range(count):
            beam = ours.beam_indices[row, t]
            np.testing.assert_allclose(ours.scores[beam, t], scores[beam, t], rtol=1e-4, atol=1e-4)
    # What compute_transition_scores does with them.
    expected = reader()[0].oracle.compute_transition_scores(
        theirs.sequences, theirs.scores, theirs.beam_indices, normalize_logits=False
    )
    for row, count in enumerate(ours.num_tokens):
        ids = ours.sequences[row, 1 : 1 + count]
        found = ours.scores[ours.beam_indices[row, :count], np.arange(count), ids]
        np.testing.assert_allclose(found, expected[row, :count].numpy(), rtol=1e-4, atol=1e-4)


def test_steps_of_samples_behind_a_prompt_are_what_was_drawn_from():
    twin, model, params = reader()
    pixels, prompt = twin.pixels(3), np.array([[2, 5, 7], [2, 9, 9], [2, 30, 4]])
    options = {"do_sample": True, "top_k": 4, "temperature": 1.5, "num_return_sequences": 2, "max_length": 12}
    found = generate(
        model,
        params,
        SETTINGS,
        pixel_values=pixels,
        options={**options, **PENALTIES, "output_scores": True, "output_logits": True},
        decoder_input_ids=prompt,
    )
    steps = found.token_log_probs.shape[1]
    assert found.scores.shape == found.logits.shape == (6, steps, 41)
    assert found.beam_indices is None
    theirs = oracle_processors(twin.oracle, {**options, **PENALTIES}, prompt_length=3)
    for t in range(steps):
        expected = oracle_scores(theirs, found.sequences[:, : 3 + t].astype(np.int64), found.logits[:, t])
        np.testing.assert_allclose(found.scores[:, t], expected, rtol=1e-5, atol=1e-5)
    for row, count in enumerate(found.num_tokens):
        assert np.isfinite(found.scores[row, np.arange(count), found.sequences[row, 3 : 3 + count]]).all()


def test_nothing_is_kept_unless_it_is_asked_for():
    twin, model, params = reader()
    found = generate(model, params, SETTINGS, pixel_values=twin.pixels(2), options={"max_length": 9})
    assert found.scores is found.logits is found.beam_indices is None
