"""Lines cut out of images of whole pages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from PIL import Image, ImageDraw

from trocr_jax.datasets.files import Files, open_image
from trocr_jax.processing.image import ImageError

Point = tuple[float, float]
# Parts of the distance between two baselines that the letters of a line are taken to rise above theirs, and to descend.
ASCENT, DESCENT = 0.75, 0.25
# Bytes of the decoded pages that are kept: some thirty scans of A4 at 300 dots an inch.
KEPT_BYTES = 1 << 30


class _Pages:
    """The decoded pages used last, of KEPT_BYTES together, or a larger one alone.

    While a thread decodes a page, others that ask for it wait, and get its error too; errors are not kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoding: dict[tuple[Files, str], Future[Image.Image]] = {}
        self._kept: dict[tuple[Files, str], Image.Image] = {}  # in the order of their last use
        self._num_bytes = 0

    def open(self, files: Files, name: str) -> Image.Image:
        key = files, name
        with self._lock:
            if key in self._kept:
                page = self._kept[key] = self._kept.pop(key)
                return page
            is_first = key not in self._decoding
            decoding = self._decoding.setdefault(key, Future())
        if is_first:
            try:
                page = open_image(files, name)
            except BaseException as error:  # interrupts too: nobody may wait for ever
                self._end(key, None)
                decoding.set_exception(error)
            else:
                self._end(key, page)
                decoding.set_result(page)
        return decoding.result()

    def _end(self, key: tuple[Files, str], page: Image.Image | None) -> None:
        with self._lock:
            del self._decoding[key]
            if page is not None:
                self._kept[key] = page
                self._num_bytes += _num_bytes(page)
            while self._num_bytes > KEPT_BYTES and len(self._kept) > 1:
                self._num_bytes -= _num_bytes(self._kept.pop(next(iter(self._kept))))


def _num_bytes(page: Image.Image) -> int:
    return 4 * page.width * page.height  # Pillow's RGB has a byte to spare in each pixel


_pages = _Pages()


def page_image(files: Files, name: str) -> Image.Image:
    """A page, which callers share and must not change; those used last are kept. Raises ImageError."""
    return _pages.open(files, name)


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
