"""Error rates of texts read, against the texts that stand there."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def character_error_rate(texts: Sequence[str], references: Sequence[str]) -> float:
    """Edits (insertions, deletions, substitutions) of all texts over the characters of all references: CER, micro.

    May exceed 1. Raises ValueError where the numbers of texts differ or the references hold no character.
    """
    characters = sum(map(len, references))
    if characters == 0:
        raise ValueError("the references hold no character: an error rate is undefined")
    return sum(Levenshtein.distance(a, b) for a, b in zip(texts, references, strict=True)) / characters
