"""Files are written to a temporary name and renamed, so that nobody ever meets half of one."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


def check_folder_of(path: str | os.PathLike[str]) -> None:
    """Raises FileNotFoundError where a file has no folder to be written to, before work is lost."""
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder to write {os.fspath(path)} to")


def make_folder(folder: pathlib.Path, option: str) -> None:
    """Makes a folder unless it is there. Raises OSError saying why not, and which option named it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} is no folder and cannot be made one ({error.strerror})"
        raise OSError(f"{reason}; choose another for {option}") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """The temporary name, beside `path`, to write to: it takes the place of `path` at the end, or goes on an error."""
    target = pathlib.Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
