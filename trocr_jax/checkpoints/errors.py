"""The error of every checkpoint that cannot be used; apart, so that readers and the store can share it."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not hold what its configuration asks for; the message says all of it."""
