"""What each token adds to a text, as bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
from tokenizers import decoders

from trocr_jax.constraints.automaton import DEAD, ByteAutomaton
from trocr_jax.processing.spans import spelt_bytes
from trocr_jax.processing.tokenizer import TrOCRTokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Spellings:
    """The bytes of tokens, those that add nothing to a text left out."""

    tokens: np.ndarray  # [n] int32, in order
    lengths: np.ndarray  # [n]
    letters: np.ndarray  # [n, longest] uint8, 0 behind the end

    @classmethod
    def of(cls, spelt: dict[int, bytes]) -> Spellings:
        """Of each token's bytes."""
        tokens = np.array(sorted(spelt), np.int32)
        lengths = np.array([len(spelt[token]) for token in tokens], np.int64)
        letters = np.zeros((len(tokens), max(lengths, default=1)), np.uint8)
        for i, token in enumerate(tokens):
            letters[i, : lengths[i]] = np.frombuffer(spelt[int(token)], np.uint8)
        return cls(tokens, lengths, letters)

    def follow(self, automaton: ByteAutomaton, state: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, next states): those that an automaton over bytes can read in a state."""
        found = [self.tokens[self.lengths == 0]]
        reached = [np.full(len(found[0]), state)]
        rows = np.flatnonzero((self.lengths > 0) & (automaton.table[state, self.letters[:, 0]] != DEAD))
        states = np.full(len(rows), state)
        for place in range(self.letters.shape[1]):
            states = automaton.table[states, self.letters[rows, place]]
            is_done = self.lengths[rows] == place + 1
            is_end = is_done & (states != DEAD)
            found.append(self.tokens[rows[is_end]])
            reached.append(states[is_end])
            goes_on = ~is_done & (states != DEAD)
            rows, states = rows[goes_on], states[goes_on]
            if not len(rows):
                break
        return np.concatenate(found), np.concatenate(reached)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer's tokens as they are spelt at the beginning of a text and behind it.

    The two differ where tokenizers put a space in front of a text: it is not part of what a constraint looks at.
    """

    size: int  # the model's, which may be larger than the tokenizer's
    end_tokens: tuple[int, ...]
    begin_token: int | None  # may stand once before the text
    first: Spellings
    later: Spellings

    @classmethod
    def of(
        cls, tokenizer: TrOCRTokenizer, size: int, end_tokens: tuple[int, ...], begin_token: int | None = None
    ) -> Vocabulary:
        """The vocabulary of a tokenizer. Raises ValueError for one whose decoder is of an unknown kind."""
        backend = tokenizer.backend
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        numbers = range(min(size, len(tokenizer)))
        named = ((i, backend.id_to_token(i)) for i in numbers if i not in end_tokens)
        tokens = {i: token for i, token in named if token is not None and token not in special}
        if isinstance(backend.decoder, decoders.ByteLevel):
            later = {i: spelt_bytes(token) for i, token in tokens.items()}
            adds_space = backend.encode("a", add_special_tokens=False).tokens[:1] != ["a"]
            first = {i: spelling.removeprefix(b" ") if adds_space else spelling for i, spelling in later.items()}
        elif isinstance(backend.decoder, decoders.Metaspace):
            later = {i: token.replace("▁", " ").encode() for i, token in tokens.items()}
            first = {i: backend.decode([i]).encode() for i in tokens}  # without the space that it stands for
        else:
            raise ValueError(
                f"constraints need a byte-level or a SentencePiece tokenizer; this one decodes with {backend.decoder}"
            )
        return cls(
            size=size,
            end_tokens=tuple(end for end in end_tokens if end < size),
            begin_token=None if begin_token in end_tokens else begin_token,
            first=Spellings.of(first),
            later=Spellings.of({i: spelling for i, spelling in later.items() if spelling}),
        )
