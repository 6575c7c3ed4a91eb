"""Checkpoint folders, written whole: staged beside their place, moved there when complete, with a model card."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from trocr_jax.checkpoints import hub
from trocr_jax.checkpoints.safetensors_writer import DEFAULT_MAX_SHARD_SIZE
from trocr_jax.version import __version__

CARD_NAME = "README.md"
# By which a card of ours is known: one that a person wrote is never replaced.
_CARD_MARK = "<!-- written by trocr_jax; remove this line to keep the file as it is -->"
_WEIGHTS = re.compile(r"(model|flax_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

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
_USAGE = {
    "trocr_jax": 'import trocr_jax\n\nocr = trocr_jax.TrOCR.from_pretrained("path/to/this/folder")\n'
    'print(ocr("line.png").text)',
    "transformers": "from transformers import TrOCRProcessor, VisionEncoderDecoderModel\n\n"
    'processor = TrOCRProcessor.from_pretrained("path/to/this/folder")\n'
    'model = VisionEncoderDecoderModel.from_pretrained("path/to/this/folder")',
}


@contextlib.contextmanager
def whole_folder(output: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to write to that becomes `output` when all is written; if anything fails, `output` stays as it was.

    An output that exists keeps its other files, but not weights of an earlier save in the format that was written, nor
    does a card that a person wrote give way to ours. Raises FileExistsError if a file has that name.
    """
    target = pathlib.Path(output).absolute()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{output} is a file; name a folder to write to")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        staged = pathlib.Path(temporary) / target.name
        staged.mkdir()
        yield staged
        if not target.exists():
            staged.rename(target)
            return
        written = {path.name for path in staged.iterdir()}
        if CARD_NAME in written and not _is_ours(target / CARD_NAME):
            (staged / CARD_NAME).unlink()
        for path in sorted(staged.iterdir()):
            os.replace(path, target / path.name)
        kinds = {kind for name in written if (kind := _kind(name))}
        for path in target.iterdir():
            if path.name not in written and _kind(path.name) in kinds:
                path.unlink()


def _kind(name: str) -> str | None:
    """Which format a weights file is of, so that shards of an earlier save can be told; None for any other file."""
    match = _WEIGHTS.fullmatch(name)
    return match[1] if match else None


def _is_ours(card: pathlib.Path) -> bool:
    return not card.exists() or _CARD_MARK in card.read_text(encoding="utf-8", errors="replace")


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
        if not push_to_hub and (repo_id is not None or hub_options):
            raise ValueError(f"{', '.join(['repo_id', *hub_options])} need push_to_hub=True")
        repo_id = repo_id or pathlib.Path(folder).absolute().name
        if push_to_hub:
            hub.check_repo_id(repo_id)
        with whole_folder(folder) as staged:
            self.write_files(staged, max_shard_size=max_shard_size)
            written = sorted(path.name for path in staged.iterdir())
        if push_to_hub:
            hub.upload_folder(folder, repo_id, files=written, **hub_options)

    def push_to_hub(
        self, repo_id: str, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE, **hub_options: Any
    ) -> str:
        """Uploads what `save_pretrained` writes to the hub's repository `repo_id` and returns the commit's address.

        `hub_options` are token, private, revision, commit_message and create_pr. Raises ValueError for what cannot be a
        repository, OSError saying what to do if the hub does not take the files.
        """
        hub.check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / repo_id.rpartition("/")[2]  # whose name is the card's title
            folder.mkdir()
            self.write_files(folder, max_shard_size=max_shard_size)
            return hub.upload_folder(folder, repo_id, **hub_options)


def source_label(source: str | os.PathLike[str], folder: pathlib.Path) -> str:
    """How a card names what was read: "org/name@revision" for a hub id, else the last part of the path.

    `folder` is where `hub.local_folder` found it.
    """
    path = pathlib.Path(source)
    return path.absolute().name if path.exists() else f"{os.fspath(source)}@{folder.name}"


def write_card(
    folder: pathlib.Path, summary: str, hashes: Mapping[str, str], source: str, converted: pathlib.Path | None = None
) -> None:
    """Writes a card: what the checkpoint is, where it comes from and the SHA-256 of its weights.

    `source` is a `source_label`, empty for weights that were read from nowhere; `converted` is the file that they were
    converted from, whose hash is told too.
    """
    is_native = any(name.startswith(hub.NATIVE_NAME.partition(".")[0]) for name in hashes)
    library = "trocr_jax" if is_native else "transformers"
    repo_id, _, revision = source.partition("@")
    rows = sorted(hashes.items())
    if converted is not None:
        rows.append((f"{converted.name}, which this was converted from", _sha256(converted)))
    text = _CARD.format(
        library=library,
        base_model=f"base_model: {repo_id}\n" if revision else "",
        mark=_CARD_MARK,
        title=folder.name,
        summary=summary,
        version=__version__,
        origin=f"from {source}" if source else "from weights in memory",
        usage=_USAGE[library],
        rows="\n".join(f"| {file} | {digest} |" for file, digest in rows),
    )
    (folder / CARD_NAME).write_text(text, encoding="utf-8")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
