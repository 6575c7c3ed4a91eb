"""The IAM handwriting database: ascii/lines.txt, and the images in lines/a01/a01-000u/a01-000u-00.png."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.files import Files, open_image, read_lines

INDEX = "lines.txt"
_FORM = r"[a-z]\d\d-\d{3}[a-z]?"
# The line's id, how its segmentation went, six numbers (grey level, components, box), and its words.
_LINE = re.compile(rf"({_FORM}-\d\d[a-z]?) (ok|err) (?:-?\d+ ){{6}}(.+)")
# A line's id, or a form's, which stands for all of its lines.
_ID = re.compile(rf"{_FORM}(-\d\d[a-z]?)?")


def misfit_iam(files: Files, name: str) -> str | None:
    """Why it is neither IAM's folder, nor its lines.txt, nor a list of its lines' ids."""
    try:
        index = _find_index(files, name)
    except FileNotFoundError as error:
        return str(error)
    first = next((line for _, line in _content(files, index)), "")
    return None if _LINE.fullmatch(first) else f"{files.where(index)} does not begin as IAM's lines.txt does"


def read_iam(files: Files, name: str) -> list[Example]:
    """The lines of the whole database, or of a list of ids, such as those of IAM's tasks, in their order.

    All lines are taken, those whose segmentation IAM calls "err" too, as the published splits do. A text is the words
    with a space between them, punctuation marks being words, as in unilm's lists.
    """
    index = _find_index(files, name)
    lines = dict(_lines(files, index))
    folder = _image_folder(files, index)
    wanted = list(lines) if files.is_folder(name) or index == name else list(_wanted(files, name, lines))
    return [_example(files, folder, line, lines[line]) for line in wanted]


def _example(files: Files, folder: str, line: str, text: str) -> Example:
    form = line.rpartition("-")[0]
    image = files.join(files.join(files.join(folder, form.partition("-")[0]), form), f"{line}.png")
    return Example(files.where(image), text, functools.partial(open_image, files, image))


def _content(files: Files, name: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in read_lines(files, name) if not line.startswith("#"))


def _lines(files: Files, index: str) -> Iterator[tuple[str, str]]:
    """(id, text) of each line of lines.txt."""
    for number, line in _content(files, index):
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"{files.where(index)}: line {number} is not as IAM's lines.txt has them: {line[:60]!r}")
        yield match[1], match[3].replace("|", " ")


def _wanted(files: Files, name: str, lines: dict[str, str]) -> Iterator[str]:
    """The ids that a list names, those of a form standing for all of its lines."""
    for number, line in _content(files, name):
        given = line.strip()
        found = [given] if given in lines else [key for key in lines if key.startswith(f"{given}-")]
        if not found:
            raise ValueError(f"{files.where(name)}: line {number}: IAM's lines.txt has no {given!r}")
        yield from found


def _find_index(files: Files, name: str) -> str:
    """lines.txt for the folder, itself or list of ids given. Raises FileNotFoundError saying what was looked for."""
    folder = name
    if files.is_file(name):
        first = next((line for _, line in _content(files, name)), "")
        if not _ID.fullmatch(first.strip()):
            if name.rpartition("/")[2] == INDEX or _LINE.fullmatch(first):
                return name
            raise FileNotFoundError(f"it is neither IAM's {INDEX} nor a list of ids such as a01-000u-00")
        folder = name.rpartition("/")[0]
    for _ in range(4):
        for place in (files.join(folder, f"ascii/{INDEX}"), files.join(folder, INDEX)):
            if files.is_file(place):
                return place
        if files.is_folder(name):
            break  # only a list of ids may lie deep below
        folder = files.join(folder, "..")
    place = "in it" if files.is_folder(name) else "in the folders above it"
    raise FileNotFoundError(f"there is no ascii/{INDEX} {place}")


def _image_folder(files: Files, index: str) -> str:
    """lines/ beside ascii/, or beside lines.txt."""
    folder = index.rpartition("/")[0]
    beside = files.join(folder, "lines")
    return beside if files.is_folder(beside) else files.join(files.join(folder, ".."), "lines")
