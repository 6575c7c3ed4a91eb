"""Constraints inside the search: each row follows an automaton over tokens, and only its edges are open.

A token is open if the text can still be completed within the length that is left, so that a constrained text is never
cut. The automaton's edges lie in one list, in which a binary search finds a row's next state. Which tokens are open is
read in two ways: states with many edges have a row of their own over the whole vocabulary, those with few are written
into an empty one.

B images, N decoder rows, L cache length, Q states, E edges, M states with a row of their own, W edges of the others at
most, V vocabulary. Q, E, M and W are bucketed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trocr_jax.decoding.logits_processors import Array, State
from trocr_jax.decoding.shapes import bucket
from trocr_jax.decoding.token_automaton import NEVER, TokenAutomaton, free_automaton, join
from trocr_jax.generation_config import GenerationConfig

# Below the first, edges cost nothing that a row would not; behind the second, writing them costs more.
_LEAST_WINDOW, _MOST_WINDOW = 64, 2048
_FEW_ROWS = 256
# Small automata share one program.
_LEAST_STATES, _LEAST_EDGES, _LEAST_ROWS = 256, 4096, 8


@flax.struct.dataclass
class AutomatonTables:
    """An automaton as the search reads it."""

    first_edge: Any  # [Q]
    num_edges: Any  # [Q]; the last state has none, for rows that have left the automaton
    tokens: Any  # [E]
    targets: Any  # [E]
    to_go: Any  # [Q] int16 the fewest tokens until the end
    row: Any  # [Q] the place in `rows`, 0 for states whose edges are few
    rows: Any  # [M, V] int16 the fewest tokens until the end if this one comes next, NEVER if it may not
    window: int = flax.struct.field(pytree_node=False)  # W

    def next_state(self, states: Array, tokens: Array) -> Array:
        """The states [N] behind tokens [N]."""
        low = self.first_edge[states]
        high = end = low + self.num_edges[states]
        for _ in range(self.rows.shape[1].bit_length()):
            middle = (low + high) // 2
            is_below = (low < high) & (self.tokens[middle] < tokens)
            low, high = jnp.where(is_below, middle + 1, low), jnp.where(is_below, high, middle)
        is_edge = (low < end) & (self.tokens[low] == tokens)
        return jnp.where(is_edge, self.targets[low], self.first_edge.shape[0] - 1)

    def tokens_to_go(self, states: Array) -> Array:
        """[N, V] the fewest tokens until the end with each token next, itself included; states [N]."""
        needed = self.rows[self.row[states]]
        places = jnp.arange(self.window)
        is_edge = (places < self.num_edges[states][:, None]) & (self.row[states] == 0)[:, None]
        edges = jnp.where(is_edge, self.first_edge[states][:, None] + places, 0)  # [N, W]
        columns = jnp.where(is_edge, self.tokens[edges], needed.shape[1])  # behind the vocabulary: dropped
        values = 1 + self.to_go[self.targets[edges]]
        return needed.at[jnp.arange(len(states))[:, None], columns].set(values, mode="drop")


@flax.struct.dataclass
class Constrain:
    """Forbids every token that an image's automaton does not allow, or that leaves too little room to end.

    Its state is the automaton's, [N].
    """

    tables: AutomatonTables
    starts: Any  # [B] the state that each image starts from
    max_length: Any

    def start(self, num_rows: int, prompt: Array, vocab_size: int) -> State:
        """The state behind the prompt but its start token, and its last, which the first call adds."""
        states = jnp.repeat(self.starts, num_rows // self.starts.shape[0])  # [B] -> [N]
        return lax.fori_loop(
            1, prompt.shape[1] - 1, lambda i, states: self.tables.next_state(states, prompt[:, i]), states
        )

    def __call__(self, state: State, sequences: Array, length: Array, scores: Array) -> tuple[State, Array]:
        """Follows each row's last token and sets the scores of closed tokens to -inf."""
        last = lax.dynamic_slice_in_dim(sequences, length - 1, 1, axis=1)[:, 0]
        # The start token alone is no text.
        state = jnp.where(length > 1, self.tables.next_state(state, last), state)
        is_open = self.tables.tokens_to_go(state) <= self.max_length - length
        return state, jnp.where(is_open, scores, -jnp.inf)


