"""Writes safetensors files one tensor at a time.

The format's own package wants every tensor in memory and contiguous, which for a transposed tree means a second copy of
the model. The bytes are the same as that package's: a length, a JSON header, then the tensors, sorted by dtype and
name.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trocr_jax.config import write_json
from trocr_jax.replacing import replacing

DEFAULT_MAX_SHARD_SIZE = "5GB"

# In the order that the format's package writes them in.
_DTYPE_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Progress = Callable[[int], Any]


def save_weights(
    tensors: Mapping[str, Any],
    folder: pathlib.Path,
    name: str,
    *,
    format_name: str,
    max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Writes tensors to `folder`/`name`, or to shards and their index if they exceed the size; returns SHA-256 by file.

    Shards are named and indexed as transformers does: "model-00001-of-00002.safetensors", "model.safetensors.index
    .json". `format_name` is what the header says the numbers are for ("pt", "flax"). Weights are rounded to `dtype` one
    by one where it is given. `progress` is told the bytes of each tensor written. Raises ValueError for a number that
    the dtype cannot hold.
    """
    shards = _split(tensors, parse_size(max_shard_size), dtype)
    if len(shards) == 1:
        return {name: _save_file(tensors, folder / name, format_name, dtype, progress)}
    stem = name.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        shard = f"{stem}-{i:05}-of-{len(shards):05}.safetensors"
        part = {name: tensors[name] for name in names}
        hashes[shard] = _save_file(part, folder / shard, format_name, dtype, progress)
        weight_map |= dict.fromkeys(names, shard)
    total = sum(_num_bytes(tensor, dtype) for tensor in tensors.values())
    write_json(folder / f"{name}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return hashes


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 5_000_000, "5GB" (10**9) or "4GiB" (2**30). Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or int(match[1]) == 0:
        raise ValueError(f'the size {size!r} is not a number of bytes; write it as 5000000 or "5GB"')
    return int(match[1]) * unit


def round_to(tensor: Any, dtype: str | None, name: str) -> np.ndarray:
    """The tensor as a contiguous numpy array, rounded to `dtype` if that is given; ValueError if a number is too large.

    `name` is for the error.
    """
    array = np.asarray(tensor)
    if dtype is None or array.dtype == np.dtype(dtype):
        return np.require(array, requirements=["C_CONTIGUOUS"])
    with np.errstate(over="ignore"):  # told below, with a name
        rounded = np.ascontiguousarray(array.astype(np.dtype(dtype)))
    if not np.isfinite(rounded).all():
        largest = float(np.abs(array.astype(np.float64)).max())
        advice = "choose bfloat16" if dtype == "float16" else "keep the dtype they are stored in"
        raise ValueError(f"{name} holds numbers up to {largest:.3g}, which {dtype} cannot hold; {advice}")
    return rounded.reshape(array.shape)


def _num_bytes(tensor: Any, dtype: str | None) -> int:
    return tensor.size * np.dtype(dtype or tensor.dtype).itemsize


def _split(tensors: Mapping[str, Any], limit: int, dtype: str | None) -> list[list[str]]:
    """The names in order, in shards of at most `limit` bytes; a tensor larger than that has one of its own."""
    shards: list[list[str]] = [[]]
    free = limit
    for name, tensor in tensors.items():
        size = _num_bytes(tensor, dtype)
        if shards[-1] and size > free:
            shards.append([])
            free = limit
        shards[-1].append(name)
        free -= size
    return shards


def _save_file(
    tensors: Mapping[str, Any], path: pathlib.Path, format_name: str, dtype: str | None, progress: Progress | None
) -> str:
    """Writes one file, to a temporary name first, and returns its SHA-256."""
    kinds = {name: str(np.dtype(dtype or tensor.dtype)) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (list(_DTYPE_NAMES).index(kinds[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": format_name}}
    end = 0
    for name in order:
        start, end = end, end + _num_bytes(tensors[name], dtype)
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPE_NAMES[kinds[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors behind it are aligned
    digest = hashlib.sha256()
    with replacing(path) as partial, partial.open("wb") as file:
        for part in (struct.pack("<Q", len(text)), text):
            digest.update(part)
            file.write(part)
        for name in order:
            raw = round_to(tensors[name], dtype, name).reshape(-1).view(np.uint8).data
            digest.update(raw)
            file.write(raw)
            if progress is not None:
                progress(len(raw))
    return digest.hexdigest()
