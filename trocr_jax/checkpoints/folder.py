"""Checkpoint folders, written whole: staged beside their place, moved there when complete, with a model card."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from trocr_jax.checkpoints import hub
from trocr_jax.checkpoints.safetensors_writer import DEFAULT_MAX_SHARD_SIZE
from trocr_jax.version import __version__

CARD_NAME = "README.md"
# By which a card of ours is known: one that a person wrote is never replaced.
CARD_MARK = "<!-- written by trocr_jax; remove this line to keep the file as it is -->"

_CARD = """\
---
library_name: {library}
pipeline_tag: image-to-text
{base_model}tags:
- trocr
- ocr
---
{mark}

# {title}

A TrOCR checkpoint (Li et al., [arXiv 2109.10282](https://arxiv.org/abs/2109.10282)): {summary}.

Written by trocr_jax {version} {origin}. Its licence, its training data and its accuracy are those of its source:
describe them here before you publish it.

```python
{usage}
```

| file | SHA-256 |
|---|---|
{rows}
"""
USAGE = """\
import trocr_jax

ocr = trocr_jax.TrOCR.from_pretrained("path/to/this/folder")
print(ocr("line.png").text)"""
USAGE_OF_PART = """\
import trocr_jax

model = trocr_jax.{name}.from_pretrained("path/to/this/folder")"""
USAGE_IN_TORCH = """\
from transformers import TrOCRProcessor, VisionEncoderDecoderModel

processor = TrOCRProcessor.from_pretrained("path/to/this/folder")
model = VisionEncoderDecoderModel.from_pretrained("path/to/this/folder")"""

UNFINISHED = ".trocr_jax-"  # how names of folders begin that are being written

# What may be told to the hub with a push; see `hub.upload_folder`.
_HUB_OPTIONS = frozenset(("token", "private", "revision", "commit_message", "create_pr"))


class Source(NamedTuple):
    """What weights were read from, as a card tells it: a hub id and its revision, or the last part of a path."""

    name: str
    revision: str = ""

    @classmethod
    def of(cls, source: str | os.PathLike[str], folder: pathlib.Path) -> Source:
        """The source that a caller named and `hub.local_folder` found in `folder`."""
        path = pathlib.Path(source)
        return cls(path.absolute().name) if path.exists() else cls(os.fspath(source), folder.name)

    def __str__(self) -> str:
        return f"{self.name}, revision {self.revision}" if self.revision else self.name


def check_output(output: str | os.PathLike[str]) -> pathlib.Path:
    """The folder that a name means, links followed. Raises ValueError for no name, FileExistsError for a file."""
    if not os.fspath(output):
        raise ValueError("the output has no name; pass the folder to write to")
    target = pathlib.Path(output).resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{output} is a file; name a folder to write to")
    return target


def remove_unfinished(output: pathlib.Path) -> None:
    """Removes what processes that were killed left of `whole_folder` in a folder that no other writes to."""
    for leftover in output.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(output: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to write to whose files become `output`'s when all are written.

    A new output appears at once. One that exists gets the files one by one, each whole, weights last; it keeps its
    others, but not those that would be read beside or instead of what was written (weights, tokenizer or preprocessing
    of an earlier save), nor does a card that a person wrote give way to ours. As long as writing goes on nothing of it
    changes. Raises as `check_output` does, and IsADirectoryError where a folder has a file's name.
    """
    target = check_output(output)
    is_new = not target.exists()
    # Inside a folder that exists, which may be the only place to write to, or a volume of its own.
    place = target.parent if is_new else target
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=place) as temporary:
        staged = pathlib.Path(temporary) / (target.name or "root")
        staged.mkdir()
        yield staged
        if is_new:
            staged.rename(target)
        else:
            _move(staged, target)


def _move(staged: pathlib.Path, target: pathlib.Path) -> None:
    written = {path.name for path in staged.iterdir()}
    for name in written:
        if (target / name).is_dir():
            raise IsADirectoryError(f"{target / name} is a folder, where a file has to be written; move it away")
    if CARD_NAME in written and not _is_ours(target / CARD_NAME):
        (staged / CARD_NAME).unlink()
    there = {path.name for path in target.iterdir() if path.is_file()}
    stale = hub.stale_files(there, written)
    # An index counts only where no whole file is there, so that this order never shows one without its shards.
    for path in sorted(staged.iterdir(), key=lambda path: ("safetensors" in path.name, path.suffix == ".json", path)):
        os.replace(path, target / path.name)
    for name in stale:
        (target / name).unlink()


def _is_ours(card: pathlib.Path) -> bool:
    return not card.exists() or CARD_MARK in card.read_text(encoding="utf-8", errors="replace")


class Saved:
    """What is saved as a folder, and pushed to the hub, by the files that its method `write_files` writes."""

    def write_files(self, folder: pathlib.Path, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE) -> None:
        """Writes what belongs to this object into a folder that exists, one file after another."""
        raise AssertionError("every class has its own")

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub_options: Any,
    ) -> None:
        """Writes a complete folder, which `from_pretrained` reads the same bits from.

        It appears when all is written; one that exists keeps its other files. Beside weights, configurations,
        preprocessing and tokenizer, as far as there are any, models write a card with the hashes of their weights.
        Weights of more than `max_shard_size` (a number of bytes, or "5GB") are split. With `push_to_hub` the files are
        uploaded as well, to `repo_id` or a repository of the folder's name, with the options of the method of that
        name. Raises ValueError for options that do not fit, FileExistsError if a file has the folder's name.
        """
        _check_hub_options(hub_options)
        given = [*(["repo_id"] if repo_id is not None else []), *hub_options]
        if given and not push_to_hub:
            raise ValueError(f"{', '.join(given)} given without push_to_hub=True")
        repo_id = repo_id or check_output(folder).name
        if push_to_hub:
            hub.check_repo_id(repo_id)
        with whole_folder(folder) as staged:
            self.write_files(staged, max_shard_size=max_shard_size)
            written = sorted(path.name for path in staged.iterdir())
        if push_to_hub:
            hub.upload_folder(folder, repo_id, files=written, yields={CARD_NAME: CARD_MARK}, **hub_options)

    def push_to_hub(
        self, repo_id: str, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE, **hub_options: Any
    ) -> str:
        """Uploads what `save_pretrained` writes to the hub's repository `repo_id` and returns the commit's address.

        `hub_options` are token, private, revision, commit_message and create_pr. Raises ValueError for what cannot be a
        repository, OSError saying what to do if the hub does not take the files.
        """
        _check_hub_options(hub_options)
        hub.check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / repo_id.rpartition("/")[2]  # whose name is the card's title
            folder.mkdir()
            self.write_files(folder, max_shard_size=max_shard_size)
            return hub.upload_folder(folder, repo_id, yields={CARD_NAME: CARD_MARK}, **hub_options)


