"""Pictures of what was read: the image, with a box around each word and the word above it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from PIL import Image, ImageDraw, ImageFont

from trocr_jax.processing.image import load_rgb

# Of neighbouring words; legible on dark and on light paper.
COLOURS = ("#e03131", "#1c7ed6")
LABEL_SIZES = (10, 24)  # of letters above the boxes, in pixels, least and most


class Labelled(Protocol):
    """A word with its place in the image, as `trocr_jax.results.Word` is one."""

    @property
    def text(self) -> str: ...

    @property
    def box(self) -> tuple[float, float, float, float] | None: ...

    @property
    def char_boxes(self) -> Sequence[tuple[float, float, float, float]] | None: ...


def draw_words(image: Any, words: Iterable[Labelled]) -> Image.Image:
    """An upright RGB copy of the image (path, PIL image or array) with the words' boxes. Raises ImageError.

    It has a strip on top for the words, each above its box; one that would run into the next is left out. Characters'
    boxes, where there are any, take the place of their word's. Outlines run around the ink, not over it.
    """
    upright = load_rgb(image)
    shown = [word for word in words if word.box is not None]
    size = min(max(upright.height // 3, LABEL_SIZES[0]), LABEL_SIZES[1])
    font = ImageFont.load_default(size)
    strip = size + size // 2 if shown else 0
    thickness = max(1, upright.height // 100)
    canvas = Image.new("RGB", (upright.width, upright.height + strip), "white")
    canvas.paste(upright, (0, strip))
    draw = ImageDraw.Draw(canvas)
    for i, word in enumerate(shown):
        assert word.box is not None
        colour = COLOURS[i % 2]
        for x0, y0, x1, y1 in word.char_boxes or [word.box]:
            outer = [x0 - thickness, y0 + strip - thickness, x1 + thickness - 1, y1 + strip + thickness - 1]
            draw.rectangle(_within(outer, canvas.size), outline=colour, width=thickness)
        _label(draw, word, shown[i + 1 :], font, colour)
    return canvas


def _label(draw: ImageDraw.ImageDraw, word: Labelled, later: Sequence[Labelled], font: Any, colour: str) -> None:
    # Right-to-left words come later further left: only those on the right are in the way.
    assert word.box is not None
    left, gap = word.box[0], draw.textlength(" ", font)
    nexts = [other.box[0] - gap for other in later if other.box is not None and other.box[0] > left]
    if left + draw.textlength(word.text, font) <= min([*nexts, draw.im.size[0]]):
        draw.text((left, 0), word.text, font=font, fill=colour)


def _within(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    x0, y0, x1, y1 = box
    return [max(x0, 0), max(y0, 0), min(x1, size[0] - 1), min(y1, size[1] - 1)]
