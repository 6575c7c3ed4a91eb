"""Lines cut out of images of whole pages."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from trocr_jax.datasets.files import Files, open_image
from trocr_jax.processing.image import ImageError

Point = tuple[float, float]
# Parts of the distance between two baselines that the letters of a line are taken to rise above theirs, and to descend.
ASCENT, DESCENT = 0.75, 0.25


@functools.lru_cache(maxsize=4)
def page_image(files: Files, name: str) -> Image.Image:
    """A page; the last few are kept, as a page's lines are mostly asked for together. Raises ImageError."""
    return open_image(files, name)


def crop_polygon(page: Image.Image, polygon: Sequence[Point], name: str) -> Image.Image:
    """The upright box around a polygon (x, y in pixels); what is in it of other lines gets the colour of the paper.

    The paper's is the median colour inside. Raises ImageError, naming the line, for a polygon outside the page.
    """
    xs, ys = zip(*polygon, strict=True)
    left, top = max(int(np.floor(min(xs))), 0), max(int(np.floor(min(ys))), 0)
    right, bottom = min(int(np.ceil(max(xs))) + 1, page.width), min(int(np.ceil(max(ys))) + 1, page.height)
    if left >= right or top >= bottom:
        raise ImageError(f"{name} lies outside its page of {page.width}x{page.height} pixels")
    crop = page.crop((left, top, right, bottom))
    mask = Image.new("1", crop.size)
    ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in polygon], fill=1, outline=1)
    inside = np.asarray(crop)[np.asarray(mask)]
    if not len(inside):
        raise ImageError(f"{name} has no pixel inside its polygon")
    paper = Image.new("RGB", crop.size, tuple(int(level) for level in np.median(inside, axis=0)))
    paper.paste(crop, mask=mask)
    return paper


def around_baseline(baseline: Sequence[Point], spacing: float) -> list[Point]:
    """The polygon of a line of which only the baseline is known, `spacing` being the distance to the next one."""
    above = [(x, y - ASCENT * spacing) for x, y in baseline]
    return above + [(x, y + DESCENT * spacing) for x, y in reversed(baseline)]
