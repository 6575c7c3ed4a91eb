"""Error rates against values worked out by hand."""

from __future__ import annotations

import pytest

from trocr_jax.evaluation.metrics import character_error_rate


def test_character_error_rate_is_over_all_characters():
    # One substitution, one deletion and two insertions over 4 + 5 + 1 characters: not the mean of the lines' rates.
    assert character_error_rate(["kitt", "hell", "abc"], ["mitt", "hello", "a"]) == pytest.approx(4 / 10)
    assert character_error_rate(["abc"], ["a"]) == 2
    with pytest.raises(ValueError, match="undefined"):
        character_error_rate(["a"], [""])
    with pytest.raises(ValueError):
        character_error_rate(["a"], ["a", "b"])
