"""Which images a command reads: paths, folders, globs and lists on stdin, whole or one process's share of them."""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

IMAGE_SUFFIXES = frozenset(
    (
        ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
        ".tga", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip

# (index, count): this process's among those that read an input together, the first being 0
Shard = tuple[int, int]


def find_images(arguments: Iterable[str]) -> tuple[Iterable[str], int | None]:
    """(paths of images, how many). A path that is not there is kept, to be reported in its place.

    The number is None where paths come from stdin: those are taken one by one, as they arrive, and FileNotFoundError
    is raised at their end if there was none.
    """
    arguments = list(arguments)
    if "-" in arguments:
        return _some(_from_stdin(arguments), arguments), None
    found = {argument: _expand(argument) for argument in arguments}
    if any(found.values()):  # one that matches nothing is reported like any path that is not there
        found |= {argument: [argument] for argument in found if not found[argument] and not os.path.isdir(argument)}
    paths = [path for argument in arguments for path in found[argument]]
    return paths, len(paths)


def share(paths: Iterable[str], shard: Shard) -> Iterator[tuple[int, str]]:
    """(place in the whole input, path) of those whose place modulo the number of processes is this process's index.

    So shares differ by one image at most, need no count beforehand, and get the same mixture where neighbours are
    alike; contiguous blocks have none of that.
    """
    return itertools.islice(enumerate(paths), shard[0], None, shard[1])


def _from_stdin(arguments: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        lines = (line.rstrip("\r\n") for line in sys.stdin) if argument == "-" else (argument,)
        for line in lines:
            if line:
                # As a list's is known only at its end, a pattern that matches nothing is reported here at once.
                yield from _expand(line) or ([] if os.path.isdir(line) else [line])


def _some(paths: Iterable[str], arguments: Iterable[str]) -> Iterator[str]:
    path = None
    for path in paths:
        yield path
    if path is None:
        raise FileNotFoundError(no_images(arguments))


def no_images(arguments: Iterable[str]) -> str:
    """What is said where arguments lead to no image."""
    return f"no images in {', '.join(arguments)}"


def _expand(argument: str) -> list[str]:
    # os.path answers False where pathlib raises, as for a name that is too long: that image is reported like any other.
    if os.path.isdir(argument):
        found = pathlib.Path(argument).rglob("*")
        return sorted(
            str(p) for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not _is_overlay(p) and p.is_file()
        )
    if not os.path.exists(argument) and glob.has_magic(argument):
        return sorted(found for found in glob.glob(argument, recursive=True) if os.path.isfile(found))
    return [argument]


def _is_overlay(path: pathlib.Path) -> bool:
    """Whether --save-overlay wrote it, perhaps into the folder that is read now."""
    return path.name.endswith(".overlay.png")
