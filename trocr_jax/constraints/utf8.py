"""Sets of characters as automata over the bytes of their UTF-8 spellings.

A set is a tuple of ranges of code points, both ends included, in order; surrogates are no characters and are left out.
Source of the splitting: RE2's treatment of UTF-8 ranges.
"""

from __future__ import annotations

from collections.abc import Iterator

Ranges = tuple[tuple[int, int], ...]
# A spelling, or many at once: a range of bytes for each place.
ByteRanges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
# All code points of one length in bytes, surrogates apart.
_BLOCKS = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST))


def byte_ranges(ranges: Ranges) -> Iterator[ByteRanges]:
    """Disjoint sequences of byte ranges that spell exactly the characters of these code points.

    In:  ((0xE0, 0x7FF),)
    Out: ((0xC3, 0xC3), (0xA0, 0xBF)), ((0xC4, 0xDF), (0x80, 0xBF))
    """
    for low, high in ranges:
        for first, last in _BLOCKS:
            if low <= last and high >= first:
                yield from _split(max(low, first), min(high, last))


def _split(low: int, high: int) -> Iterator[ByteRanges]:
    """Of code points that have the same number of bytes."""
    size = len(chr(low).encode())
    for shift in (6 * i for i in range(1, size)):
        below = (1 << shift) - 1
        # Where the leading bits differ, the bits below have to run from all zeros to all ones.
        if low >> shift != high >> shift:
            if low & below:
                yield from _split(low, low | below)
                yield from _split((low | below) + 1, high)
                return
            if high & below != below:
                yield from _split(low, (high & ~below) - 1)
                yield from _split(high & ~below, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
