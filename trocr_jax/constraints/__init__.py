"""Constraints: what a text may be."""

from trocr_jax.constraints.constraint import AllowedCharacters, Constraint, Lexicon, Pattern

__all__ = ["AllowedCharacters", "Constraint", "Lexicon", "Pattern"]
