"""Opens a dataset of any format: which one it is, is told by what it holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.files import Files, locate
from trocr_jax.datasets.iam import misfit_iam, read_iam
from trocr_jax.datasets.lists import (
    misfit_csv,
    misfit_jsonl,
    misfit_tsv,
    misfit_unilm,
    read_csv,
    read_jsonl,
    read_tsv,
    read_unilm,
)
from trocr_jax.datasets.pages import misfit_alto, misfit_page, read_alto, read_page
from trocr_jax.datasets.sroie import misfit_sroie, read_sroie

# What `open_dataset` opens, for people.
DESCRIPTION = """\
DATA is a list of paths and texts (tsv, csv, jsonl, unilm's gt.txt), a folder with labels.tsv or the like, a folder of
IAM or SROIE, or PAGE-XML or ALTO files; or any of these inside a zip archive, which is not unpacked: lines.zip/train.
"""
# The lists that a folder is opened by.
INDEX_NAMES = (
    "labels.tsv", "labels.csv", "labels.jsonl", "metadata.tsv", "metadata.csv", "metadata.jsonl", "gt.txt"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Format:
    """How one kind of dataset is told and read; both raise ValueError for damage. `misfit` says why it is not one."""

    misfit: Callable[[Files, str], str | None]
    read: Callable[[Files, str], list[Example]]
    is_list: bool = False


FORMATS: Mapping[str, Format] = {
    "unilm": Format(misfit_unilm, read_unilm, is_list=True),
    "tsv": Format(misfit_tsv, read_tsv, is_list=True),
    "csv": Format(misfit_csv, read_csv, is_list=True),
    "jsonl": Format(misfit_jsonl, read_jsonl, is_list=True),
    "iam": Format(misfit_iam, read_iam),
    "sroie": Format(misfit_sroie, read_sroie),
    "page": Format(misfit_page, read_page),
    "alto": Format(misfit_alto, read_alto),
}


def open_dataset(path: str | os.PathLike[str], *, format: str | None = None) -> Sequence[Example]:  # noqa: A002
    """The lines of a dataset, in its order; images are opened when a line's `open` is called.

    `path` is a file or a folder, or one of them inside a zip archive, which is not unpacked: "lines.zip/train". A
    folder that holds all there is in an archive may be left out. `format` is told by what is there unless it is given:

    - "tsv", "csv", "jsonl": a path, relative to the file, and a text on each line. Columns are told by their names
      (path, file_name, image; text, label, transcription and others) or, in tsv and csv, by there being two.
    - "unilm": gt_train.txt and the like, whose images are in image/ beside it.
    - a folder with labels.tsv, metadata.jsonl, gt.txt or the like is opened by that list.
    - "iam": the database's folder, its ascii/lines.txt, or a list of ids of lines or forms somewhere below.
    - "sroie": task 2's folder of receipts and texts with boxes.
    - "page", "alto": an XML file or a folder of them; lines are cut out by polygon, or around the baseline.

    Raises FileNotFoundError, or ValueError that names the file and line, or says why no format fits. An image that
    cannot be read raises ImageError when its line is opened, and no sooner.
    """
    files, name = locate(path)
    if format is None:
        chosen, name = _detect(files, name)
    elif format in FORMATS:
        chosen = FORMATS[format]
        name = (_find_index(files, name) or name) if chosen.is_list else name
    else:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(FORMATS)}, or None to have it told")
    if chosen.is_list and not files.is_file(name):
        raise ValueError(f"{files.where(name)} is a folder without {', '.join(INDEX_NAMES)}; name the list itself")
    return _read(chosen, files, name)


def _read(chosen: Format, files: Files, name: str) -> list[Example]:
    """The lines of what is there; every error names it."""
    where = files.where(name)
    try:
        examples = chosen.read(files, name)
    except ValueError as error:
        if where in str(error):
            raise
        raise ValueError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    if not examples:
        raise ValueError(f"{where} holds no lines")
    return examples


def _detect(files: Files, name: str) -> tuple[Format, str]:
    """(format, file or folder to read); ValueError says why none fits, or that several do."""
    index = _find_index(files, name)
    reasons: dict[str, str | None] = {}
    for kind, candidate in FORMATS.items():
        if candidate.is_list and index is None:
            reasons[kind] = f"the folder has none of {', '.join(INDEX_NAMES)}"
            continue
        try:
            reasons[kind] = candidate.misfit(files, index if candidate.is_list and index is not None else name)
        except ValueError as error:
            reasons[kind] = str(error)
    fitting = [kind for kind, reason in reasons.items() if reason is None]
    if len(fitting) > 1:
        raise ValueError(f"{files.where(name)} may be {' or '.join(fitting)}: say which (format=, --data-format)")
    if not fitting:
        grouped: dict[str | None, list[str]] = {}
        for kind, reason in reasons.items():
            grouped.setdefault(reason, []).append(kind)
        tried = (f"{', '.join(kinds)}: {reason}" for reason, kinds in grouped.items())
        raise ValueError("\n  ".join([_complaint(files, name, index), *tried]))
    chosen = FORMATS[fitting[0]]
    return chosen, index if chosen.is_list and index is not None else name


def _find_index(files: Files, name: str) -> str | None:
    """The list itself, or the one that a folder is opened by; None for a folder without. ValueError for several."""
    if files.is_file(name):
        return name
    found = [index for index in INDEX_NAMES if files.is_file(files.join(name, index))]
    if len(found) > 1:
        raise ValueError(f"{files.where(name)} has {' and '.join(found)}; name the one to open")
    return files.join(name, found[0]) if found else None


def _complaint(files: Files, name: str, index: str | None) -> str:
    where = files.where(name)
    told = "" if index in (None, name) else f" (its list is {files.where(str(index))})"
    parts = [part for part in files.children(name) if _find_index(files, files.join(name, part)) is not None]
    parts = [part for part in parts if files.is_folder(files.join(name, part)) or part.endswith(".txt")]
    hint = f"; it has {', '.join(parts[:10])}, each of which may be one, as {where}/{parts[0]}" if parts else ""
    return f"{where} is no dataset of a known format{told}{hint}. Tried were"
