"""Constraints of the images of a call: one for all, or one, or None, for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trocr_jax.constraints.constraint import Constraint, compile_constraint
from trocr_jax.decoding.constrained import check_length
from trocr_jax.decoding.token_automaton import TokenAutomaton
from trocr_jax.processing.tokenizer import TrOCRTokenizer

Constraints = Constraint | Sequence[Constraint | None] | None
Automata = TokenAutomaton | list[TokenAutomaton | None] | None


def compile_constraints(
    constraint: Constraints, tokenizer: TrOCRTokenizer, vocab_size: int, end_tokens: tuple[int, ...]
) -> Automata:
    """The constraint, or each of a list, as an automaton over a model's tokens; errors as of `compile_constraint`."""
    if not isinstance(constraint, list | tuple):
        return None if constraint is None else compile_constraint(constraint, tokenizer, vocab_size, end_tokens)
    given = tokenizer, vocab_size, end_tokens
    return [None if one is None else compile_constraint(one, *given) for one in constraint]


def check_constraints(automata: Automata, images: Any, max_length: int) -> None:
    """Raises ValueError for a constraint without a text of that length, or for another number than of the images.

    The length counts the start token. Images whose number is not known are not counted.
    """
    if not isinstance(automata, list):
        automata = [automata]
    elif hasattr(images, "__len__") and len(images) != len(automata):
        raise ValueError(
            f"there are {len(automata)} constraints for {len(images)} images; pass one for all, or one for each"
        )
    for i, automaton in enumerate(automata):
        if automaton is not None:
            check_length(automaton, (), max_length - 1, i)


def automata_of(automata: Automata, numbers: Sequence[int]) -> Automata:
    """Those of the images with these numbers, where each has its own; ValueError where a list is too short."""
    if not isinstance(automata, list):
        return automata
    if numbers[-1] >= len(automata):
        raise ValueError(f"there are {len(automata)} constraints, but more images; pass one for each")
    return [automata[number] for number in numbers]
