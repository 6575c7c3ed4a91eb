"""The whole of generation against transformers' generate: ids identical, scores at 1e-4."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest

from tests.decoding.test_options import BASIC
from tests.twins import default_twin, make_reader, oracle_generate, switched
from trocr_jax.decoding.generate import bucket, generate, length_bucket, run
from trocr_jax.generation_config import DEFAULT_MAX_NEW_TOKENS, GenerationConfig
from trocr_jax.modeling.model import apply

SETTINGS = GenerationConfig(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
READERS = {
    "learned": {},
    "sinusoidal": {"positions": "sinusoidal", "scale_embedding": True, "tied": False, "activation": "relu"},
    "deit": {"encoder": "deit", "cross": "bridge", "tied": False, "layernorm_embedding": False},
}
# Some of each whose texts end at many steps; most random twins' do.
SEEDS = {"learned": (0, 1), "sinusoidal": (0, 1), "deit": (1, 2, 4, 5)}
# No_repeat_ngram and the like alone and together; test_options tries them one by one.
OTHER_OPTIONS = [{}, *BASIC[:-1], {"max_new_tokens": 3}, {"max_new_tokens": 1}, BASIC[-1]]
BEAMS = [
    {"num_beams": num_beams, "length_penalty": penalty, "early_stopping": early, "num_return_sequences": returned}
    for num_beams in (2, 4, 5, 10)
    for penalty in (0.0, 0.6, 1.0, 2.0, -1.0)
    for early in (False, True, "never")
    for returned in (1, 2)
]


@functools.cache
def reader(name, seed=0):
    """A twin and its prepared model, made once."""
    twin = make_reader(switched(**READERS[name]), seed)
    return twin, *twin.prepared()


def check(name, options, *, seed=0, batch=8, pixels_seed=0, **inputs):
    """Compares one call on both sides; returns the number of new tokens of each row."""
    twin, model, params = reader(name, seed)
    pixels = twin.pixels(batch, pixels_seed)
    options = {"max_length": 28, **options} if "max_new_tokens" not in options else options
    sequences, scores = oracle_generate(twin.oracle, pixels, **options, **inputs)
    found = generate(
        model, params, SETTINGS, pixel_values=pixels, options=options, decoder_input_ids=inputs.get("decoder_input_ids")
    )
    np.testing.assert_array_equal(found.sequences, sequences, err_msg=f"{name} {seed} {options}")
    if scores is None:
        assert found.sequences_scores is None
    else:
        # Scores grow with the length under a negative penalty, and their rounding with them.
        np.testing.assert_allclose(found.sequences_scores, scores, rtol=1e-4, atol=1e-4, err_msg=str(options))
    return found.num_tokens


def test_ids_equal_over_a_sample_of_beam_settings():
    lengths = [check("learned", options) for options in random.Random(0).sample(BEAMS, 30)]
    counts = np.unique(np.concatenate(lengths))
    assert len(counts) >= 10, f"rows end at {counts} only"


@pytest.mark.parametrize("name", ["sinusoidal", "deit"])
def test_ids_equal_for_other_architectures(name):
    check(name, {})
    check(name, {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6})


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [2, 4, 5, 10])
@pytest.mark.parametrize("name", READERS)
def test_ids_equal_over_all_beam_settings(name, num_beams):
    lengths = [
        check(name, options, seed=seed, batch=12, pixels_seed=seed)
        for options in BEAMS
        if options["num_beams"] == num_beams
        for seed in SEEDS[name]
    ]
    assert sum(map(len, lengths)) >= 500
    assert len(np.unique(np.concatenate(lengths))) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ids_equal_with_random_combinations_of_options(name):
    rng = random.Random(1)
    for _ in range(60):
        options = {"num_beams": rng.choice([1, 2, 3, 4]), "length_penalty": rng.choice([0.5, 1.0, 1.5])}
        options |= {"early_stopping": rng.choice([False, True, "never"])}
        for other in rng.sample(OTHER_OPTIONS, 2):
            options |= other
        if "max_new_tokens" in options and options.get("min_new_tokens", 0) > options["max_new_tokens"]:
            continue
        check(name, options, batch=6, pixels_seed=rng.randrange(100))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
def test_ids_equal_behind_a_prompt(name, num_beams):
    prompt = np.random.default_rng(5).integers(3, 41, (5, 4))  # the start token is put in front
    check(name, {"num_beams": num_beams, "repetition_penalty": 1.3}, batch=5, decoder_input_ids=torch_tensor(prompt))
    prompt[:, 0] = 2
    check(name, {"num_beams": num_beams}, batch=5, decoder_input_ids=torch_tensor(prompt))


def torch_tensor(array):
    """The array as transformers takes it; ours takes it too."""
    import torch

    return torch.from_numpy(array)


def test_several_end_tokens_equal_the_oracle():
    twin, model, params = reader("learned")
    pixels = twin.pixels(6)
    for options in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}):
        options = {**options, "eos_token_id": [2, 7, 19], "max_length": 24}
        sequences, _ = oracle_generate(twin.oracle, pixels, **options)
        found = generate(model, params, SETTINGS, pixel_values=pixels, options=options)
        np.testing.assert_array_equal(found.sequences, sequences)


def test_token_log_probs_are_the_models_own():
    twin, model, params = reader("learned")
    pixels = twin.pixels(5)
    for options in ({}, {"repetition_penalty": 1.5}, {"num_beams": 4, "no_repeat_ngram_size": 2}):
        found = generate(model, params, SETTINGS, pixel_values=pixels, options={"max_length": 20, **options})
        ids = np.where(found.sequences < 0, 1, found.sequences)
        logits = np.asarray(apply(model, params, pixels, ids[:, :-1]), np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(log_probs, ids[:, 1:, None], axis=2)[..., 0]
        is_token = np.arange(picked.shape[1]) < found.num_tokens[:, None]
        np.testing.assert_allclose(found.token_log_probs, np.where(is_token, picked, 0), atol=1e-4)


def test_sequence_score_is_the_penalised_sum():
    _, model, params = reader("learned")
    pixels = reader("learned")[0].pixels(5)
    options = {"num_beams": 4, "length_penalty": 0.6, "max_length": 20}
    found = generate(model, params, SETTINGS, pixel_values=pixels, options=options)
    expected = found.token_log_probs.sum(1) / found.num_tokens**0.6
    np.testing.assert_allclose(found.sequences_scores, expected, rtol=1e-5)


def test_encoder_states_give_what_pixels_give():
    twin, model, params = reader("deit")
    pixels = twin.pixels(3)
    states = np.asarray(apply(model, params, pixels, method="encode").last_hidden_state)
    options = {"num_beams": 2, "max_length": 16}
    expected = generate(model, params, SETTINGS, pixel_values=pixels, options=options)
    found = generate(model, params, SETTINGS, encoder_hidden_states=states, options=options)
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    # Tokens behind the mask do not matter.
    padded = np.concatenate([states, np.full_like(states[:, :2], 9.0)], axis=1)
    mask = np.concatenate([np.ones(states.shape[:2]), np.zeros((3, 2))], axis=1)
    masked = generate(
        model, params, SETTINGS, encoder_hidden_states=padded, encoder_attention_mask=mask, options=options
    )
    np.testing.assert_array_equal(masked.sequences, expected.sequences)


def test_float64_searches_too(x64):
    twin, _, _ = reader("learned")
    model, params = twin.prepared("float64")
    pixels = twin.pixels(4, dtype="float64")
    for options in ({"max_length": 20}, {"max_length": 20, "num_beams": 3, "no_repeat_ngram_size": 2}):
        found = generate(model, params, SETTINGS, pixel_values=pixels, options=options)
        assert found.token_log_probs.dtype == np.float64
        sequences, _ = oracle_generate(twin.oracle, pixels.astype("float32"), **options)
        np.testing.assert_array_equal(found.sequences, sequences)


def test_changing_a_penalty_or_length_does_not_recompile():
    _, model, params = reader("learned")
    pixels = reader("learned")[0].pixels(4)

    def programs(options):
        before = run._cache_size()
        generate(model, params, SETTINGS, pixel_values=pixels, options=options)
        return run._cache_size() - before

    base = {"num_beams": 3, "max_length": 17, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_length": 2}
    assert programs(base) == 1
    changes = (
        {"length_penalty": 0.3},
        {"early_stopping": True},
        {"early_stopping": "never"},
        {"max_length": 32},
        {"max_length": 20},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_length": 9},
        {"num_return_sequences": 3},
        {"decoder_start_token_id": 0},
        {"eos_token_id": 5},
    )
    assert [programs({**base, **change}) for change in changes] == [0] * len(changes)


def test_a_folder_of_any_size_compiles_a_handful_of_programs():
    assert len({bucket(size) for size in range(1, 65)}) == 12
    assert all(size <= bucket(size) < 1.5 * size or size == bucket(size) for size in range(1, 257))
    assert len({length_bucket(length) for length in range(2, 1026)}) <= 13
    assert all(length_bucket(length) >= length for length in range(2, 1026))


def test_default_length_fits_a_line_and_the_table():
    twin, model, params = reader("learned")
    found = generate(model, params, SETTINGS.replace(eos_token_id=None), pixel_values=twin.pixels(1))
    # No text ends, so that the length is the limit: this twin's table of 48 positions serves 49 tokens.
    assert found.sequences.shape == (1, 49)
    assert found.is_truncated.all()
    assert SETTINGS.resolve({}, prompt_length=1, max_positions=512).max_length == 1 + DEFAULT_MAX_NEW_TOKENS


BAD_CALLS = [
    ({"options": {"max_new_tokens": 49}}, "position table ends at 49"),
    ({"options": {"max_length": 50}}, "max_new_tokens=48"),
    ({"options": {"num_beam": 4}}, r"unknown generation options \['num_beam'\]; is 'num_beams' meant\?"),
    ({"options": {"temperature": 0.5}}, "do_sample=True"),
    ({"options": {"do_sample": True, "temperature": 0.0}}, "temperature is 0.0"),
    ({"options": {"do_sample": True, "top_p": 1.5}}, "top_p is 1.5"),
    ({"options": {"guidance_scale": 2.0}}, "not supported"),
    ({"options": {"bad_words_ids": [[2]]}}, "never bad words"),
    ({"options": {"bad_words_ids": [5]}}, "bad_words_ids is"),
    ({"options": {"sequence_bias": {(5, 41): 1.0}}}, "0 to 40"),
    ({"options": {"forced_bos_token_id": 5, "suppress_tokens": [5]}}, "nothing is left"),
    ({"options": {"exponential_decay_length_penalty": (1, 0.0)}}, "exponential_decay_length_penalty is"),
    ({"options": {"preset": "unilm"}}, "preset is 'unilm'"),
    ({"key": 3}, "do_sample=True"),
    ({"options": {"do_sample": True}, "key": "x"}, "key is 'x'"),
    ({"options": {"do_sample": True}, "image_numbers": [0, 1]}, "image_numbers"),
    ({"options": {"num_beams": 0}}, "num_beams is 0"),
    ({"options": {"num_beams": 2, "num_return_sequences": 3}}, "exceeds num_beams"),
    ({"options": {"early_stopping": "maybe"}}, "early_stopping"),
    ({"options": {"suppress_tokens": [41]}}, "0 to 40"),
    ({"options": {"repetition_penalty": 0.0}}, "above 0"),
    ({"options": {"max_length": 3}, "decoder_input_ids": [[5, 6]]}, "leaves no room"),
    ({"decoder_input_ids": [[2, 41]]}, "0 to 40"),
    ({"decoder_input_ids": [[2], [2]]}, "decoder_input_ids have shape"),
    ({"pixel_values": np.zeros((1, 3, 24, 41))}, r"\[1, 3, 24, 41\]"),
    ({"pixel_values": np.zeros((0, 3, 24, 40))}, "B at least 1"),
    ({"pixel_values": None}, "either pixel_values or"),
    ({"pixel_values": None, "encoder_hidden_states": np.zeros((1, 4, 7))}, "encoder_hidden_states have shape"),
    ({"encoder_hidden_states": np.zeros((1, 16, 24))}, "either pixel_values or"),
    ({"encoder_attention_mask": np.ones((1, 16))}, "goes with encoder_hidden_states"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS, ids=lambda value: None if isinstance(value, dict) else value)
def test_bad_calls_are_refused_before_tracing(change, message):
    twin, model, params = reader("learned")
    before = run._cache_size()
    with pytest.raises(ValueError, match=message):
        generate(model, params, SETTINGS, **{"pixel_values": twin.pixels(1), **change})
    assert run._cache_size() == before


def test_start_token_falls_back_to_bos_and_is_asked_for():
    twin = default_twin()
    model, params = twin.prepared()
    options = {"max_new_tokens": 2}
    settings = GenerationConfig(bos_token_id=0, pad_token_id=1, eos_token_id=2)
    found = generate(model, params, settings, pixel_values=twin.pixels(1), options=options)
    assert found.sequences[0, 0] == 0
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        generate(model, params, GenerationConfig(), pixel_values=twin.pixels(1), options=options)
