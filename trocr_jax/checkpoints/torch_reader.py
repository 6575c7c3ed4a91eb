"""Reads the files of torch.save (.bin, .pt) as numpy arrays, without torch and without executing anything.

Two formats are read: the zip archive of torch >= 1.6, and the older sequence of pickles and raw storages. Storages are
not copied: tensors are read-only views of the memory-mapped file, which must not change while they are in use. Reading
a file takes memory in proportion to its size, whatever it says about sizes inside.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.torch_archive import Archive
from trocr_jax.checkpoints.torch_objects import Stub, quote
from trocr_jax.checkpoints.torch_pickle import MAX_BYTES, read_pickle
from trocr_jax.checkpoints.torch_tensors import DTYPES, Rebuilder, Storage, kind_of, parse_identifier
from trocr_jax.config import read_json

_STATE_DICTS = ("model", "state_dict", "module", "model_state_dict")  # fairseq, Lightning, DeepSpeed, torch's tutorials
LFS_POINTER = b"version https://git-lfs"
# The older format's first two pickles.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """What a file of torch.save holds.

    content: dicts, lists, tuples, sets, numbers, strings, bytes and None as they are (an OrderedDict or defaultdict is
    a dict); read-only numpy arrays for tensors and parameters; Stub for everything else.
    """

    path: pathlib.Path
    content: Any


def read_torch(path: str | os.PathLike[str]) -> TorchFile:
    """The content of a file of torch.save, its tensors as views of the memory-mapped file.

    Raises CheckpointError if the file is of another kind, damaged or hostile; FileNotFoundError if there is none.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            return TorchFile(path, _read(file))
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read as a file of torch.save: {error}. "
            "Download it again, or save the model's state_dict with torch.save or as safetensors"
        ) from error


def read_torch_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a .bin or .pt file by name, or of the shards that a pytorch_model.bin.index.json lists."""
    path = pathlib.Path(path)
    if path.name.endswith(".index.json"):
        return read_shards(path, read_torch_tensors)
    return tensors(read_torch(path).content, path)


def tensors(content: Any, source: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The state dict in the content of a file: the content itself, or its entry of a name in _STATE_DICTS.

    Arrays that lie unaligned in the file (the older format's do) are copied. Raises CheckpointError naming `source`.
    """
    places = {"the file": content}
    if isinstance(content, dict):
        places |= {f"its entry {key!r}": content[key] for key in _STATE_DICTS if key in content}
    found = {place: value for place, value in places.items() if _is_state_dict(value)}
    if len(found) > 1:
        raise CheckpointError(f"{source}: {' and '.join(found)} hold tensors by name; save only one state dict")
    if not found:
        reasons = "; ".join(f"{place} {_why_not(value)}" for place, value in places.items())
        raise CheckpointError(f"{source} has no dict of names and tensors ({reasons}); save model.state_dict()")
    (state_dict,) = found.values()
    return {name: np.require(tensor, requirements=["ALIGNED"]) for name, tensor in state_dict.items()}


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in value.items())
    )


def _why_not(value: Any) -> str:
    if not isinstance(value, dict):
        return f"is {value!r}" if isinstance(value, Stub) else f"is {quote(value)}"
    others = [name for name, tensor in value.items() if not isinstance(tensor, np.ndarray)]
    return f"also holds {', '.join(map(quote, others[:5]))}" if others else "is empty or has names that are not strings"


