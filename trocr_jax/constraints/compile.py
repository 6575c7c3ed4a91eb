"""Constraints as automata over a vocabulary's tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from trocr_jax.constraints.automaton import ByteAutomaton, TooLargeError
from trocr_jax.constraints.vocabulary import Spellings, Vocabulary
from trocr_jax.decoding.token_automaton import MAX_EDGES, TokenAutomaton, make_automaton
from trocr_jax.processing.tokenizer import TrOCRTokenizer

Edges = tuple[np.ndarray, np.ndarray]  # tokens and the states that they lead to

# State 0 is before a text, state 1 behind a begin token, state 2 behind the end; the text's own follow.
_BEGUN, _END, _OWN = 1, 2, 3


def from_bytes(automaton: ByteAutomaton, vocabulary: Vocabulary) -> TokenAutomaton:
    """All ways to spell the texts of an automaton over bytes in tokens. Raises TooLargeError."""
    own: dict[int, int] = {}  # the number of each of the automaton's states that the text can be in between two tokens
    waiting: list[int] = []

    def edges(state: int, spellings: Spellings) -> Edges:
        tokens, states = spellings.follow(automaton, state)
        distinct, inverse = np.unique(states, return_inverse=True)
        for target in distinct.tolist():
            if target not in own:
                own[target] = _OWN + len(own)
                waiting.append(target)
        targets = np.array([own[target] for target in distinct.tolist()], np.int64)[inverse]
        return _with_ends((tokens, targets), bool(automaton.is_accepting[state]), vocabulary)

    beginning = edges(0, vocabulary.first)
    found, count = [], 0
    for state in waiting:  # grows
        found.append(edges(state, vocabulary.later))
        count += len(found[-1][0])
        if count > MAX_EDGES:
            raise TooLargeError
    return _automaton(beginning, found, vocabulary)


def from_texts(texts: Sequence[str], tokenizer: TrOCRTokenizer, vocabulary: Vocabulary) -> TokenAutomaton:
    """These texts, each spelt as the tokenizer spells it. Raises ValueError for texts that it cannot spell."""
    encodings = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
    spelt = [encoding.ids for encoding in encodings]
    decoded = tokenizer.backend.decode_batch(spelt, skip_special_tokens=True)
    wrong = [text for text, found in zip(texts, decoded, strict=True) if found not in (text, " " + text)]
    if wrong:
        shown = ", ".join(map(repr, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(f"{len(wrong)} texts of the lexicon cannot be spelt with this model's tokens: {shown}")
    return _automaton(*_trie(spelt, vocabulary), vocabulary)


def _trie(spelt: Sequence[Sequence[int]], vocabulary: Vocabulary) -> tuple[Edges, list[Edges]]:
    """(the edges of its root, those of the other nodes): level by level, all texts at once."""
    lengths = np.array([len(tokens) for tokens in spelt])
    flat = np.fromiter(itertools.chain.from_iterable(spelt), np.int64, lengths.sum())
    firsts = np.cumsum(lengths) - lengths
    texts, nodes = np.arange(len(spelt)), np.zeros(len(spelt), np.int64)  # of each text, the node that it has come to
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (parents, tokens, nodes)
    is_end, count = [0] * bool(np.any(lengths == 0)), 1
    for place in range(max(lengths, default=0)):
        longer = lengths[texts] > place
        texts, nodes = texts[longer], nodes[longer]
        keys, inverse = np.unique(nodes * vocabulary.size + flat[firsts[texts] + place], return_inverse=True)
        levels.append((keys // vocabulary.size, keys % vocabulary.size, count + np.arange(len(keys))))
        nodes = count + inverse
        count += len(keys)
        is_end += np.unique(nodes[lengths[texts] == place + 1]).tolist()
    parents, tokens, children = np.concatenate([np.zeros((3, 0), np.int64), *map(np.stack, levels)], axis=1)
    order = np.argsort(parents, kind="stable")
    bounds = np.searchsorted(parents[order], np.arange(count + 1))
    # A root is no child, so that the first child's number is that of the text's first own state.
    found = [(tokens[order[a:b]], children[order[a:b]] + _OWN - 1) for a, b in itertools.pairwise(bounds)]
    ends = set(is_end)
    found = [_with_ends(edges, i in ends, vocabulary) for i, edges in enumerate(found)]
    return found[0], found[1:]


def _with_ends(edges: Edges, is_complete: bool, vocabulary: Vocabulary) -> Edges:
    """Edges, and those of the end tokens where a text is complete."""
    if not is_complete:
        return edges
    ends = np.array(vocabulary.end_tokens, np.int64)
    return np.concatenate([edges[0], ends]), np.concatenate([edges[1], np.full(len(ends), _END)])


def _automaton(beginning: Edges, own: Sequence[Edges], vocabulary: Vocabulary) -> TokenAutomaton:
    tokens, targets = beginning
    start = beginning
    if vocabulary.begin_token is not None:
        start = np.append(tokens, vocabulary.begin_token), np.append(targets, _BEGUN)
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    return make_automaton([start, beginning, nothing, *own], end_state=_END)
