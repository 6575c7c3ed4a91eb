"""Blank means no ink at all; the faintest text is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import SAMPLES
from trocr_jax.processing.blank import is_blank


def ground(level, noise=0.0, size=(400, 48)):
    levels = np.full(size[::-1], float(level)) + np.random.default_rng(0).normal(size=size[::-1]) * noise
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")


def written(image, level, text="a faint line"):
    ImageDraw.Draw(image).text((20, 16), text, fill=(level,) * 3)
    return image


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_grounds_and_their_grain_are_blank(level, noise):
    assert is_blank(ground(level, noise))


def test_tiny_images_are_blank_or_not_like_others():
    assert is_blank(Image.new("RGB", (1, 1)))
    assert not is_blank(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("RGB"))


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (250, 195), (120, 170), (200, 150)])
def test_text_of_either_polarity_is_ink(paper, ink):
    assert not is_blank(written(ground(paper), ink))
    assert not is_blank(written(ground(paper, 1.0), ink))


def test_a_single_full_stop_is_ink():
    assert not is_blank(written(ground(240), 60, text="."))


def test_samples_are_ink():
    for path in SAMPLES.glob("*.png"):
        with Image.open(path) as image:
            assert not is_blank(image.convert("RGB"))