def read_shards(index: pathlib.Path, read: Callable[[pathlib.Path], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of all files that an index of shards lists, each read by `read`.

    Raises CheckpointError for an index that is not one, and for shards elsewhere, missing, overlapping or incomplete.
    """
    try:
        weight_map = read_json(index).get("weight_map")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error}); download it again") from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; download it again")
    content: dict[str, np.ndarray] = {}
    for shard in sorted(set(weight_map.values())):
        part = read(_shard_path(index, shard))
        if twice := sorted(content.keys() & part.keys()):
            raise CheckpointError(f"{index}: {twice[:5]} are stored in more than one shard; download the shards again")
        content |= part
    if lost := sorted(weight_map.keys() - content.keys()):
        raise CheckpointError(f"{index} lists {lost[:5]}, which no shard holds; download the shards again")
    return content


def _shard_path(index: pathlib.Path, shard: str) -> pathlib.Path:
    # An index among the shards could name itself, and be read for ever.
    is_beside = shard not in ("", ".", "..") and not set(shard) & set("\\/:\0")
    if not is_beside or shard.endswith(".index.json"):
        raise CheckpointError(f"{index} names the shard {quote(shard)}, which is not a weights file beside it")
    if not (index.parent / shard).is_file():
        raise CheckpointError(f"{index} names the shard {quote(shard)}, which is missing; download it again")
    return index.parent / shard


def _read(file: BinaryIO) -> Any:
    """The content of an open file. Raises ValueError without its name."""
    start = file.read(512)
    if not start:
        raise ValueError("it is empty")
    raw = np.asarray(np.memmap(file, np.uint8, mode="r"))
    if start.startswith(b"PK"):
        return _read_zip(Archive(file, raw))
    if start[257:262] == b"ustar":
        raise ValueError("it has the tar format of torch before 0.1.10, which is not read; load and save it with torch")
    if start.startswith(LFS_POINTER):
        raise ValueError("it is a pointer of Git LFS; fetch the weights with `git lfs pull`")
    return _read_older(raw)


def _read_zip(archive: Archive) -> Any:
    pickles = [name for name in archive.members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it is a zip archive with {len(pickles)} data.pkl, where torch writes one in a folder")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.members:
        raise ValueError("it is a TorchScript program")
    order = archive.read(f"{folder}byteorder").tobytes() if f"{folder}byteorder" in archive.members else b"little"
    if order != b"little":
        raise ValueError(f"its numbers have the byte order {quote(order)}; only little-endian files are read")
    if archive.members[pickles[0]].file_size > MAX_BYTES:
        raise ValueError(f"its pickle has more than {MAX_BYTES} bytes")
    located: dict[str, tuple[np.ndarray, str]] = {}

    def load(identifier: Any) -> Storage:
        storage = parse_identifier(identifier, 5)
        if storage.key not in located:
            located[storage.key] = archive.read(f"{folder}data/{storage.key}"), storage.dtype
        return storage.located(*located[storage.key])

    stream = io.BytesIO(archive.read(pickles[0]).tobytes())
    return read_pickle(stream, Rebuilder(archive.raw.nbytes).calls, load)


def _read_older(raw: np.ndarray) -> Any:
    """The content of: magic number, protocol, system, object, keys of storages (five pickles), then the storages.

    The object comes before its storages, whose places depend on the dtypes that it names: it is read twice.
    """
    stream = io.BytesIO(raw[:MAX_BYTES].tobytes())
    _check_preamble(stream)
    start = stream.tell()
    announced: dict[str, Storage] = {}

    def announce(identifier: Any) -> Stub:
        if _is_module(identifier):
            return identifier[1]
        storage = parse_identifier(identifier, 6)
        return announced.setdefault(storage.key, storage)

    def load(identifier: Any) -> Stub:
        if _is_module(identifier):
            return identifier[1]
        storage = parse_identifier(identifier, 6)
        storage = storage.located(located[storage.key], announced[storage.key].dtype)
        return _part(storage, located[storage.key], identifier[5])

    calls = Rebuilder(raw.nbytes).calls
    read_pickle(stream, calls, announce)
    keys = read_pickle(stream, {})
    located = _locate(raw, stream.tell(), keys, announced)
    stream.seek(start)
    return read_pickle(stream, calls, load)


def _check_preamble(stream: io.BytesIO) -> None:
    try:
        magic = read_pickle(stream, {})
    except ValueError as error:
        raise ValueError("it is neither a zip archive nor in torch's older format") from error
    if type(magic) is not int or magic != _MAGIC:
        raise ValueError("it is neither a zip archive nor in torch's older format")
    protocol, system = read_pickle(stream, {}), read_pickle(stream, {})
    if type(protocol) is not int or protocol != _PROTOCOL:
        raise ValueError(f"it has another version of torch's older format than {_PROTOCOL}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not in little-endian byte order, which alone is read")


def _is_module(identifier: Any) -> bool:
    """Whether a persistent id of the older format is ("module", class, file, source code): the class, a stub."""
    return kind_of(identifier, 4) == "module" and isinstance(identifier[1], Stub)


def _locate(raw: np.ndarray, start: int, keys: Any, announced: Mapping[str, Storage]) -> dict[str, np.ndarray]:
    """The storages' bytes by key, which lie one after another, each behind its count of elements."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is not one")
    if len(keys) != len(set(keys)) or set(keys) != announced.keys():
        raise ValueError("its list of storages is not that of its pickle")
    located = {}
    for key in keys:
        storage = announced[key]
        header, start = raw[start : start + 8].tobytes(), start + 8
        if len(header) < 8 or raw.nbytes - start < storage.size:
            raise ValueError(f"it ends within the storage {quote(key)}; it is incomplete")
        (count,) = struct.unpack("<q", header)
        if count != storage.count:
            raise ValueError(f"its storage {quote(key)} has {count} elements instead of {storage.count}")
        located[key] = raw[start : start + storage.size]
        start += storage.size
    return located


def _part(storage: Storage, raw: np.ndarray, view: Any) -> Storage:
    """The storage, or the part of it that (key, offset, size) describes, counted in elements."""
    if view is None:
        return storage
    numbers = view[1:] if type(view) is tuple and len(view) == 3 else ()
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("its pickle has a part of a storage without offset and size")
    offset, count = numbers
    if offset + count > storage.count:
        raise ValueError(f"its pickle has a part of the storage {quote(storage.key)} that reaches beyond it")
    item = DTYPES[storage.dtype].itemsize
    return dataclasses.replace(storage, count=count, raw=raw[offset * item : (offset + count) * item])
