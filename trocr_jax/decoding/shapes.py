"""Sizes that shapes are rounded up to, so that inputs of any size share a handful of compiled programs."""

from __future__ import annotations


def bucket(size: int, parts: int = 1) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... not below `size`: few programs, and less than half more rows.

    With `parts`, that many times such a number.
    """
    if parts > 1:
        return parts * bucket(-(-size // parts))
    power = 1 << max(0, (size - 1).bit_length())
    return 3 * power // 4 if size > 2 and size <= 3 * power // 4 else power


def length_bucket(max_length: int) -> int:
    """The cache length for a maximum length: multiples of 16 up to 64, then as `bucket`."""
    return -(-max_length // 16) * 16 if max_length <= 64 else bucket(max_length)
