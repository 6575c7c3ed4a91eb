"""An image's text does not depend on the images that it is read with, in float32."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import worn_lines
from trocr_jax import TrOCR

pytestmark = pytest.mark.usefixtures("optimized")

COMPOSITIONS = 20
SIZES = range(1, 33)
# Three of the ten buckets: each is a program of its own, and compiling them would take most of a quick test.
FEW_SIZES = (1, 7, 8, *range(25, 33))


def compositions(num_lines, sizes, seed):
    """Ways of reading all lines in batches of random sizes and in random order: lists of arrays of numbers."""
    draw = np.random.default_rng(seed)
    for _ in range(COMPOSITIONS):
        order, batches = draw.permutation(num_lines), []
        while len(order):
            size = draw.choice([size for size in sizes if size <= len(order)])
            batches.append(order[:size])
            order = order[size:]
        yield batches


def answers(ocr, pixels, batches, num_beams):
    """(tokens, their log-probabilities) of every line, read in these batches."""
    found = {}
    for batch in batches:
        output = ocr.generate(pixels[batch], num_beams=num_beams, max_new_tokens=20)
        for row, number in enumerate(batch):
            count = output.num_tokens[row]
            ids = output.sequences[row, 1 : 1 + count]
            found[int(number)] = (tuple(ids.tolist()), output.token_log_probs[row, :count])
    return found


def check_invariance(num_lines, num_beams, sizes, seed):
    """How far log-probabilities differ between compositions, at most; ids must not."""
    ocr = TrOCR.from_pretrained(dtype="float32")
    images, texts = worn_lines(num_lines, seed)
    pixels = ocr.processor(images).pixel_values
    first, differing, largest = None, {}, 0.0
    for batches in compositions(num_lines, sizes, seed):
        found = answers(ocr, pixels, batches, num_beams)
        assert sorted(found) == list(range(num_lines))
        first = first or found
        for number, (ids, log_probs) in found.items():
            if ids != first[number][0]:
                # How near the two answers are tells a near tie from a mistake.
                differing[number] = (first[number], (ids, log_probs), sum(log_probs) - sum(first[number][1]))
            else:
                largest = max(largest, np.abs(log_probs - first[number][1]).max())
    assert not differing
    assert first is not None
    read = [ocr.processor.decode(first[i][0], skip_special_tokens=True) for i in range(num_lines)]
    # Lines that are read without a doubt, or without a trace of the text, would agree by themselves.
    assert 0.3 < np.mean([a == b for a, b in zip(read, texts, strict=True)]) < 0.8
    return largest


def test_batches_do_not_change_an_id():
    assert check_invariance(50, num_beams=4, sizes=FEW_SIZES, seed=17) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 4])
def test_batches_do_not_change_an_id_of_a_thousand_lines(num_beams):
    largest = check_invariance(1000, num_beams, SIZES, seed=18)
    print(f"log-probabilities of a token differ by at most {largest:.1e}")
    assert largest < 1e-4
