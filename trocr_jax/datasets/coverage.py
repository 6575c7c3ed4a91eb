"""How far a tokenizer can spell texts: characters that it loses, and how many tokens it needs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from trocr_jax.datasets.example import Example
from trocr_jax.processing.tokenizer import TrOCRTokenizer

# Lines named for a character, and characters named in a sentence.
EXAMPLES, NAMED = 3, 12


@dataclasses.dataclass(frozen=True)
class Spelling:
    """A text's `num_tokens` without special ones, the characters `lost` in it, and whether its ids lead back to it."""

    num_tokens: int
    lost: str
    comes_back: bool


class Speller:
    """How a tokenizer spells texts; each character is asked about once. Any thread may call."""

    def __init__(self, tokenizer: TrOCRTokenizer) -> None:
        self.tokenizer = tokenizer
        self._is_spelled: dict[str, bool] = {" ": True}
        self._num_tokens: dict[str, int] = {" ": 1}

    def __call__(self, text: str) -> Spelling:
        """What the tokenizer makes of a text."""
        ids = self._ids(text)
        comes_back = self._leads_back(ids, text)
        lost = "" if comes_back else "".join(sorted({c for c in text if not self.can_spell(c)}))
        return Spelling(len(ids), lost, comes_back)

    def can_spell(self, character: str) -> bool:
        """Whether the character comes back from its ids."""
        if character not in self._is_spelled:
            # Between letters, since spaces at the ends of a text may go.
            ids = self._ids(f"a{character}a")
            self._is_spelled[character] = self._leads_back(ids, f"a{character}a")
        return self._is_spelled[character]

    def num_tokens(self, character: str) -> int:
        """How many tokens spell the character alone, a mark for the space before a text not counted."""
        if character not in self._num_tokens:
            tokens = self.tokenizer.convert_ids_to_tokens(self._ids(character))
            self._num_tokens[character] = len(tokens) - (len(tokens) > 1 and tokens[0] in ("▁", "Ġ"))
        return self._num_tokens[character]

    def _leads_back(self, ids: list[int], text: str) -> bool:
        # Byte-level tokenizers with `add_prefix_space` leave the space that they put in front.
        return self.tokenizer.decode(ids, skip_special_tokens=True) in (text, f" {text}")

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


@dataclasses.dataclass(frozen=True)
class Occurrences:
    """How often a character comes, in how many lines, and the names of the first of them."""

    count: int
    num_lines: int
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What a tokenizer makes of a set of lines.

    `lost` are characters that it cannot spell, the most frequent first; `several` those that it can, but in more than
    one token each, such as in the bytes of UTF-8.
    """

    num_lines: int
    num_characters: int
    num_tokens: int
    lost: Mapping[str, Occurrences]
    several: Mapping[str, Occurrences]

    @classmethod
    def of(cls, lines: Iterable[Example], tokenizer: TrOCRTokenizer) -> Coverage:
        """The coverage of lines' texts."""
        lines, speller = list(lines), Speller(tokenizer)
        found = find_characters((line.name, line.text) for line in lines)
        rows = tokenizer([line.text for line in lines], add_special_tokens=False).input_ids
        return cls(
            num_lines=len(lines),
            num_characters=sum(len(line.text) for line in lines),
            num_tokens=sum(map(len, rows)),
            lost={c: where for c, where in found.items() if not speller.can_spell(c)},
            several={c: where for c, where in found.items() if speller.can_spell(c) and speller.num_tokens(c) > 1},
        )

    @property
    def tokens_per_character(self) -> float:
        """The average, special tokens not counted; 0 where there is no text."""
        return self.num_tokens / max(self.num_characters, 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "tokens_per_character": round(self.tokens_per_character, 4)}

    def __str__(self) -> str:
        """A sentence, without a full stop."""
        told = f"{self.num_lines} lines, {self.tokens_per_character:.2f} tokens a character"
        told += f"; cannot be spelled: {tell_characters(self.lost)}" if self.lost else "; every character is spelled"
        return told + (f"; in several tokens each: {tell_characters(self.several)}" if self.several else "")


def find_characters(texts: Iterable[tuple[str, str]]) -> dict[str, Occurrences]:
    """Where each character comes in texts, given as (name, text); the most frequent first, then by code point."""
    counts: collections.Counter[str] = collections.Counter()
    num_lines: collections.Counter[str] = collections.Counter()
    first: dict[str, list[str]] = collections.defaultdict(list)
    for name, text in texts:
        counts.update(text)
        for character in set(text):
            num_lines[character] += 1
            if len(first[character]) < EXAMPLES:
                first[character].append(name)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    return {c: Occurrences(counts[c], num_lines[c], tuple(first[c])) for c in ordered}


def tell_characters(found: Mapping[str, Occurrences], most: int = NAMED) -> str:
    """Characters with their code points and how often they come."""
    told = [f"{c!r} U+{ord(c):04X} ({where.count})" for c, where in list(found.items())[:most]]
    return ", ".join(told) + (f" and {len(found) - most} more" if len(found) > most else "")
