"""How well a model reads while it is being trained: as it will be used, by generation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from PIL import Image

from trocr_jax.datasets.example import Example
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.processing.image import ImageError
from trocr_jax.recognizer import TrOCR


def validate(ocr: TrOCR, examples: Sequence[Example], *, batch_size: int | None = None, num_beams: int = 1) -> float:
    """CER of all examples whose images can be read; a warning tells of others.

    Raises ImageError where there is not one.
    """
    references: list[str] = []
    unread: list[ImageError] = []

    def images() -> Iterator[Image.Image]:
        for example in examples:
            try:
                image = example.open()
            except ImageError as error:
                unread.append(error)
                continue
            references.append(example.text)
            yield image

    texts = [line.text for line in ocr.stream(images(), batch_size=batch_size, read_ahead=7, num_beams=num_beams)]
    if not texts:
        raise unread[0]
    if unread:
        warnings.warn(f"validation without {len(unread)} lines, the first of which: {unread[0]}", stacklevel=2)
    return character_error_rate(texts, references)
