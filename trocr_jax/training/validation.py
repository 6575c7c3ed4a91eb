"""How well a model reads while it is being trained: as it will be used, by generation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from trocr_jax.datasets.example import Example
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.evaluation.reading import read_examples
from trocr_jax.recognizer import TrOCR


def validate(ocr: TrOCR, examples: Sequence[Example], *, num_beams: int = 1) -> float:
    """CER of all examples whose images can be read; a warning tells of others.

    Raises ValueError where there is not one.
    """
    lines, unreadable = read_examples(ocr, examples, num_beams=num_beams)
    if unreadable:
        told = f"validation without {len(unreadable)} lines, the first of which: {unreadable[0][1]}"
        warnings.warn(told, stacklevel=2)
    return character_error_rate([line.text for _, line in lines], [example.text for example, _ in lines])
