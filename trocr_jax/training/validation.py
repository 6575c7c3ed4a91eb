"""How well a model reads while it is being trained: as it will be used, by generation."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from trocr_jax.datasets.example import Example
from trocr_jax.evaluation.metrics import character_edits
from trocr_jax.evaluation.reading import read_examples
from trocr_jax.recognizer import TrOCR
from trocr_jax.training.processes import Team


def validate(ocr: TrOCR, examples: Sequence[Example], *, num_beams: int = 1, team: Team | None = None) -> float:
    """CER of all examples whose images can be read; a warning tells of others.

    Of a team each process reads its part, and all get the same. Raises ValueError where not one can be read.
    """
    if team is None or team.size == 1:
        num_edits, num_characters = _edits(ocr, examples, num_beams)
    else:
        edits = np.zeros(2, int)
        if mine := examples[team.number :: team.size]:
            # Where none of these can be read, the others wait for this one's numbers all the same.
            with contextlib.suppress(ValueError):
                edits = _edits(ocr, mine, num_beams)
        num_edits, num_characters = team.total(edits)
    if not num_characters:
        raise ValueError("the validation lines that can be read hold no character")
    return float(num_edits / num_characters)


def tell_of_lines_in_both(train: Sequence[Example], validation: Sequence[Example]) -> Iterator[str]:
    """A line on validation lines that have a training line's name and text, if there are such."""
    trained = {(line.name, line.text) for line in train}
    if count := sum((line.name, line.text) in trained for line in validation):
        yield (
            f"{count} of the {len(validation)} validation lines are training lines as well: the CER will say little of "
            "lines that are new (trocr-jax data check TRAIN VAL also finds copies)"
        )


def _edits(ocr: TrOCR, examples: Sequence[Example], num_beams: int) -> np.ndarray:
    """(edits, characters) of all examples that can be read."""
    lines, unreadable = read_examples(ocr, examples, num_beams=num_beams)
    if unreadable:
        told = f"validation without {len(unreadable)} of {len(examples)} lines, the first of which: {unreadable[0][1]}"
        warnings.warn(told, stacklevel=3)
    return character_edits([line.text for _, line in lines], [example.text for example, _ in lines]).sum(axis=0)
