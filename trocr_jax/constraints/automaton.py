"""Automata over bytes: built up as non-deterministic ones, used as minimal deterministic ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from trocr_jax.constraints.utf8 import ByteRanges, Ranges, byte_ranges

MAX_STATES = 20_000
# Of all states together, members of the sets that they stand for: bounds the time to find them.
_MAX_MEMBERS = 2_000_000
# Larger automata are used as they are, since to make them minimal takes long.
_MOST_TO_MINIMISE = 4_000
DEAD = -1


class TooLargeError(Exception):
    """More than MAX_STATES states."""


@dataclasses.dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over bytes; it starts in state 0."""

    table: np.ndarray  # [Q, 256] int32 the next state, DEAD where no text of the language goes on so
    is_accepting: np.ndarray  # [Q] bool

    def accepts(self, text: bytes) -> bool:
        """Whether a text is of the language."""
        state = 0
        for byte in text:
            state = self.table[state, byte]
            if state == DEAD:
                return False
        return bool(self.is_accepting[state])


class Nfa:
    """A non-deterministic automaton under construction; state 0 is there and is its start."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int, int]]] = [[]]  # (least byte, largest byte, next state) of each state
        self.empty: list[list[int]] = [[]]  # next states without reading anything
        self.num_empty = 0

    def add_state(self) -> int:
        """A new state. Raises TooLargeError."""
        if len(self.edges) >= 4 * MAX_STATES:
            raise TooLargeError
        self.edges.append([])
        self.empty.append([])
        return len(self.edges) - 1

    def add_empty(self, start: int, end: int) -> None:
        """A way from one state to another that reads nothing. Raises TooLargeError."""
        self.num_empty += 1
        if self.num_empty >= 8 * MAX_STATES:
            raise TooLargeError
        self.empty[start].append(end)

    def add_characters(self, start: int, ranges: Ranges, end: int) -> None:
        """A way that reads the UTF-8 bytes of one character of a set."""
        self._add_spellings(start, tuple(byte_ranges(ranges)), end, {})

    def _add_spellings(self, start: int, spellings: tuple[ByteRanges, ...], end: int, known: dict[object, int]) -> None:
        # Sequences of byte ranges that begin alike begin equal; what is left of them is one set again, and equal sets
        # share a state.
        by_first: dict[tuple[int, int], list[ByteRanges]] = {}
        for first, *rest in spellings:
            by_first.setdefault(first, []).append(tuple(rest))
        for (low, high), rests in by_first.items():
            if rests == [()]:
                self.edges[start].append((low, high, end))
                continue
            key = tuple(rests)
            if key not in known:
                known[key] = self.add_state()
                self._add_spellings(known[key], key, end, known)
            self.edges[start].append((low, high, known[key]))

    def determinised(self, end: int) -> ByteAutomaton:
        """The minimal deterministic automaton of the texts that lead to state `end`. Raises TooLargeError."""
        first = self._closure([0])
        numbers = {first: 0}
        rows: list[np.ndarray] = []
        subsets, members = [first], len(first)
        for subset in subsets:  # grows
            row = np.full(256, DEAD, np.int32)
            for low, high, targets in self._moves(subset):
                closure = self._closure(targets)
                if closure not in numbers:
                    members += len(closure)
                    if len(numbers) >= MAX_STATES or members > _MAX_MEMBERS:
                        raise TooLargeError
                    numbers[closure] = len(numbers)
                    subsets.append(closure)
                row[low : high + 1] = numbers[closure]
            rows.append(row)
        return _minimal(np.stack(rows), np.array([end in subset for subset in subsets]))

    def _closure(self, states: Iterable[int]) -> frozenset[int]:
        found = set(states)
        waiting = list(found)
        while waiting:
            for state in self.empty[waiting.pop()]:
                if state not in found:
                    found.add(state)
                    waiting.append(state)
        return frozenset(found)

    def _moves(self, subset: frozenset[int]) -> Iterable[tuple[int, int, set[int]]]:
        """(least byte, largest byte, next states) for runs of bytes that lead to the same states."""
        edges = [edge for state in subset for edge in self.edges[state]]
        bounds = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
        starts = {bound: i for i, bound in enumerate(bounds)}
        targets: list[set[int]] = [set() for _ in bounds]
        for low, high, target in edges:
            for i in range(starts[low], starts[high + 1]):
                targets[i].add(target)
        for i, found in enumerate(targets):
            if found:
                yield bounds[i], bounds[i + 1] - 1, found


def intersection(first: ByteAutomaton, second: ByteAutomaton) -> ByteAutomaton:
    """The minimal automaton of the texts that are of both languages. Raises TooLargeError."""
    numbers = {(0, 0): 0}
    pairs = [(0, 0)]
    rows = []
    for pair in pairs:  # grows
        both = np.stack([first.table[pair[0]], second.table[pair[1]]])
        row = np.full(256, DEAD, np.int32)
        for byte in np.flatnonzero(np.all(both != DEAD, axis=0)).tolist():
            target = (int(both[0, byte]), int(both[1, byte]))
            if target not in numbers:
                if len(numbers) >= MAX_STATES:
                    raise TooLargeError
                numbers[target] = len(numbers)
                pairs.append(target)
            row[byte] = numbers[target]
        rows.append(row)
    is_accepting = [bool(first.is_accepting[one] and second.is_accepting[other]) for one, other in pairs]
    return _minimal(np.stack(rows), np.array(is_accepting))


def _minimal(table: np.ndarray, is_accepting: np.ndarray) -> ByteAutomaton:
    """The automaton with equivalent states made one and those left out that no text of the language passes.

    A large one keeps equivalent states. Source: Moore's refinement of partitions.
    """
    is_live = _leads_to(table, is_accepting)
    table = np.where((table != DEAD) & is_live[table], table, DEAD)
    if len(table) > _MOST_TO_MINIMISE:
        return ByteAutomaton(table.astype(np.int32), is_accepting)
    columns = np.unique(table, axis=1)  # bytes that do the same everywhere count once
    groups = is_accepting.astype(np.int64)
    count = len(np.unique(groups))
    while True:
        next_groups = np.where(columns == DEAD, DEAD, groups[columns])
        signatures = np.concatenate([groups[:, None], next_groups], axis=1)
        _, representatives, groups = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
        if len(representatives) == count:
            break
        count = len(representatives)
    # State 0 stays the start; states that only dead ones led to are gone with them.
    order = _reachable(np.where(table == DEAD, DEAD, groups[table])[representatives], int(groups[0]))
    numbers = np.full(count, DEAD, np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    chosen = representatives[order]
    small = table[chosen]
    return ByteAutomaton(np.where(small == DEAD, DEAD, numbers[groups[small]]).astype(np.int32), is_accepting[chosen])


def _leads_to(table: np.ndarray, is_accepting: np.ndarray) -> np.ndarray:
    """[Q] whether an accepting state can be reached."""
    sources, _ = np.nonzero(table != DEAD)
    targets = table[table != DEAD]
    order = np.argsort(targets, kind="stable")
    sources, bounds = sources[order], np.searchsorted(targets[order], np.arange(len(table) + 1))
    is_live = is_accepting.copy()
    for state in (waiting := np.flatnonzero(is_accepting).tolist()):  # grows
        for source in np.unique(sources[bounds[state] : bounds[state + 1]]).tolist():
            if not is_live[source]:
                is_live[source] = True
                waiting.append(source)
    return is_live


def _reachable(table: np.ndarray, start: int) -> list[int]:
    """The states that can be reached, the start first."""
    found = {start: None}
    for state in (order := [start]):  # grows
        for target in np.unique(table[state]):
            if target != DEAD and target not in found:
                found[int(target)] = None
                order.append(int(target))
    return order
