"""The fairseq preset against the original generator's rules in plain Python, over random Markov chains."""

from __future__ import annotations

import numpy as np
import pytest

from tests.decoding.markov import chain, fairseq_search
from tests.decoding.test_beam import LENGTH, options, search
from trocr_jax import TrOCR
from trocr_jax.decoding.processor_list import make_processors
from trocr_jax.generation_config import GenerationConfig

VOCAB_SIZE = 23


def both(tables, num_beams):
    """(what our search finds with the preset, for each chain what the original generator collects)."""
    batch = len(tables)
    settings = GenerationConfig(decoder_start_token_id=2, pad_token_id=1, eos_token_id=2).resolve(
        {"preset": "fairseq", "num_beams": num_beams, "max_length": LENGTH}, prompt_length=1, max_positions=LENGTH
    )
    assert (settings.early_stopping, settings.length_penalty) == (True, 1.0)
    given = options(batch, early_stopping=True).replace(processors=make_processors(settings, VOCAB_SIZE, 1))
    found, _ = search(tables, np.full((batch, 1), 2, np.int32), given, num_beams=num_beams)
    return found, [fairseq_search(table, num_beams=num_beams, max_len=LENGTH - 2) for table in tables]


@pytest.mark.parametrize("num_beams", [2, 5, 10])
def test_texts_are_those_of_the_original_generator(num_beams, x64):
    # The second half's texts seldom end of themselves: the limit ends them, at the end token's own score.
    tables = np.stack([chain(VOCAB_SIZE, 1.5, seed) for seed in range(48)])
    tables[24:, :, :, 2] -= 9
    tables -= np.log(np.exp(tables).sum(-1, keepdims=True))
    found, originals = both(tables, num_beams)
    lengths, overfull = set(), 0
    for image, (texts, is_overfull) in enumerate(originals):
        # Where places are short in the last step, the lists may differ behind the first text.
        overfull += is_overfull
        for rank, text in enumerate(texts[:1] if is_overfull else texts):
            count = int(found.num_tokens[image, rank])
            assert found.sequences[image, rank, : 1 + count].tolist() == text.tokens, (image, rank)
            np.testing.assert_allclose(found.scores[image, rank], text.score, rtol=1e-6)
            lengths.add(count)
    assert len(lengths) >= 5
    assert LENGTH - 1 in lengths
    assert overfull < 24


def test_the_preset_is_an_option_of_every_call():
    ocr = TrOCR.from_pretrained()
    image = np.full((32, 200), 255, np.uint8)
    image[8:24, 20:180:9] = 0
    found = ocr(image, preset="fairseq", num_return_sequences=10)
    assert len(found.alternatives) == 9
    assert found.sequence_score == max(line.sequence_score for line in (found, *found.alternatives))
    with pytest.raises(ValueError, match="preset is 'unilm'; it must be 'fairseq'"):
        ocr(image, preset="unilm")
