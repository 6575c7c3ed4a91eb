"""The output file of a long run: one line of JSON a result, only ever added to, so that a crash leaves a beginning.

What a line belongs to is told by the image's path as it was given; where a path is given several times, the first
lines of it belong to the first times. A line that says why an image could not be read is a line like any other.

A process that is killed, by SIGKILL too, loses nothing that it wrote: that is the system's already. When the power
fails, the lines of the last second or so may go with it; what is behind the last complete line is not believed.
"""

from __future__ import annotations

import collections
import errno
import fcntl
import json
import os
import pathlib
import time
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trocr_jax.printing import to_json_line
from trocr_jax.replacing import make_folder
from trocr_jax.results import SCHEMA_VERSION, Recognition
from trocr_jax.sources import Shard, share

SYNC_SECONDS = 1.0
# What every line begins with. A last line that is cut off is dropped only if it may be one of ours.
_BEGINNING = b'{"schema": '


class Journal:
    """An output file that this process alone adds to.

    `num_errors` of the lines that were there already are of images that could not be read. `done_elsewhere` counts the
    lines of each path that other files have in place of this one.

    Raises FileExistsError if the file has content and `resume` is not set, BlockingIOError if another process writes
    it, ValueError if it holds anything but results, OSError if it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        done_elsewhere: collections.Counter[str] | None = None,
    ) -> None:
        self.path = pathlib.Path(path)
        make_folder(self.path.parent, "--output")
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path} is no regular file: leave --output out to print results instead")
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._lock()
            self._check(resume)
            self._done, self.num_errors, end = read_lines(self.path)
            self._file.truncate(end)
            _sync_folder(self.path.parent)
        except BaseException:
            self._file.close()
            raise
        self._elsewhere = collections.Counter(done_elsewhere)
        self._synced = time.monotonic()
        self.num_late = 0
        self.num_absent = 0

    def _check(self, resume: bool) -> None:
        if self.path.stat().st_size > 0 and not resume:
            raise FileExistsError(
                f"{self.path} exists: pass --resume to go on behind its last line, or remove it to start anew"
            )

    def _lock(self) -> None:
        # The kernel lets go of the lock when the process ends, however it ends.
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{self.path} is being written by another process: wait for it, or choose another --output"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            warnings.warn(f"{self.path} cannot be locked there: see that no other process writes it", stacklevel=3)

    def pending(self, images: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Those (number, path) that have no line yet, in their order.

        When it ends, `num_absent` lines are of images that were not among them, and `num_late` lines are of images that
        came behind one without a line: neither happens unless the input, or the file, is another than before.
        """
        left, has_begun = self._done + self._elsewhere, False
        for number, path in images:
            if left[path] > 0:
                left[path] -= 1
                self.num_late += has_begun
            else:
                has_begun = True
                yield number, path
        self.num_absent = left.total()

    def notes(self) -> list[str]:
        """What a user should know of an input that is another than before, once `pending` has ended."""
        notes = []
        if self.num_absent:
            notes.append(
                f"lines of {self.num_absent} images that are not in the input stand in {self.path} (or its shards)"
            )
        if self.num_late:
            notes.append(
                f"images without a line, as new ones are, stood in front of {self.num_late} that were read earlier: "
                f"their lines are at the end of {self.path}"
            )
        return notes

    def interrupted(self, *, can_resume: bool) -> str:
        """What a user should know of a run that is ended now."""
        with self.path.open("rb") as file:
            num_lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        if not num_lines:
            return "interrupted before the first line; the same command starts anew"
        advice = ", and the same command with --resume goes on behind them" if can_resume else ""
        return f"interrupted; {self.path} has {num_lines} lines{advice}"

    def write(self, result: Recognition) -> None:
        """Adds the result's line, whole, before it returns."""
        rest = memoryview(to_json_line(result).encode() + b"\n")
        while rest:
            rest = rest[self._file.write(rest) :]
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Writes through to the disk and lets the file go."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: pathlib.Path) -> tuple[collections.Counter[str], int, int]:
    """(lines of each image's path, how many of all are errors, where in the file the last complete line ends).

    Raises ValueError for content that is not ours.
    """
    done: collections.Counter[str] = collections.Counter()
    num_errors = end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                # Behind a power failure there may be zeros.
                if not line.rstrip(b"\0").startswith(_BEGINNING) and not _BEGINNING.startswith(line.rstrip(b"\0")):
                    raise ValueError(f"{path} ends with {line[:40]!r}, which is no beginning of a result: remove that")
                break
            content = _parsed(line)
            if content is None:
                raise ValueError(
                    f"line {number} of {path} is not a result of schema {SCHEMA_VERSION}: choose another --output, or "
                    "delete that line to have its image read again"
                )
            done[content["source"]] += 1
            num_errors += content["error"] is not None
            end += len(line)
    return done, num_errors, end


def open_journal(path: str | os.PathLike[str], images: Iterable[str], shard: Shard | None, *, resume: bool) -> Journal:
    """The journal at `path`, or a shard's beside it, named after both (see `shard_path`).

    A resumed shard leaves out images that lines of another shard's file are of: see `moved_to`.
    """
    if shard is None:
        return Journal(path, resume=resume)
    moved = moved_to(shard, path, images) if resume and isinstance(images, Sequence) else None
    return Journal(shard_path(path, shard), resume=resume, done_elsewhere=moved)


def shard_path(path: str | os.PathLike[str], shard: Shard) -> pathlib.Path:
    """results.jsonl -> results-00001-of-00004.jsonl for shard (1, 4).

    Raises ValueError where there are files of a split into another number: each image would be read again.
    """
    whole = pathlib.Path(path)
    index, count = shard
    others = [found.name for found in _shard_files(whole) if not found.stem.endswith(f"-of-{count:05}")]
    if others:
        raise ValueError(f"{whole.parent} holds {others[0]}: go on with as many shards, or choose another --output")
    return whole.with_name(f"{whole.stem}-{index:05}-of-{count:05}{whole.suffix}")


def moved_to(shard: Shard, path: str | os.PathLike[str], images: Sequence[str]) -> collections.Counter[str]:
    """Lines of this shard's images, counted by path, that other shards' files hold beyond what is their share.

    There are none unless the input has changed since: then places have moved, and with them the shares.
    """
    moved: collections.Counter[str] = collections.Counter()
    for index in set(range(shard[1])) - {shard[0]}:
        other = shard_path(path, (index, shard[1]))
        if other.exists():
            moved += read_lines(other)[0] - _counted(images, (index, shard[1]))
    return moved & _counted(images, shard)


def _counted(images: Sequence[str], shard: Shard) -> collections.Counter[str]:
    return collections.Counter(image for _, image in share(images, shard))


def _shard_files(whole: pathlib.Path) -> list[pathlib.Path]:
    digits = "[0-9]" * 5
    pattern = f"{_escaped(whole.stem)}-{digits}-of-{digits}{_escaped(whole.suffix)}"
    return sorted(whole.parent.glob(pattern))


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    is_result = isinstance(content, dict) and content.get("schema") == SCHEMA_VERSION
    return content if is_result and isinstance(content.get("source"), str) and "error" in content else None


def _sync_folder(folder: pathlib.Path) -> None:
    """Writes a new file's name through to the disk; its content alone would be a file without a name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