def _check_hub_options(options: Mapping[str, Any]) -> None:
    if unknown := sorted(options.keys() - _HUB_OPTIONS):
        raise TypeError(f"unknown options {unknown}; beside max_shard_size there are {sorted(_HUB_OPTIONS)}")


def write_card(
    folder: pathlib.Path,
    summary: str,
    hashes: Mapping[str, str],
    source: Source | None,
    *,
    usage: str,
    converted: Iterable[pathlib.Path] = (),
) -> None:
    """Writes a card: what the checkpoint is, where it comes from, how it is loaded, and the SHA-256 of its weights.

    `source` is None for weights that were read from nowhere; `converted` are the files that they were converted from,
    whose hashes are told too.
    """
    is_native = any(name.startswith(hub.NATIVE_NAME.partition(".")[0]) for name in hashes)
    rows = sorted(hashes.items())
    rows += [(f"{path.name}, which this was converted from", _sha256(path)) for path in converted]
    text = _CARD.format(
        library="trocr_jax" if is_native else "transformers",
        base_model=f"base_model: {source.name}\n" if source is not None and source.revision else "",
        mark=CARD_MARK,
        title=folder.name,
        summary=summary,
        version=__version__,
        origin="from weights in memory" if source is None else f"from {source}",
        usage=usage,
        rows="\n".join(f"| {file} | {digest} |" for file, digest in rows),
    )
    (folder / CARD_NAME).write_text(text, encoding="utf-8")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
