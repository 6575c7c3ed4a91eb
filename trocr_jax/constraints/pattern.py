"""Regular expressions as deterministic automata over UTF-8 bytes.

The syntax and the meaning are Python's: a pattern is parsed by `re` itself, and a set of characters is what `re`
matches with it. What is not a regular language (backreferences, lookaround) is refused.

Python's parser lies in `re._parser`, which has no documented interface; hypothesis builds on it too, and the tests hold
ours against `re.fullmatch` on every Python that is supported.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from trocr_jax.constraints.automaton import MAX_STATES, ByteAutomaton, Nfa, TooLargeError
from trocr_jax.constraints.utf8 import LAST, Ranges

# No characters, though code points.
_SURROGATES = (0xD800, 0xDFFF)
_REFUSED: Mapping[Any, str] = {
    _constants.GROUPREF: "a backreference",
    _constants.GROUPREF_EXISTS: "a conditional group",
    _constants.ASSERT: "lookaround",
    _constants.ASSERT_NOT: "lookaround",
    _constants.ATOMIC_GROUP: "an atomic group",
    _constants.POSSESSIVE_REPEAT: "a possessive repetition",
    _constants.AT: "an anchor in its midst (a text has to match as a whole, so that anchors are not needed)",
}
_ONE_CHARACTER = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN, _constants.CATEGORY)
_BEGINNINGS = (_constants.AT_BEGINNING, _constants.AT_BEGINNING_STRING)
_ENDS = (_constants.AT_END, _constants.AT_END_STRING)


@functools.lru_cache(maxsize=64)
def compile_pattern(pattern: str) -> ByteAutomaton:
    """The texts that `re.fullmatch(pattern, text)` matches, as an automaton over their UTF-8 bytes.

    Raises ValueError for a pattern that is malformed, is not regular or is too large.
    """
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    flags = tree.state.flags
    if flags & re.MULTILINE:
        raise ValueError(f"pattern {pattern!r} asks for MULTILINE, which has no meaning for one line; remove the flag")
    try:
        nfa = Nfa()
        end = _add(nfa, _without_anchors(list(tree)), 0, flags)
        return nfa.determinised(end)
    except TooLargeError:
        raise ValueError(
            f"pattern {pattern!r} needs more than {MAX_STATES} states; use smaller repetition counts, or * and +"
        ) from None
    except NotRegularError as error:
        raise ValueError(f"pattern {pattern!r} holds {error}, which cannot be decided token by token") from None
    except RecursionError:
        raise ValueError(f"pattern {pattern!r} is nested too deeply") from None


def compile_characters(characters: str) -> ByteAutomaton:
    """The texts, the empty one included, that hold no characters but these."""
    points = sorted({ord(character) for character in characters})
    nfa = Nfa()
    nfa.add_characters(0, tuple((point, point) for point in points), 0)
    return nfa.determinised(0)


class NotRegularError(Exception):
    """What a pattern holds that no automaton can decide."""


def _without_anchors(items: list[Any]) -> list[Any]:
    while items and items[0][0] is _constants.AT and items[0][1] in _BEGINNINGS:
        items = items[1:]
    while items and items[-1][0] is _constants.AT and items[-1][1] in _ENDS:
        items = items[:-1]
    return items


def _add(nfa: Nfa, items: Any, start: int, flags: int) -> int:
    """The state behind these items, which begin at `start`."""
    for item in items:
        operation, argument = item
        if operation in _ONE_CHARACTER:
            end = nfa.add_state()
            nfa.add_characters(start, _characters(operation, _hashable(argument), flags), end)
            start = end
        elif operation is _constants.BRANCH:
            end = nfa.add_state()
            for branch in argument[1]:
                nfa.add_empty(_add(nfa, branch, start, flags), end)
            start = end
        elif operation is _constants.SUBPATTERN:
            _, added, removed, inner = argument
            start = _add(nfa, inner, start, _compiler._combine_flags(flags, added, removed))
        elif operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            start = _add_repeat(nfa, argument, start, flags)
        elif operation is _constants.FAILURE:
            start = nfa.add_state()
        elif operation is _constants.AT and argument not in (*_BEGINNINGS, *_ENDS):
            raise NotRegularError(r"\b or \B")
        else:
            raise NotRegularError(_REFUSED.get(operation, str(operation)))
    return start


def _add_repeat(nfa: Nfa, argument: Any, start: int, flags: int) -> int:
    least, most, inner = argument
    for _ in range(least):
        start, before = _add(nfa, inner, start, flags), start
        if start == before:  # it reads nothing, however often
            return start
    if most is _constants.MAXREPEAT:
        # States of their own, since what stands before and behind may loop as well.
        loop, end = nfa.add_state(), nfa.add_state()
        nfa.add_empty(start, loop)
        nfa.add_empty(_add(nfa, inner, loop, flags), loop)
        nfa.add_empty(loop, end)
        return end
    end = nfa.add_state()
    for _ in range(most - least):
        nfa.add_empty(start, end)
        start = _add(nfa, inner, start, flags)
    nfa.add_empty(start, end)
    return end


def _hashable(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list) else argument


@functools.lru_cache(maxsize=256)
def _characters(operation: Any, argument: Any, flags: int) -> Ranges:
    """The characters that an item of a parsed pattern matches, found by matching all there are."""
    state = _parser.State()
    state.flags = flags
    one = _parser.SubPattern(state, [(operation, list(argument) if isinstance(argument, tuple) else argument)])
    runs = _parser.SubPattern(state, [(_constants.MAX_REPEAT, (1, _constants.MAXREPEAT, one))])
    compiled = _compiler.compile(runs, flags)
    return tuple(_ranges(compiled))


def _ranges(compiled: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    for start, text in _all_characters():
        for match in compiled.finditer(text):
            yield start + match.start(), start + match.end() - 1


@functools.lru_cache(maxsize=1)
def _all_characters() -> tuple[tuple[int, str], tuple[int, str]]:
    first, last = _SURROGATES
    return (0, "".join(map(chr, range(first)))), (last + 1, "".join(map(chr, range(last + 1, LAST + 1))))
