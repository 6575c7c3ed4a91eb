"""Reads lines with known texts, whatever of them can be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from trocr_jax.datasets.example import Example
from trocr_jax.processing.image import ImageError
from trocr_jax.recognizer import TrOCR
from trocr_jax.results import Recognition

READ_AHEAD = 7  # batches: images of like width share one


def read_examples(
    ocr: TrOCR, examples: Iterable[Example], **options: Any
) -> tuple[list[tuple[Example, Recognition]], list[tuple[Example, ImageError]]]:
    """(lines with what was read, lines whose images cannot be read and why), both in order.

    A line that the search found no text for was read, as an empty text. `options` are those of `TrOCR.stream`. Raises
    ValueError where not one image can be read.
    """
    opened: list[Example] = []
    unreadable: list[tuple[Example, ImageError]] = []

    def images() -> Iterator[Image.Image]:
        for example in examples:
            try:
                image = example.open()
            except ImageError as error:
                unreadable.append((example, error))
                continue
            opened.append(example)
            yield image

    lines = list(ocr.stream(images(), read_ahead=READ_AHEAD, **options))
    if not lines:
        raise ValueError(f"none of {len(unreadable)} images could be read, the first because {unreadable[0][1]}")
    return list(zip(opened, lines, strict=True)), unreadable
