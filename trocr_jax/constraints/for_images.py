"""Constraints of the images of a call: one for all, or one, or None, for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from trocr_jax.constraints.constraint import Constraint, compile_constraint
from trocr_jax.decoding.constrained import check_length
from trocr_jax.decoding.token_automaton import TokenAutomaton
from trocr_jax.processing.tokenizer import TrOCRTokenizer

Image = TypeVar("Image")
Constraints = Constraint | Sequence[Constraint | None] | None
Automata = TokenAutomaton | list[TokenAutomaton | None] | None


def compile_constraints(
    constraint: Constraints, tokenizer: TrOCRTokenizer, vocab_size: int, end_tokens: tuple[int, ...], start_token: int
) -> Automata:
    """The constraint, or each of a list, as an automaton over a model's tokens; errors as of `compile_constraint`."""

    def compiled(one: Any) -> TokenAutomaton | None:
        if one is not None and not isinstance(one, Constraint):
            raise ValueError(f"constraint is {one!r}; make one with AllowedCharacters, Lexicon or Pattern")
        return None if one is None else compile_constraint(one, tokenizer, vocab_size, end_tokens, start_token)

    return [compiled(one) for one in constraint] if isinstance(constraint, list | tuple) else compiled(constraint)


def check_constraints(automata: Automata, images: Any, max_length: int) -> None:
    """Raises ValueError for a constraint without a text of that length, or for another number than of the images.

    The length counts the start token. Images whose number is not known are not counted.
    """
    if isinstance(automata, TokenAutomaton):
        check_length(automata, (), max_length - 1)
    if not isinstance(automata, list):
        return
    if hasattr(images, "__len__") and len(images) != len(automata):
        raise ValueError(
            f"there are {len(automata)} constraints for {len(images)} images; pass one for all, or one for each"
        )
    for i, automaton in enumerate(automata):
        if automaton is not None:
            check_length(automaton, (), max_length - 1, f"image {i}: ")


def with_automata(images: Iterable[Image], automata: Automata) -> Iterator[tuple[Image, TokenAutomaton | None]]:
    """Each image with its own constraint, or with the one for all; ValueError where a list is too short."""
    if not isinstance(automata, list):
        yield from zip(images, itertools.repeat(automata))
        return
    left = iter(automata)
    for image in images:
        try:
            yield image, next(left)
        except StopIteration:
            raise ValueError(f"there are {len(automata)} constraints, but more images; pass one for each") from None
