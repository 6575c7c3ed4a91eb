"""Drawing: the distribution of what is drawn, what it depends on, and that samples share one encoding."""

from __future__ import annotations

import collections
import functools

import jax
import numpy as np
import pytest
import scipy.stats
import torch

from tests.conftest import SAMPLES
from tests.decoding.processors import oracle_processors, oracle_scores
from tests.twins import config_dict, make_reader
from trocr_jax import TrOCR
from trocr_jax.decoding import beam, greedy
from trocr_jax.decoding.generate import generate
from trocr_jax.decoding.logits_processors import process, start_processors
from trocr_jax.decoding.processor_list import make_processors
from trocr_jax.decoding.sampling import Randomness
from trocr_jax.decoding.search import SearchOptions
from trocr_jax.generation_config import GenerationConfig

SETTINGS = GenerationConfig(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
DRAWS = 20_000


@functools.cache
def reader():
    twin = make_reader(config_dict(encoder={"num_hidden_layers": 1}, decoder={"decoder_layers": 1}))
    return twin, *twin.prepared()


def sample(pixels, **options):
    _, model, params = reader()
    inputs = {name: options.pop(name) for name in ("key", "image_numbers", "decoder_input_ids") if name in options}
    options = {"do_sample": True, "max_length": 16, **options}
    return generate(model, params, SETTINGS, pixel_values=pixels, options=options, **inputs)


def search_options(num_images):
    randomness = Randomness(jax.random.key(3), np.arange(num_images, dtype=np.int32))
    return SearchOptions(
        max_length=np.int32(9), end_tokens=np.array([2]), fill_token=np.int32(1), length_penalty=np.float32(1),
        early_stopping=np.int32(0), is_image=np.ones(num_images, bool), processors=(), randomness=randomness,
    )  # fmt: skip


def test_tokens_are_drawn_with_their_probabilities():
    rng = np.random.default_rng(0)
    scores = np.log(rng.dirichlet(np.full(12, 0.7))).astype(np.float32)
    scores[[3, 8]] = -np.inf
    rows = np.broadcast_to(scores, (DRAWS, 12))
    tokens = np.asarray(jax.jit(greedy.choose)(rows, np.int32(4), search_options(DRAWS))[0])
    wanted = np.exp(scores) / np.exp(scores).sum()
    drawn = np.bincount(tokens, minlength=12) / DRAWS
    assert drawn[3] == drawn[8] == 0
    # Pearson's statistic of 9 degrees of freedom: above 27.9 once in a thousand seeds.
    kept = wanted > 0
    assert DRAWS * np.sum((drawn[kept] - wanted[kept]) ** 2 / wanted[kept]) < 27.9
    # Another step draws anew.
    again = np.asarray(jax.jit(greedy.choose)(rows, np.int32(5), search_options(DRAWS))[0])
    assert 0.05 < np.mean(again == tokens) < 0.6


@pytest.mark.parametrize("num_beams", [1, 3])
def test_warped_distributions_are_the_oracles_on_a_twins_logits(num_beams):
    twin, _, _ = reader()
    ids = np.random.default_rng(0).integers(3, 41, (16, 3))
    with torch.inference_mode():
        logits = twin.oracle(torch.from_numpy(twin.pixels(16)), decoder_input_ids=torch.from_numpy(ids)).logits[:, -1]
    for options in (
        {},  # top_k is 50 unless it is set
        {"temperature": 0.6, "top_k": 9},
        {"temperature": 1.9, "top_k": 0, "top_p": 0.85},
        {"top_k": 30, "top_p": 0.5, "min_p": 0.1},
        {"typical_p": 0.7, "renormalize_logits": True},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    ):
        options = {"do_sample": True, "num_beams": num_beams, "max_length": 20, **options}
        expected = oracle_scores(oracle_processors(twin.oracle, options, prompt_length=3), ids, logits.numpy())
        settings = SETTINGS.resolve(options, prompt_length=3, max_positions=48)
        processors = make_processors(settings, 41, 3)
        states = start_processors(processors, 16, ids, 41)
        _, found = process(processors, states, ids, np.int32(3), logits.numpy())
        expected = torch.softmax(torch.from_numpy(expected), dim=-1).numpy()
        np.testing.assert_allclose(jax.nn.softmax(found, axis=-1), expected, atol=1e-6, err_msg=str(options))


def test_texts_are_drawn_with_the_oracles_probabilities():
    twin, _, _ = reader()
    pixels = twin.pixels(3)[2:]
    options = {"do_sample": True, "temperature": 1.6, "top_k": 4, "max_new_tokens": 2, "repetition_penalty": 1.2}
    warpers = oracle_processors(twin.oracle, options)

    def distribution(text):
        ids = np.array([text])
        with torch.inference_mode():
            logits = twin.oracle(torch.from_numpy(pixels), decoder_input_ids=torch.from_numpy(ids)).logits[:, -1]
            scores = torch.from_numpy(oracle_scores(warpers, ids, logits.numpy())).double()
        return [(token, p) for token, p in enumerate(torch.softmax(scores, -1)[0].tolist()) if p > 0]

    probabilities = {}
    for token, p in distribution([2]):
        for following, q in distribution([2, token]) if token != 2 else [(1, 1.0)]:
            probabilities[2, token, following] = p * q
    rows = sample(np.repeat(pixels, 16, axis=0), **options, num_return_sequences=256, max_length=None).sequences
    drawn = collections.Counter(map(tuple, rows.tolist()))
    assert drawn.keys() <= probabilities.keys()
    counts = [drawn[text] for text in probabilities]
    assert len(counts) > 8
    assert scipy.stats.chisquare(counts, len(rows) * np.array(list(probabilities.values()))).pvalue > 1e-3


def test_sampled_beams_find_texts_as_often_as_the_oracles():
    twin, _, _ = reader()
    pixels = np.repeat(twin.pixels(2)[1:], 2048, axis=0)
    options = {"do_sample": True, "num_beams": 2, "max_new_tokens": 3, "top_k": 3, "temperature": 1.5}
    torch.manual_seed(0)
    with torch.inference_mode():
        theirs = [twin.oracle.generate(torch.from_numpy(pixels), **options).tolist() for _ in range(2)]
    ours = [sample(pixels, key=key, max_length=None, **options).sequences.tolist() for key in range(2)]
    theirs, ours = (collections.Counter(tuple(row) for part in parts for row in part) for parts in (theirs, ours))
    texts = sorted(text for text in theirs | ours if theirs[text] + ours[text] >= 10)
    assert len(texts) > 6
    table = [[counts[text] for text in texts] for counts in (theirs, ours)]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_beams_are_drawn_without_replacement():
    # Two beams and four tokens: the first draw is a softmax over all eight, the second one over what is left.
    scores = np.log(np.array([[0.3, 0.2, 0.1, 0.05], [0.15, 0.1, 0.06, 0.04]], np.float32))
    probs = np.exp(scores).ravel() / np.exp(scores).sum()
    draw = jax.jit(beam.continuations, static_argnums=1)
    found, parents, tokens = draw(np.broadcast_to(scores, (DRAWS, 2, 4)), 4, np.int32(2), search_options(DRAWS))
    flat = np.asarray(parents) * 4 + np.asarray(tokens)
    assert all(len(set(row)) == 4 for row in flat[:500].tolist())
    np.testing.assert_array_equal(found, scores.ravel()[flat])  # at their own scores, without the noise
    first = np.bincount(flat[:, 0], minlength=8) / DRAWS
    np.testing.assert_allclose(first, probs, atol=0.012)
    second = np.bincount(flat[flat[:, 0] == 0, 1], minlength=8) / np.sum(flat[:, 0] == 0)
    np.testing.assert_allclose(second[1:], probs[1:] / probs[1:].sum(), atol=0.02)


def test_a_draw_depends_on_the_key_and_the_images_number_alone():
    pixels = reader()[0].pixels(6)
    found = sample(pixels, key=1)
    assert found.sequences.tolist() == sample(pixels, key=jax.random.key(1)).sequences.tolist()
    assert found.sequences.tolist() != sample(pixels, key=2).sequences.tolist()
    assert sample(pixels, key=0).sequences.tolist() == sample(pixels).sequences.tolist()
    order = [4, 0, 5]
    part = sample(pixels[order], key=1, image_numbers=order)
    for row, i in enumerate(order):
        count = found.num_tokens[i]
        assert part.num_tokens[row] == count
        assert part.sequences[row, : 1 + count].tolist() == found.sequences[i, : 1 + count].tolist()


def test_several_samples_of_an_image_differ_and_more_change_none():
    pixels = reader()[0].pixels(3)
    few, many = sample(pixels, num_return_sequences=2), sample(pixels, num_return_sequences=5)
    assert few.sequences.shape[0] == 6
    assert many.sequences.shape[0] == 15
    for image in range(3):
        texts = [tuple(row) for row in many.sequences[5 * image : 5 * image + 5].tolist()]
        assert len(set(texts)) > 1
        for i in range(2):
            count = few.num_tokens[2 * image + i]
            ours = few.sequences[2 * image + i, : 1 + count].tolist()
            assert ours == many.sequences[5 * image + i, : 1 + count].tolist()


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"min_p": 1.0}], ids=str)
def test_without_a_choice_sampling_is_greedy(options):
    twin, model, params = reader()
    pixels = twin.pixels(6)
    plain = generate(model, params, SETTINGS, pixel_values=pixels, options={"max_length": 16})
    found = sample(pixels, **options)
    np.testing.assert_array_equal(found.sequences, plain.sequences)
    # The model's own log-probabilities, whatever the warpers did.
    np.testing.assert_allclose(found.token_log_probs, plain.token_log_probs, atol=1e-6)