def make_constrain(
    constraints: TokenAutomaton | Sequence[TokenAutomaton | None] | None,
    prompt: np.ndarray,
    batch: int,
    vocab_size: int,
    settings: GenerationConfig,
) -> Constrain | None:
    """The processor for a batch, None if nothing is constrained; prompt [rows, P], rows the bucketed batch.

    Raises ValueError for a constraint that no text of the allowed length satisfies.
    """
    if constraints is None or isinstance(constraints, TokenAutomaton):
        constraints = [constraints] * batch
    each = list(constraints)
    if len(each) != batch:
        raise ValueError(f"there are {len(each)} constraints for {batch} images; pass one for all, or one for each")
    if all(automaton is None for automaton in each):
        return None
    free = _free(vocab_size)
    automata = [automaton or free for automaton in each]
    room = (settings.max_length or 0) - prompt.shape[1]
    for i, automaton in enumerate(automata):
        given = prompt[i, 1:].tolist()
        check_length(automaton, given, room, f"image {i}: ")
        forced = settings.forced_bos_token_id
        if forced is not None and not given and automaton.advance(int(automaton.starts[0]), [forced]) is None:
            raise ValueError(f"image {i}: the constraint does not allow the text to begin with forced_bos_token_id")
    distinct = tuple(dict.fromkeys(automata))
    joined, tables = _prepared(distinct, vocab_size)
    starts = joined.starts[[distinct.index(automaton) for automaton in automata]]
    fill = np.full(len(prompt) - batch, starts[0])
    return Constrain(tables, np.concatenate([starts, fill]), np.int32(settings.max_length or 0))


def check_length(automaton: TokenAutomaton, given: Iterable[int], room: int, whose: str = "") -> None:
    """Raises ValueError unless some text that begins with the tokens given needs at most `room` more.

    Errors begin with `whose` constraint it is.
    """
    state = automaton.advance(int(automaton.starts[0]), given)
    if state is None:
        raise ValueError(f"{whose}the constraint allows no text that begins with its decoder_input_ids")
    needed = int(automaton.to_go[state])
    if needed > room:
        raise ValueError(
            f"{whose}the shortest text that the constraint allows has {needed} tokens, its end included, but "
            f"only {room} are allowed; raise max_new_tokens"
        )


@functools.lru_cache(maxsize=4)
def _free(vocab_size: int) -> TokenAutomaton:
    return free_automaton(vocab_size)


@functools.lru_cache(maxsize=4)
def _prepared(automata: tuple[TokenAutomaton, ...], vocab_size: int) -> tuple[TokenAutomaton, AutomatonTables]:
    """Automata joined, and their tables on the device; those of the last four batches are kept."""
    joined = join(automata)
    return joined, jax.device_put(make_tables(joined, vocab_size))


def make_tables(automaton: TokenAutomaton, vocab_size: int) -> AutomatonTables:
    """An automaton's tables, bucketed."""
    counts = np.diff(automaton.offsets)
    window = _LEAST_WINDOW
    while window < _MOST_WINDOW and np.sum(counts > window) > _FEW_ROWS:
        window *= 2
    wide = np.flatnonzero(counts > window)
    rows = np.full((bucket(max(_LEAST_ROWS, 1 + len(wide))), vocab_size), NEVER, np.int16)
    row = np.zeros(automaton.num_states, np.int32)
    for i, state in enumerate(wide, 1):
        edges = slice(automaton.offsets[state], automaton.offsets[state + 1])
        rows[i, automaton.tokens[edges]] = 1 + automaton.to_go[automaton.targets[edges]]
        row[state] = i
    num_states = bucket(max(_LEAST_STATES, automaton.num_states + 1))  # at least one behind them, without edges
    num_edges = bucket(max(_LEAST_EDGES, len(automaton.tokens)))
    return AutomatonTables(
        first_edge=_padded(automaton.offsets[:-1], num_states),
        num_edges=_padded(counts, num_states),
        tokens=_padded(automaton.tokens, num_edges),
        targets=_padded(automaton.targets, num_edges),
        to_go=_padded(automaton.to_go, num_states, np.int16),
        row=_padded(row, num_states),
        rows=rows,
        window=window,
    )


def _padded(values: np.ndarray, size: int, dtype: type = np.int32) -> np.ndarray:
    padded: np.ndarray = np.zeros(size, dtype)
    padded[: len(values)] = values
    return padded
