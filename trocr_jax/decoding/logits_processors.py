"""What may change a step's scores: one small processor each; `processor_list.py` puts them in the reference's order.

A processor is a pytree whose leaves are traced: changing a penalty does not recompile, only adding or removing a
processor does. Calls are pure: `(state, sequences, length, scores) -> (state, scores)`. The state, if there is any, has
one row a decoder row and is reordered with the beams.

N decoder rows (images x beams or samples), L cache length, V vocabulary. Scores are logits where rows are searched one
by one (greedy search and sampling) and log-probabilities under beam search, as in the reference.
Source: transformers 5.23, generation/logits_process.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

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


class Stateless:
    """What processors share that look at the row alone."""

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
class NoRepeatNGram(Stateless):
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
class MinLength(Stateless):
    """Forbids the end tokens while the row, prompt included, has fewer than `min_length` tokens."""

    min_length: Any
    is_end: Any  # [V]

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets the end tokens' scores to -inf in a row that is too short."""
        return state, jnp.where(self.is_end & (length < self.min_length), -jnp.inf, scores)


@flax.struct.dataclass
class ForceTokens(Stateless):
    """Forces one of some tokens where the row, prompt included, has `length` tokens: the first new one, or the last.

    Their score becomes 0, whatever the model thought of them. Behind a prompt of several tokens the first new token is
    never forced, since the reference asks for a row of one token.
    """

    is_forced: Any  # [V]
    length: Any

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """At that length, forced tokens score 0 and all others -inf."""
        forced = jnp.where(self.is_forced, 0.0, -jnp.inf).astype(scores.dtype)
        return state, jnp.where(length == self.length, forced, scores)


@flax.struct.dataclass
class EndAtLimit(Stateless):
    """Leaves nothing but the end tokens for the last place, at their own scores.

    fairseq's rule, not transformers': source `TextRecognitionGenerator._generate` of microsoft/unilm.
    """

    is_end: Any  # [V]
    max_length: Any

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets all other scores to -inf in a row that is one token short of its limit."""
        is_open = self.is_end | (length < self.max_length - 1)
        return state, jnp.where(is_open, scores, -jnp.inf)


@flax.struct.dataclass
class RemoveInvalidValues(Stateless):
    """Replaces nan by 0 and infinities, -inf of forbidden tokens included, by the largest finite numbers."""

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Makes every score finite."""
        return state, jnp.nan_to_num(scores)


@flax.struct.dataclass
class ExponentialDecayLengthPenalty(Stateless):
    """Raises the end tokens' scores by |score| * (factor ** n - 1) in rows of n tokens more than `free_length`."""

    is_end: Any  # [V]
    free_length: Any  # tokens, the prompt included
    log_factor: Any

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Raises the end tokens' scores where they are finite."""
        excess = length - self.free_length
        # expm1, because factors lie close to 1 and float32 would lose the digits of the difference.
        growth = jnp.expm1(excess.astype(scores.dtype) * self.log_factor.astype(scores.dtype))
        is_raised = self.is_end & (excess > 0) & jnp.isfinite(scores)
        return state, jnp.where(is_raised, scores + jnp.abs(scores) * growth, scores)


@flax.struct.dataclass
class SuppressTokens(Stateless):
    """Forbids tokens throughout."""

    is_suppressed: Any  # [V]

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets the suppressed tokens' scores to -inf."""
        return state, jnp.where(self.is_suppressed, -jnp.inf, scores)


@flax.struct.dataclass
class SuppressTokensAtBegin(Stateless):
    """Forbids tokens where the row, prompt included, has `begin` tokens."""

    is_suppressed: Any  # [V]
    begin: Any

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Sets the suppressed tokens' scores to -inf at that length."""
        return state, jnp.where(self.is_suppressed & (length == self.begin), -jnp.inf, scores)


@flax.struct.dataclass
class Renormalize(Stateless):
    """Makes log-probabilities of the scores again; always the last."""

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Subtracts the logarithm of the sum; a row that is closed altogether stays so."""
        is_open = jnp.max(scores, axis=-1, keepdims=True) != -jnp.inf
        return state, jnp.where(is_open, jax.nn.log_softmax(scores, axis=-1), scores)


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
