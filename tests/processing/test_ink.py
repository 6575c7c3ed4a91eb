"""Ink is what was written, whatever the paper, and not what is printed around it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from trocr_jax.processing.ink import find_ink

# Two words as bars, in an image of 40x200.
BARS = np.zeros((40, 200), bool)
for x in (20, 30, 40, 90, 100, 120):
    BARS[12:30, x : x + 4] = True


def image(levels):
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")


def written(paper, ink, bars=BARS):
    return np.where(bars, ink, paper).astype(float) + np.zeros(bars.shape)


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (250, 200), (100, 130)])
def test_either_polarity_and_any_contrast(paper, ink):
    np.testing.assert_array_equal(find_ink(image(written(paper, ink))), BARS)


def test_paper_may_darken_along_the_line():
    shade = np.linspace(250, 90, 200)[None]
    np.testing.assert_array_equal(find_ink(image(written(shade, shade - 60))), BARS)


def test_noise_is_not_ink():
    noise = np.random.default_rng(0).normal(0, 8, BARS.shape)
    found = find_ink(image(written(200, 60) + noise))
    assert (found != BARS).mean() < 0.001


def test_grey_edges_of_letters_count():
    font = ImageFont.load_default(30)
    picture = Image.new("L", (200, 50), 255)
    ImageDraw.Draw(picture).text((10, 5), "Total", font=font, fill=0)
    found = find_ink(picture.convert("RGB"))
    columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
    expected = np.add(font.getbbox("Total"), (10, 5, 10, 5))
    np.testing.assert_allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], expected, atol=1)


@pytest.mark.parametrize("row", [34, 37])
def test_a_line_that_the_text_stands_on_is_left_out(row):
    ruled = BARS.copy()
    ruled[row : row + 2] = True
    np.testing.assert_array_equal(find_ink(image(written(255, 0, ruled))), BARS)


def test_a_line_alone_stays():
    rule = np.zeros_like(BARS)
    rule[20:22, 10:190] = True
    np.testing.assert_array_equal(find_ink(image(written(255, 0, rule))), rule)


def test_pieces_of_neighbouring_lines_are_left_out():
    crowded = BARS.copy()
    crowded[:6, 15:170:7] = True
    crowded[36:, 25:190:5] = True
    np.testing.assert_array_equal(find_ink(image(written(255, 0, crowded))), BARS)


def test_dots_and_accents_stay():
    dotted = BARS.copy()
    dotted[6:9, 20:24] = True  # apart from the letter below it, but not at the border
    np.testing.assert_array_equal(find_ink(image(written(255, 0, dotted))), dotted)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5), (300, 40)])
def test_one_colour_has_no_ink(size):
    found = find_ink(Image.new("RGB", size, "#abcdef"))
    assert found.shape == size[::-1]
    assert not found.any()


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 3), (7, 40)])
def test_tiny_images_have_masks_of_their_size(size):
    levels = np.random.default_rng(1).integers(0, 256, size[::-1])
    assert find_ink(image(levels)).shape == size[::-1]
