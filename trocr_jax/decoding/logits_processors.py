"""What may change a step's scores: one small processor each, composed in the reference's order.

A processor is a pytree whose leaves are traced: changing a penalty does not recompile, only adding or removing a
processor does. Calls are pure: `(state, sequences, length, scores) -> (state, scores)`. The state, if there is any, has
one row a decoder row and is reordered with the beams.

N decoder rows (images x beams), L cache length, V vocabulary. Scores are logits under greedy search and
log-probabilities under beam search, as in the reference.
"""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trocr_jax.generation_config import GenerationConfig

Array = jax.Array
State = Any


class LogitsProcessor(Protocol):
    """What every processor offers; see the module's text."""

    def start(self, num_rows: int, prompt: Array, vocab_size: int) -> State:
        """The state before the first new token; prompt [N, P]."""
        ...

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sequences [N, L], filled up to `length`; scores [N, V] of the token that comes next."""
        ...


class _Stateless:
    def start(self, num_rows: int, prompt: Array, vocab_size: int) -> State:
        """No state."""
        return ()


@flax.struct.dataclass
class RepetitionPenalty:
    """Divides positive and multiplies negative scores of every token already in the row, the prompt's included.

    Its state marks those tokens, [N, V].
    """

    penalty: Any

    def start(self, num_rows: int, prompt: Array, vocab_size: int) -> State:
        """The prompt's tokens but its last, which the first call adds."""
        seen = jnp.zeros((num_rows, vocab_size), bool)
        return _mark(seen, prompt[:, :-1])

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Adds each row's last token to the state and applies the penalty."""
        seen = _mark(state, lax.dynamic_slice_in_dim(sequences, length - 1, 1, axis=1))
        penalty = self.penalty.astype(scores.dtype)
        penalised = jnp.where(scores < 0, scores * penalty, scores / penalty)
        return seen, jnp.where(seen, penalised, scores)


def _mark(seen: Array, tokens: Array) -> Array:
    return seen.at[jnp.arange(seen.shape[0])[:, None], tokens].set(True)


@flax.struct.dataclass
class NoRepeatNGram(_Stateless):
    """Forbids every token that would complete an n-gram the row already holds; n is `size`.

    In:  size 3, row [2, 5, 6, 7, 5, 6], length 6
    Out: token 7 is forbidden, since 5 6 7 is there and the row ends in 5 6
    """

    size: Any

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets the scores of forbidden tokens to -inf."""
        buffer = sequences.shape[1]
        starts = jnp.arange(buffer)

        def compare(offset: Array, is_match: Array) -> Array:
            # Token `offset` of the window at every start, against the same token of the row's last size - 1.
            window = jnp.roll(sequences, -offset, axis=1)
            suffix = lax.dynamic_slice_in_dim(sequences, length + 1 - self.size + offset, 1, axis=1)
            return is_match & (window == suffix)

        # A window has to end inside the row, and a row shorter than n holds none.
        is_match = jnp.broadcast_to((starts + self.size <= length)[None], sequences.shape)
        is_match = lax.fori_loop(0, self.size - 1, compare, is_match)
        last = jnp.roll(sequences, 1 - self.size, axis=1)
        vocab_size = scores.shape[1]
        rows = jnp.arange(sequences.shape[0])[:, None]
        # Windows that do not match go to a column behind the vocabulary.
        banned = jnp.zeros((scores.shape[0], vocab_size + 1), bool)
        banned = banned.at[rows, jnp.where(is_match, last, vocab_size)].set(True)[:, :vocab_size]
        return state, jnp.where(banned, -jnp.inf, scores)


@flax.struct.dataclass
class MinLength(_Stateless):
    """Forbids the end tokens while the row, prompt included, has fewer than `min_length` tokens."""

    min_length: Any
    is_end: Any  # [V]

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets the end tokens' scores to -inf in a row that is too short."""
        return state, jnp.where(self.is_end & (length < self.min_length), -jnp.inf, scores)


@flax.struct.dataclass
class SuppressTokens(_Stateless):
    """Forbids tokens throughout."""

    is_suppressed: Any  # [V]

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets the suppressed tokens' scores to -inf."""
        return state, jnp.where(self.is_suppressed, -jnp.inf, scores)


def make_processors(settings: GenerationConfig, vocab_size: int) -> tuple[LogitsProcessor, ...]:
    """The processors that resolved settings ask for, in the reference's order; neutral settings give none.

    Raises ValueError for a token outside the vocabulary.
    """
    processors: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(np.float32(settings.repetition_penalty)))
    if settings.no_repeat_ngram_size > 0:
        processors.append(NoRepeatNGram(np.int32(settings.no_repeat_ngram_size)))
    if settings.min_length > 0 and settings.eos_token_ids:
        is_end = _token_mask("eos_token_id", settings.eos_token_ids, vocab_size)
        processors.append(MinLength(np.int32(settings.min_length), is_end))
    if settings.suppress_tokens is not None:
        processors.append(SuppressTokens(_token_mask("suppress_tokens", settings.suppress_tokens, vocab_size)))
    return tuple(processors)


def _token_mask(name: str, tokens: tuple[int, ...], vocab_size: int) -> np.ndarray:
    outside = [token for token in tokens if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(f"{name} holds {outside}; this model's tokens are 0 to {vocab_size - 1}")
    mask = np.zeros(vocab_size, bool)
    mask[list(tokens)] = True
    return mask


def start_processors(
    processors: tuple[LogitsProcessor, ...], num_rows: int, prompt: Array, vocab_size: int
) -> tuple[State, ...]:
    """The states of all processors before the first new token; prompt [N, P]."""
    return tuple(processor.start(num_rows, prompt, vocab_size) for processor in processors)


def process(
    processors: tuple[LogitsProcessor, ...], states: tuple[State, ...], sequences: Array, length: Array, scores: Array
) -> tuple[tuple[State, ...], Array]:
    """All processors applied in order: (their new states, scores [N, V])."""
    new_states = []
    for processor, state in zip(processors, states, strict=True):
        state, scores = processor(state, sequences, length, scores)
        new_states.append(state)
    return tuple(new_states), scores
