"""What a text may be: from some characters only, one of a list, or as a pattern says; or all of these at once."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator

from trocr_jax.constraints.automaton import MAX_STATES, ByteAutomaton, TooLargeError, intersection
from trocr_jax.constraints.compile import from_bytes, from_texts
from trocr_jax.constraints.pattern import compile_characters, compile_pattern
from trocr_jax.constraints.vocabulary import Vocabulary
from trocr_jax.decoding.token_automaton import MAX_EDGES, NEVER, TokenAutomaton
from trocr_jax.processing.tokenizer import TrOCRTokenizer


class Constraint:
    """What a text may be. `a & b` is both at once.

    Texts are compared as they are returned, character by character; but where a model's tokenizer puts a space in front
    of every text, that one does not count.
    """

    def __and__(self, other: Constraint) -> Constraint:
        if not isinstance(other, Constraint):
            raise ValueError(f"{other!r} is no constraint; make one with AllowedCharacters, Lexicon or Pattern")
        return Both(self, other)

    def parts(self) -> Iterator[Constraint]:
        """The constraints that all have to hold, none of them a Both."""
        yield self


@dataclasses.dataclass(frozen=True)
class AllowedCharacters(Constraint):
    """Texts of these characters only; the empty text is one."""

    characters: str

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str) or not self.characters:
            raise ValueError(f"characters are {self.characters!r}; pass a string such as '0123456789'")
        _check_unicode([self.characters])


@dataclasses.dataclass(frozen=True)
class Pattern(Constraint):
    r"""Texts that match a regular expression as a whole, as Python's `re.fullmatch` has it.

    Raises ValueError for what is no regular language: backreferences, lookaround, atomic groups, \b. Note that \d and
    \w are Unicode's; `[0-9]`, or `(?a)` in front, mean ASCII.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ValueError(f"pattern is {self.pattern!r}; pass a string such as r'[0-9]+'")
        compile_pattern(self.pattern)


@dataclasses.dataclass(frozen=True, init=False)
class Lexicon(Constraint):
    """One of these texts, spelt as the model's tokenizer spells it.

    A text is a whole line: a lexicon of words reads lines of one word.
    """

    texts: frozenset[str]

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise ValueError(f"texts is the string {texts!r}; pass a list of strings")
        found = frozenset(texts)
        if not found or not all(isinstance(text, str) for text in found):
            raise ValueError("a lexicon needs at least one text, and strings only")
        _check_unicode(found)
        object.__setattr__(self, "texts", found)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Lexicon:
        """The lines of a UTF-8 file, empty ones left out. Raises ValueError or OSError for a file that has none."""
        try:
            # Only \n ends a line: a text may hold one of the rarer separators of str.splitlines.
            lines = pathlib.Path(path).read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} does not exist") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
        texts = [line.rstrip("\r") for line in lines if line.rstrip("\r")]
        if not texts:
            raise ValueError(f"{path} holds no texts; write one a line")
        return cls(texts)

    def __repr__(self) -> str:
        return f"Lexicon of {len(self.texts)} texts"


@dataclasses.dataclass(frozen=True)
class Both(Constraint):
    """Texts that two constraints allow."""

    first: Constraint
    second: Constraint

    def __repr__(self) -> str:
        return f"{self.first} & {self.second}"

    def parts(self) -> Iterator[Constraint]:
        yield from self.first.parts()
        yield from self.second.parts()


def _check_unicode(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{text!r} holds half of a character ({error.reason}); pass whole ones") from error


@functools.lru_cache(maxsize=64)
def compile_constraint(
    constraint: Constraint, tokenizer: TrOCRTokenizer, vocab_size: int, end_tokens: tuple[int, ...], start_token: int
) -> TokenAutomaton:
    """The constraint as an automaton over a model's tokens; the last 64 are kept.

    A model that starts with the tokenizer's token for the beginning was trained to write that token itself first: it
    may. Raises ValueError where no text satisfies it, or the tokens cannot spell one, or nothing ends a text.
    """
    if not any(end < vocab_size for end in end_tokens):
        raise ValueError("a constraint needs a token that ends a text; pass eos_token_id as well")
    vocabulary = _vocabulary(tokenizer, vocab_size, end_tokens, start_token == tokenizer.bos_token_id)
    parts = list(constraint.parts())
    lexica = [part.texts for part in parts if isinstance(part, Lexicon)]
    languages = [_language(part) for part in parts if not isinstance(part, Lexicon)]
    if lexica:
        common = frozenset.intersection(*lexica)
        texts = sorted(text for text in common if all(language.accepts(text.encode()) for language in languages))
        automaton = from_texts(texts, tokenizer, vocabulary) if texts else None
    else:
        try:
            automaton = from_bytes(functools.reduce(intersection, languages), vocabulary)
        except TooLargeError:
            raise ValueError(
                f"{constraint} is too large (over {MAX_STATES} states, or {MAX_EDGES} ways between them); use smaller "
                "repetition counts, or * and +"
            ) from None
    if automaton is None or automaton.shortest() == NEVER:
        raise ValueError(f"no text satisfies {constraint} with this model's tokens")
    return automaton


@functools.lru_cache(maxsize=8)
def _vocabulary(tokenizer: TrOCRTokenizer, vocab_size: int, end_tokens: tuple[int, ...], may_begin: bool) -> Vocabulary:
    return Vocabulary.of(tokenizer, vocab_size, end_tokens, tokenizer.bos_token_id if may_begin else None)


def _language(part: Constraint) -> ByteAutomaton:
    if isinstance(part, AllowedCharacters):
        return compile_characters(part.characters)
    assert isinstance(part, Pattern)
    return compile_pattern(part.pattern)
