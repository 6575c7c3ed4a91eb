"""Where a dataset's files lie: on the disk, or inside a zip archive that is never unpacked."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import os
import posixpath
import zipfile
from collections.abc import Iterator
from typing import Protocol

from PIL import Image

from trocr_jax.processing.image import ImageError, load_rgb


class Files(Protocol):
    """Files and folders by name: a path on the disk, or a path inside an archive, "" being the archive itself."""

    def __hash__(self) -> int: ...

    def is_file(self, name: str) -> bool: ...

    def is_folder(self, name: str) -> bool: ...

    def children(self, folder: str) -> list[str]:
        """The names directly in a folder, without the folder's, sorted; none where there is no such folder."""

    def join(self, folder: str, name: str) -> str: ...

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError, or OSError for damage."""

    def where(self, name: str) -> str:
        """How messages name it; `open_dataset` finds it by that again."""


@dataclasses.dataclass(frozen=True)
class Disk:
    """The file system."""

    def is_file(self, name: str) -> bool:
        return os.path.isfile(name)

    def is_folder(self, name: str) -> bool:
        return os.path.isdir(name)

    def children(self, folder: str) -> list[str]:
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def join(self, folder: str, name: str) -> str:
        return os.path.join(folder, name)

    def read(self, name: str) -> bytes:
        with open(name, "rb") as file:
            return file.read()

    def where(self, name: str) -> str:
        return name


@dataclasses.dataclass(frozen=True)
class Archive:
    """A zip archive, and when it was written. No open file is kept, so that processes and threads may share it."""

    path: str
    written: int

    def is_file(self, name: str) -> bool:
        return name in self._open().files

    def is_folder(self, name: str) -> bool:
        return name in self._open().folders

    def children(self, folder: str) -> list[str]:
        return sorted(self._open().folders.get(folder, ()))

    def join(self, folder: str, name: str) -> str:
        joined = posixpath.normpath(posixpath.join(folder, name))
        return "" if joined == "." else joined

    def read(self, name: str) -> bytes:
        opened = self._open()
        if name not in opened.files:
            raise FileNotFoundError(f"{self.where(name)} does not exist")
        try:
            return opened.file.read(opened.files[name])
        except Exception as error:  # damage, passwords and unknown methods are reported by many exceptions
            raise OSError(f"{self.where(name)} cannot be read: {error}") from error

    def where(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _open(self) -> _OpenArchive:
        # Each process has a file of its own, since a file's position would be shared after a fork.
        return _open_archive(self.path, (self.written, os.getpid()))


@dataclasses.dataclass(frozen=True)
class _OpenArchive:
    """An archive's files, by the names that paths have for them, and of each folder what is directly in it."""

    file: zipfile.ZipFile
    files: dict[str, str]  # to the archive's own names, which may begin with "/" or "./"
    folders: dict[str, set[str]]


@functools.lru_cache(maxsize=16)
def _open_archive(path: str, _key: tuple[int, int]) -> _OpenArchive:
    file = zipfile.ZipFile(path)
    # macOS adds a shadow of every file.
    names = [name for name in file.namelist() if not name.startswith("__MACOSX/") and not name.endswith(".DS_Store")]
    files: dict[str, str] = {}
    folders: dict[str, set[str]] = collections.defaultdict(set)
    for name in names:
        child = path_inside = posixpath.normpath(name).lstrip("/")
        if path_inside in ("", ".") or path_inside.split("/")[0] == "..":
            continue
        while child:
            folder, child_name = posixpath.split(child)
            folders[folder].add(child_name)
            child = folder
        if name.endswith("/"):
            _ = folders[path_inside]
        else:
            files[path_inside] = name
    return _OpenArchive(file, files, dict(folders))


def locate(path: str | os.PathLike[str]) -> tuple[Files, str]:
    """(files, name) of a path, which may lead into a zip archive as into a folder: lines.zip/train.

    A folder that holds everything in an archive may be left out of the path. Raises FileNotFoundError for what is not
    there and ValueError for an archive that cannot be read.
    """
    path = os.fspath(path)
    outer = path.rstrip("/")
    while outer and not os.path.exists(outer):
        outer = os.path.dirname(outer)
    inner = path[len(outer) :].strip("/")
    if not os.path.isfile(outer) or not zipfile.is_zipfile(outer):
        if inner or not outer:
            raise FileNotFoundError(f"{path} does not exist")
        return Disk(), outer
    archive = Archive(outer, os.stat(outer).st_mtime_ns)
    try:
        tops = archive.children("")
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{outer} is a damaged zip archive: {error}") from error
    top = tops[0] if len(tops) == 1 and archive.is_folder(tops[0]) else ""
    for name in (inner, archive.join(top, inner)) if inner else (top,):
        if archive.is_file(name) or archive.is_folder(name):
            return archive, name
    raise FileNotFoundError(f"{outer} has no {inner}; it has {', '.join(archive.children(top)[:10])}")


def read_text(files: Files, name: str) -> str:
    """The content of a UTF-8 file; ValueError names the line that is not UTF-8."""
    content = files.read(name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{files.where(name)}: line {number} is not UTF-8 ({error.reason}); convert the file, as with iconv"
        ) from error


def read_lines(files: Files, name: str) -> Iterator[tuple[int, str]]:
    r"""(number from 1, line) of each line of a UTF-8 file that is not empty.

    Only \n and \r\n end a line: a text may hold one of the rarer separators of str.splitlines.
    """
    for number, line in enumerate(read_text(files, name).split("\n"), 1):
        if line.rstrip("\r"):
            yield number, line.rstrip("\r")


def open_image(files: Files, name: str) -> Image.Image:
    """An image as an upright RGB image. Raises ImageError."""
    where = files.where(name)
    try:
        content = files.read(name)
    except FileNotFoundError as error:
        raise ImageError(f"{where} does not exist") from error
    except OSError as error:
        raise ImageError(str(error)) from error
    except ValueError as error:  # no name that a file can have
        raise ImageError(f"{where!r} cannot be read: {error}") from error
    return load_rgb(io.BytesIO(content), name=where)
