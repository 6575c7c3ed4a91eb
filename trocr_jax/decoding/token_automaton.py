"""Automata over tokens: which token may come next, and how many are needed until the text may end.

They are built on the host, once, and are data to the compiled search: other automata of about the same size do not
recompile. Q states, E edges, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

# More than any text's tokens: from here no end can be reached.
NEVER = np.iinfo(np.int16).max
MAX_EDGES = 1 << 25


@dataclasses.dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton over token ids; a text is complete when an end token is read.

    State q's edges are those from `offsets[q]` to `offsets[q + 1]`, in the order of their tokens.
    """

    starts: np.ndarray  # [n] the states to start from, one for each of the automata that were joined
    offsets: np.ndarray  # [Q + 1]
    tokens: np.ndarray  # [E] int32
    targets: np.ndarray  # [E] int32
    to_go: np.ndarray  # [Q] the fewest tokens that complete a text, the end token included; 0 behind it

    @property
    def num_states(self) -> int:
        """Q."""
        return len(self.offsets) - 1

    def advance(self, state: int, tokens: Iterable[int]) -> int | None:
        """The state behind these tokens, None where one of them is not allowed."""
        for token in tokens:
            first, last = self.offsets[state], self.offsets[state + 1]
            edge = first + np.searchsorted(self.tokens[first:last], token)
            if edge == last or self.tokens[edge] != token:
                return None
            state = int(self.targets[edge])
        return state

    def shortest(self) -> int:
        """The fewest tokens of a text of the first automaton, the end token included; NEVER where there is none."""
        return int(self.to_go[self.starts[0]])


def make_automaton(edges: Sequence[tuple[np.ndarray, np.ndarray]], end_state: int) -> TokenAutomaton:
    """The automaton with these edges, (tokens, targets) of every state, that starts in state 0.

    A text is complete in `end_state`. Edges that lead to no complete text are left out.
    """
    counts = np.array([len(tokens) for tokens, _ in edges])
    order = [np.argsort(tokens, kind="stable") for tokens, _ in edges]
    tokens = np.concatenate([tokens[i] for (tokens, _), i in zip(edges, order, strict=True)])
    targets = np.concatenate([targets[i] for (_, targets), i in zip(edges, order, strict=True)])
    sources = np.repeat(np.arange(len(edges)), counts)
    to_go = _to_go(sources, targets, end_state, len(edges))
    is_kept = to_go[targets] < NEVER
    counts = np.bincount(sources[is_kept], minlength=len(edges))
    return TokenAutomaton(
        starts=np.zeros(1, np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        tokens=tokens[is_kept].astype(np.int32),
        targets=targets[is_kept].astype(np.int32),
        to_go=to_go,
    )


def _to_go(sources: np.ndarray, targets: np.ndarray, end_state: int, num_states: int) -> np.ndarray:
    """The fewest edges from each state to the end, NEVER where there is no way."""
    to_go = np.full(num_states, NEVER, np.int16)
    to_go[end_state] = 0
    for distance in range(1, NEVER):
        reached = sources[to_go[targets] == distance - 1]
        reached = reached[to_go[reached] == NEVER]
        if not len(reached):
            break
        to_go[reached] = distance
    return to_go


def free_automaton(vocab_size: int) -> TokenAutomaton:
    """One that allows everything: for the images of a batch that nothing constrains."""
    return TokenAutomaton(
        starts=np.zeros(1, np.int32),
        offsets=np.array([0, vocab_size]),
        tokens=np.arange(vocab_size, dtype=np.int32),
        targets=np.zeros(vocab_size, np.int32),
        to_go=np.zeros(1, np.int16),
    )


def join(automata: Sequence[TokenAutomaton]) -> TokenAutomaton:
    """Several side by side, with a start for each."""
    if len(automata) == 1:
        return automata[0]
    states = np.cumsum([0, *(automaton.num_states for automaton in automata)])
    edges = np.cumsum([0, *(len(automaton.tokens) for automaton in automata)])
    both = list(zip(automata, states[:-1], edges[:-1], strict=True))
    return TokenAutomaton(
        starts=np.concatenate([a.starts + first for a, first, _ in both]).astype(np.int32),
        offsets=np.concatenate([*(a.offsets[:-1] + first for a, _, first in both), edges[-1:]]),
        tokens=np.concatenate([a.tokens for a in automata]),
        targets=np.concatenate([a.targets + first for a, first, _ in both]).astype(np.int32),
        to_go=np.concatenate([a.to_go for a in automata]),
    )
