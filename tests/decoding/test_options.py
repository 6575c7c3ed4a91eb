"""Every option that changes scores, alone and combined, in whole searches: ids identical to transformers'."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch

from tests.decoding.processors import NAMES, RandomOptions
from tests.twins import config_dict, make_reader, oracle_generate
from trocr_jax.decoding.generate import generate, run
from trocr_jax.generation_config import GenerationConfig

SETTINGS = GenerationConfig(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
# Repetition, lengths and forbidden tokens, alone and together.
BASIC = [
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    {"min_length": 7},
    {"min_new_tokens": 5},
    {"suppress_tokens": [5, 7, 11]},
    {"suppress_tokens": [2]},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 6, "suppress_tokens": [4, 9], "repetition_penalty": 1.1},
]
ALONE = [
    {"sequence_bias": {(7,): -4.0, (5, 6): 3.0}},
    {"sequence_bias": [[[11], 2.0], [[3, 9, 4], -10.0]]},
    {"bad_words_ids": [[5], [8], [2]]},
    {"forced_bos_token_id": 0},
    {"forced_bos_token_id": 2},
    {"forced_eos_token_id": 2},
    {"forced_eos_token_id": [9]},
    {"exponential_decay_length_penalty": (3, 1.3)},
    {"exponential_decay_length_penalty": [0, 0.8]},
    {"begin_suppress_tokens": [2, 5, 9]},
    {"remove_invalid_values": True},
    {"renormalize_logits": True},
    *BASIC,
]


@functools.cache
def reader(seed=0):
    """A twin of one layer, quick to compile, its model and the texts that greedy search reads."""
    twin = make_reader(config_dict(encoder={"num_hidden_layers": 1}, decoder={"decoder_layers": 1}), seed)
    model, params = twin.prepared()
    found = generate(model, params, SETTINGS, pixel_values=twin.pixels(8), options={"max_length": 24})
    texts = [row[1 : 1 + count].tolist() for row, count in zip(found.sequences, found.num_tokens, strict=True)]
    assert len({len(text) for text in texts}) >= 4
    return twin, model, params, texts


def check(options, *, seed=0, pixels_seed=0, prompt=None, batch=8):
    """Compares one call on both sides, row by row; returns ours."""
    twin, model, params, _ = reader(seed)
    pixels = twin.pixels(batch, pixels_seed)
    given = {} if prompt is None else {"decoder_input_ids": prompt}
    theirs = {} if prompt is None else {"decoder_input_ids": torch.from_numpy(prompt)}
    expected, scores = oracle_generate(twin.oracle, pixels, **options, **theirs)
    found = generate(model, params, SETTINGS, pixel_values=pixels, options=options, **given)
    start = found.sequences.shape[1] - found.token_log_probs.shape[1]
    for row, count in enumerate(found.num_tokens):
        if count == 0:
            continue  # fewer texts than were asked for: the reference fills up with what is left of beams
        message = f"{options}, seeds {seed} {pixels_seed}, row {row}"
        ours = found.sequences[row, : start + count]
        assert ours.tolist() == expected[row, : start + count].tolist(), message
        assert np.all(expected[row, start + count :] == 1), message
        if scores is not None and np.isfinite(scores[row]):
            np.testing.assert_allclose(found.sequences_scores[row], scores[row], rtol=1e-4, atol=1e-4, err_msg=message)
    assert np.mean(found.num_tokens > 0) > 0.9
    return found


def make_prompt(batch, seed=3):
    """Four random tokens, the start token in front."""
    prompt = np.random.default_rng(seed).integers(3, 41, (batch, 4))
    prompt[:, 0] = 2
    return prompt


# Quickly, each alone with beams, and several greedily: each set of options is a program of its own.
@pytest.mark.parametrize("num_beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_ids_equal_with_each_option(num_beams):
    _, _, _, texts = reader()
    words = [text[i : i + 2] for text in texts for i in range(0, len(text) - 2, 2)]
    several = [{"bad_words_ids": words[:7]}, {"sequence_bias": [[word, -5.0] for word in words[:8]]}]
    plain = check({"num_beams": num_beams, "max_length": 24})
    changed = 0
    for options in ALONE + several:
        found = check({"num_beams": num_beams, "max_length": 24, **options})
        changed += found.sequences.tolist() != plain.sequences.tolist()
    for length in (1, 3):
        check({"num_beams": num_beams, "max_new_tokens": length})
    # All but renormalising and removing what is not there, which alone change nothing.
    assert changed >= len(ALONE + several) - 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_options_that_count_tokens_count_the_prompt(num_beams):
    prompt = make_prompt(5)
    # Words that reach back into the prompt.
    words = [[*row[2:].tolist(), token] for row in prompt for token in range(3, 41, 2)]
    for free, begin in ((0, [2, 5, 9]), (4, list(range(3, 30)))):
        options = {"forced_bos_token_id": 7, "begin_suppress_tokens": begin, "bad_words_ids": words}
        options |= {"exponential_decay_length_penalty": (free, 1.4), "num_beams": num_beams, "max_length": 24}
        check(options, prompt=prompt, batch=5)
        # The start token is put in front.
        check(options, prompt=prompt[:, 1:], batch=5)


def sets_of_options(count):
    """Sets of two to five options such that each takes part in several; each set is one program."""
    rng = random.Random(7)
    names: list[str] = []
    sets = []
    for i in range(count):
        wanted = 2 + i % 4
        chosen: set[str] = set()
        while len(chosen) < wanted:
            names = names or rng.sample(NAMES, len(NAMES))
            chosen.add(names.pop())
        sets.append(sorted(chosen))
    return sets


def check_combinations(count, num_sets, num_beams):
    """Random values for each set of options in turn, every third behind a prompt; how many changed a text."""
    rng = random.Random(num_beams)
    sets, changed = sets_of_options(num_sets), 0
    for i in range(count):
        seed, pixels_seed = rng.randrange(2), rng.randrange(50)
        draw = RandomOptions(rng, [text for text in reader(seed)[3] if len(text) > 3])
        options = draw.combination(sets[i % num_sets]) | {"max_length": rng.randint(17, 24)}
        if num_beams > 1:
            if isinstance(options.get("forced_eos_token_id"), list):
                # Several forced tokens tie, and torch does not say which of equals its topk puts first.
                options["forced_eos_token_id"] = 2
            options |= {"num_beams": num_beams, "num_return_sequences": rng.randint(1, 2)}
            options |= {"length_penalty": rng.choice([0.5, 1.0, 2.0]), "early_stopping": rng.choice([False, True])}
        prompt = make_prompt(4, rng.randrange(50)) if i % num_sets % 3 == 2 else None
        found = check(options, seed=seed, pixels_seed=pixels_seed, prompt=prompt, batch=4)
        plain = {name: value for name, value in options.items() if name not in NAMES}
        twin, model, params, _ = reader(seed)
        without = generate(
            model, params, SETTINGS, pixel_values=twin.pixels(4, pixels_seed), options=plain, decoder_input_ids=prompt
        )
        changed += found.sequences.tolist() != without.sequences.tolist()
    return changed


def test_ids_equal_with_combinations_of_options():
    assert check_combinations(20, 5, num_beams=1) >= 16


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
def test_ids_equal_with_many_combinations_of_options(num_beams):
    assert check_combinations(150, 15, num_beams) >= 120


def test_damaged_logits_are_mended_as_in_the_reference():
    content = config_dict(encoder={"num_hidden_layers": 1}, decoder={"decoder_layers": 1, "tie_word_embeddings": False})
    twin = make_reader(content, 0)
    with torch.no_grad():
        head = twin.oracle.decoder.output_projection.weight
        head[7], head[9], head[12] = torch.nan, torch.inf, -torch.inf
    params = {**twin.params, "decoder": {**twin.params["decoder"]}}
    params["decoder"]["output_projection"] = {"kernel": head.detach().numpy().T}
    twin.params = params
    model, prepared = twin.prepared()
    options = {"max_length": 20, "remove_invalid_values": True}
    expected, _ = oracle_generate(twin.oracle, twin.pixels(6), **options)
    found = generate(model, prepared, SETTINGS, pixel_values=twin.pixels(6), options=options)
    np.testing.assert_array_equal(found.sequences, expected)
    assert len(np.unique(found.sequences)) > 2


@pytest.mark.parametrize("num_beams", [1, 2])
def test_changing_the_values_of_options_does_not_recompile(num_beams):
    twin, model, params, _ = reader()
    pixels = twin.pixels(4)

    def programs(options):
        before = run._cache_size()
        generate(model, params, SETTINGS, pixel_values=pixels, options={"num_beams": num_beams, **options})
        return run._cache_size() - before

    base = {
        "max_length": 17,
        "bad_words_ids": [[5]],
        "sequence_bias": {(4, 5): -1.0},
        "forced_bos_token_id": 4,
        "forced_eos_token_id": 2,
        "exponential_decay_length_penalty": (4, 1.1),
        "begin_suppress_tokens": [5],
        "suppress_tokens": [38],
    }
    changes = (
        {"bad_words_ids": [[5, 6, 7, 8, 9], *([token] for token in range(3, 30))]},
        {"bad_words_ids": [[token, token + 1] for token in range(3, 11)]},
        {"sequence_bias": [[[9], 2.0], [[3, 4, 5], -1.0]]},
        {"forced_bos_token_id": 6},
        {"forced_eos_token_id": [2, 3, 4]},
        {"exponential_decay_length_penalty": (0, 0.5)},
        {"begin_suppress_tokens": [5, 6, 7]},
        {"suppress_tokens": [3, 9]},
        {"max_length": 30},
    )
    assert programs(base) == 1
    assert [programs({**base, **change}) for change in changes] == [0] * len(changes)
    warpers = {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5}
    others = {"temperature": 0.7, "top_k": 33, "top_p": 0.8, "min_p": 0.2, "typical_p": 0.9}
    assert programs(warpers) == 1
    assert [programs({**warpers, name: value}) for name, value in others.items()] == [0] * len(others)