def test_log_probs_under_sampling_are_the_models_own():
    pixels = reader()[0].pixels(4)
    found = sample(pixels, temperature=1.7, top_k=9, output_logits=True)
    own = np.asarray(jax.nn.log_softmax(found.logits, axis=-1))
    for row, count in enumerate(found.num_tokens):
        ids = found.sequences[row, 1 : 1 + count]
        np.testing.assert_allclose(found.token_log_probs[row, :count], own[row, np.arange(count), ids], atol=1e-5)


def test_beams_can_be_sampled_with_warpers():
    pixels = reader()[0].pixels(4)
    found = sample(pixels, num_beams=3, num_return_sequences=2, temperature=0.8, top_k=8, key=5)
    assert found.sequences.shape[0] == 8
    assert found.sequences.tolist() == sample(
        pixels, num_beams=3, num_return_sequences=2, temperature=0.8, top_k=8, key=5
    ).sequences.tolist()  # fmt: skip
    assert np.all(np.diff(found.sequences_scores.reshape(4, 2), axis=1) <= 0)
    other = sample(pixels, num_beams=3, num_return_sequences=2, temperature=0.8, top_k=8, key=6)
    assert found.sequences.tolist() != other.sequences.tolist()


def test_samples_continue_a_prompt():
    pixels = reader()[0].pixels(3)
    prompt = np.array([[2, 5, 7], [2, 9, 9], [2, 30, 4]])
    found = sample(pixels, decoder_input_ids=prompt, num_return_sequences=2, temperature=2.0)
    np.testing.assert_array_equal(found.sequences[:, :3], np.repeat(prompt, 2, axis=0))
    greedily = sample(pixels, decoder_input_ids=prompt, num_return_sequences=2, top_k=1)
    _, model, params = reader()
    options = {"max_length": 16}
    plain = generate(model, params, SETTINGS, pixel_values=pixels, options=options, decoder_input_ids=prompt)
    np.testing.assert_array_equal(greedily.sequences, np.repeat(plain.sequences, 2, axis=0))


def test_a_recognisers_samples_do_not_depend_on_its_batches(tmp_path):
    ocr = TrOCR.from_pretrained()
    images = [SAMPLES / "date.png", tmp_path / "missing.png", SAMPLES / "price.png", SAMPLES / "number.png"]
    options = {"do_sample": True, "temperature": 3.0, "key": 5}
    texts = [line.text for line in ocr(images, batch_size=1, **options)]
    for size in (2, 4):
        assert [line.text for line in ocr(images, batch_size=size, **options)] == texts
    # Nor on whether other images are read in another process.
    found = ocr.stream(images[2:], batch_size=1, image_numbers=range(2, 4), **options)
    assert [line.text for line in found] == texts[2:]
    assert [line.text for line in ocr(images, **{**options, "key": 6})] != texts
    with pytest.raises(ValueError, match="do_sample=True"):
        ocr(images, key=5)
