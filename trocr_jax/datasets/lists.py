"""Datasets that are a list of images and texts: unilm's gt.txt, TSV, CSV and JSON lines."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.files import Files, open_image, read_lines, read_text

# What columns are called, in lower case; the Hugging Face names are among them.
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "image_path")
TEXT_COLUMNS = ("text", "label", "transcription", "ground_truth", "sentence")
UNILM_FOLDER = "image"

# (line number, path of the image as it stands there, text)
Row = tuple[int, str, str]


def first_line(files: Files, name: str) -> str:
    """The first line of a file that is not empty. Raises ValueError for a file without one, or that is not UTF-8."""
    for _, line in read_lines(files, name):
        return line
    raise ValueError("it is empty")


def misfit_unilm(files: Files, name: str) -> str | None:
    """Why it is no list as unilm's gt_train.txt is: the image's name, a tab, its text; images in image/ beside it."""
    if "\t" not in first_line(files, name):
        return "its first line has no tab"
    folder = _beside(files, name, UNILM_FOLDER)
    if not files.is_folder(folder):
        return f"there is no folder {UNILM_FOLDER}/ beside it"
    if not _any_there(files, folder, tab_rows(files, name)):
        return f"none of its images is in {files.where(folder)}"
    return None


def misfit_tsv(files: Files, name: str) -> str | None:
    """Why it is no list of paths, tabs and texts, the paths being relative to it."""
    if "\t" not in first_line(files, name):
        return "its first line has no tab"
    if misfit_unilm(files, name) is None and not _any_there(files, _beside(files, name), tsv_rows(files, name)):
        return f"its images are in {UNILM_FOLDER}/, as unilm's"
    return None


def misfit_csv(files: Files, name: str) -> str | None:
    """Why it is no list of comma-separated values."""
    line = first_line(files, name)
    if line.startswith(("{", "<")) or "\t" in line:
        return "its first line is none of comma-separated values"
    try:
        fields = next(csv.reader([line]))
    except csv.Error as error:
        return f"its first line is no CSV: {error}"
    if _header(fields) is not None:
        return None
    if len(fields) != 2:
        return f"its first line has {len(fields)} columns and names no path and no text ({_column_names()})"
    return None if _any_there(files, _beside(files, name), csv_rows(files, name)) else "none of its images is there"


def misfit_jsonl(files: Files, name: str) -> str | None:
    """Why it is no file with a JSON object on each line."""
    try:
        is_object = isinstance(json.loads(first_line(files, name)), dict)
    except json.JSONDecodeError as error:
        return f"its first line is no JSON ({error})"
    return None if is_object else "its first line is no JSON object"


def read_unilm(files: Files, name: str) -> list[Example]:
    """The lines of unilm's list, spaces at the ends of texts left out as there."""
    rows = [(number, path, text.rstrip()) for number, path, text in tab_rows(files, name)]
    return _examples(files, name, _beside(files, name, UNILM_FOLDER), rows)


def read_tsv(files: Files, name: str) -> list[Example]:
    """The lines of a TSV file, texts as they are: TSV has no quotes and no escapes here."""
    return _examples(files, name, _beside(files, name), tsv_rows(files, name))


def read_csv(files: Files, name: str) -> list[Example]:
    """The lines of a CSV file, where texts with commas, quotes or newlines stand in quotes."""
    return _examples(files, name, _beside(files, name), csv_rows(files, name))


def read_jsonl(files: Files, name: str) -> list[Example]:
    """The lines of a file with an object a line, such as {"path": "a.png", "text": "an apple"}."""
    return _examples(files, name, _beside(files, name), _json_rows(files, name))


def tab_rows(files: Files, name: str) -> Iterator[Row]:
    """Each line divided at its first tab; ValueError says which line has none."""
    for number, line in read_lines(files, name):
        path, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"{files.where(name)}: line {number} has no tab between a path and a text")
        yield number, path, text


def tsv_rows(files: Files, name: str) -> Iterable[Row]:
    """The rows of a TSV file: two columns, or any number of them below a line with their names."""
    first = first_line(files, name).rstrip("\t").split("\t")
    if _header(first) is None and len(first) <= 2:
        return tab_rows(files, name)
    lines = ((number, line.split("\t")) for number, line in read_lines(files, name))
    return _columns(files, name, lines)


def csv_rows(files: Files, name: str) -> Iterable[Row]:
    """The rows of a CSV file: two columns, or any number of them below a line with their names."""
    reader = csv.reader(io.StringIO(read_text(files, name), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, Sequence[str]]]:
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise ValueError(f"{files.where(name)}: line {reader.line_num} is no CSV: {error}") from error

    return _columns(files, name, rows())


def _json_rows(files: Files, name: str) -> Iterator[Row]:
    for number, line in read_lines(files, name):
        where = f"{files.where(name)}: line {number}"
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        columns = _header(list(content)) if isinstance(content, dict) else None
        if columns is None:
            raise ValueError(f"{where} is no object with a path and a text ({_column_names()})")
        path, text = (list(content.values())[i] for i in columns)
        if not isinstance(path, str) or not isinstance(text, str):
            raise ValueError(f"{where} has a path or a text that is not a string")
        if any("\ud800" <= character <= "\udfff" for character in path + text):
            raise ValueError(f"{where} has half of a surrogate pair, which is no character")
        yield number, path, text


def _columns(files: Files, name: str, lines: Iterable[tuple[int, Sequence[str]]]) -> Iterator[Row]:
    """The path and the text of each line, by the names in the first, or of two columns."""
    found: tuple[int, int] | None = None
    width = 2
    for number, fields in lines:
        if found is None:
            found, width = _header(fields) or (0, 1), len(fields)
            if _header(fields) is not None:
                continue
            if width != 2:
                raise ValueError(
                    f"{files.where(name)}: line {number} has {width} columns, of which the first line names no path "
                    f"and no text ({_column_names()})"
                )
        if len(fields) != width:
            raise ValueError(f"{files.where(name)}: line {number} has {len(fields)} columns; {width} were expected")
        yield number, fields[found[0]], fields[found[1]]


def _header(names: Sequence[str]) -> tuple[int, int] | None:
    """(place of the path, place of the text) among column names; None if they do not name one of each."""
    lower = [name.strip().lower() for name in names]
    paths = [i for i, name in enumerate(lower) if name in PATH_COLUMNS]
    texts = [i for i, name in enumerate(lower) if name in TEXT_COLUMNS]
    return (paths[0], texts[0]) if len(paths) == len(texts) == 1 else None


def _column_names() -> str:
    return f"a path is called {', '.join(PATH_COLUMNS)}; a text {', '.join(TEXT_COLUMNS)}"


def _beside(files: Files, name: str, folder: str = "") -> str:
    """The list's folder, or one in it."""
    own = name.rpartition("/")[0] if "/" in name else ""
    return files.join(own, folder) if folder else own


def _any_there(files: Files, folder: str, rows: Iterable[Row]) -> bool:
    return any(files.is_file(files.join(folder, path)) for _, path, _ in rows)


def _examples(files: Files, name: str, folder: str, rows: Iterable[Row]) -> list[Example]:
    rows = list(rows)
    if not _any_there(files, folder, rows):
        first = files.where(files.join(folder, rows[0][1])) if rows else "none"
        raise ValueError(f"{files.where(name)}: none of its {len(rows)} images is there, the first being {first}")
    return [_example(files, files.join(folder, path), text) for _, path, text in rows]


def _example(files: Files, image: str, text: str) -> Example:
    opener: Callable = functools.partial(open_image, files, image)
    return Example(files.where(image), text, opener)
