"""The objects of an unpickled tree: stubs for what is neither a container nor a scalar, and the limits of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 100  # containers within containers; repr and json give up at about 1,000
_MAX_KEY_PARTS = 64


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Stub:
    """A record of a global that a pickle names (args is None), or of the object that calling it would have made.

    Nothing was imported or called. `callee` is set where the called thing was itself the result of a call; module and
    name are then those of the first. `state` is what BUILD gave (usually the attributes), `items` what was appended or
    added, `entries` the pairs that were set with `[key] = value`.
    """

    module: str
    name: str
    args: tuple[Any, ...] | None = None
    kwargs: Any = None
    callee: Stub | None = None
    state: Any = None
    items: list[Any] = dataclasses.field(default_factory=list)
    entries: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        # Only names, cut off: what a stub holds may be large, or hold the stub itself.
        return f"<{type(self).__name__} {quote(f'{self.module}.{self.name}')}{'' if self.args is None else '(...)'}>"

    @property
    def symbol(self) -> tuple[str, str]:
        """(module, name) of an uncalled global; empty names for what came from a call."""
        return (self.module, self.name) if self.args is None else ("", "")


_NESTING = (Stub, dict, list, tuple, set, frozenset)


def quote(text: Any) -> str:
    """At most 80 characters of a text from a file, quoted so that it cannot garble a terminal; else the type's name."""
    if not isinstance(text, str | bytes):
        return f"a {type(text).__name__}"
    return repr(text[:80]) + ("..." if len(text) > 80 else "")


def check_nesting(root: Any) -> None:
    """Raises ValueError if containers nest deeper than MAX_DEPTH or hold themselves, other than through a stub.

    Stubs are where recursion ends (their repr is short), so that objects that know their parents are fine.
    """
    heights: dict[int, int] = {}
    roots = [root]
    while roots:
        pending = [(roots.pop(), False)]
        while pending:
            value, is_done = pending.pop()
            if is_done:
                heights[id(value)] = _height(value, heights)
            elif id(value) not in heights:
                heights[id(value)] = 0 if isinstance(value, Stub) else -1  # -1: on the way down to here
                if isinstance(value, Stub):
                    # Later, when the containers around this stub are done: a way back to them is no circle then.
                    roots += [part for part in _parts(value) if id(part) not in heights]
                else:
                    pending.append((value, True))
                    pending += [(part, False) for part in _parts(value) if id(part) not in heights]


def _height(value: Any, heights: Mapping[int, int]) -> int:
    below = [heights[id(part)] for part in _parts(value)]
    if -1 in below:
        raise ValueError(f"its pickle holds a {type(value).__name__} that contains itself")
    height = 1 + max(below, default=0)
    if height > MAX_DEPTH:
        raise ValueError(f"its pickle nests more than {MAX_DEPTH} containers")
    return height


def _parts(value: Any) -> list[Any]:
    """The stubs and the containers that are not empty directly within a container or stub."""
    parts: Any = ()
    if isinstance(value, Stub):
        parts = (value.args, value.kwargs, value.callee, value.state, value.items, value.entries)
    elif isinstance(value, dict):
        parts = (*value, *value.values())
    elif isinstance(value, _NESTING):
        parts = value
    return [part for part in parts if isinstance(part, _NESTING) and part]


def is_key(value: Any) -> bool:
    """Whether a value may be hashed: a scalar, a stub, or a small tuple of such.

    Hashing a tuple recurses in C without a limit, and takes exponential time where tuples share their parts. Integers
    of one hash, by which a dict's time becomes quadratic, have to be longer than 64 bits.
    """
    pending = [value]
    for _ in range(_MAX_KEY_PARTS):
        if not pending:
            return True
        part = pending.pop()
        if type(part) is tuple and len(part) <= _MAX_KEY_PARTS:
            pending += part
        elif isinstance(part, int):
            if part.bit_length() > 64:
                return False
        elif not (part is None or isinstance(part, float | str | bytes | Stub)):
            return False
    return False
