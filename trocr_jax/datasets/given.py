"""The lines that a training or an evaluation was given, in whatever form."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.formats import open_dataset
from trocr_jax.processing.image import ImageError, describe, is_single, load_rgb

# A path for `open_dataset`, or lines, each an Example or a pair of an image, as a recogniser reads it, and its text.
Lines: TypeAlias = str | os.PathLike[str] | Iterable[Example | tuple[Any, str]]


def examples_of(lines: Lines, kind: str = "") -> Iterator[Example]:
    """The lines as examples, each made when it is asked for; an image in memory is named by its number, from 0.

    `kind`, such as "training", is what names and messages call them. An image in memory is copied when its turn comes,
    as the caller may change it, and kept as long as its example; one that cannot be read raises ImageError when it is
    opened, as files do. Raises TypeError for what are no lines, naming the place of the one that is wrong, and
    ValueError where there are none.
    """
    named = f"{kind} ".lstrip()
    if isinstance(lines, str | os.PathLike):
        lines = open_dataset(lines)
    elif not isinstance(lines, Iterable):
        raise TypeError(
            f"the {named}lines are given as {type(lines).__name__}; pass a path, or a list or iterator of Examples or "
            "(image, text) pairs"
        )
    number = -1
    if isinstance(lines, Sequence):  # all of them before the first is used
        for number, line in enumerate(lines):
            _check(line, f"{named}line {number}")
    for number, line in enumerate(lines):
        _check(line, f"{named}line {number}")
        yield line if isinstance(line, Example) else _paired(*line, f"{named}image {number}")
    if number < 0:
        raise ValueError(f"there are no {named}lines: pass at least one")


def _check(line: Any, place: str) -> None:
    is_pair = isinstance(line, tuple | list) and len(line) == 2
    if not (isinstance(line, Example) or (is_pair and is_single(line[0]) and isinstance(line[1], str))):
        given = f"({', '.join(map(_kind, line))})" if is_pair else _kind(line)
        raise TypeError(
            f"{place} (counted from 0) is {given}; pass an Example, or a pair of an image (path, file, PIL image or "
            "array) and its text, which is a str"
        )


def _paired(image: Any, text: str, name: str) -> Example:
    """The example of an image and its text; `name` is what an image in memory gets."""
    if isinstance(image, str | os.PathLike):
        return Example(describe(image), text, functools.partial(load_rgb, image))
    try:
        # At once: thousands of images that Pillow has not read yet would keep as many files open.
        return Example(name, text, load_rgb(image, name=name).copy)
    except ImageError as error:
        return Example(name, text, functools.partial(_unread, str(error)))


def _kind(part: Any) -> str:
    return f"{type(part).__name__} {getattr(part, 'shape', '')}".rstrip()


def _unread(reason: str) -> NoReturn:
    raise ImageError(reason)
