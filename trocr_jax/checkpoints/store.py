"""Weights on disk <-> canonical parameter trees: transformers' safetensors and .bin, and our native file.

Loading is strict four ways: a missing, unexpected, duplicate or misshapen parameter is an error, and all of them are
reported at once.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from trocr_jax.checkpoints import names
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.hub import ADAPTER_REASON, NATIVE_INDEX_NAME, NATIVE_NAME, WEIGHT_NAMES
from trocr_jax.checkpoints.names import Entry, Path, flatten, unflatten
from trocr_jax.checkpoints.torch_reader import LFS_POINTER, read_shards, read_torch_tensors
from trocr_jax.config import TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig

# What wrappers put before every name: torch's DataParallel, Lightning and others, torch.compile.
_TRAINER_PREFIXES = ("module.", "model.", "_orig_mod.")

Params = dict[str, Any]


def find_weights(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The weights file that a folder is read from: the native one, else safetensors, else torch's .bin."""
    folder = pathlib.Path(folder)
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds none of {list(WEIGHT_NAMES)}; pass the folder of a checkpoint")


def is_native(path: pathlib.Path) -> bool:
    """Whether a weights file is this library's own, whose names are the tree's paths."""
    return path.name in (NATIVE_NAME, NATIVE_INDEX_NAME)


def load_params(
    folder: str | os.PathLike[str], config: VisionEncoderDecoderConfig
) -> tuple[VisionEncoderDecoderConfig, Params]:
    """(configuration, canonical tree) of a checkpoint folder; leaves are numpy arrays in the dtype of the file.

    The configuration changes in two cases, as the reference's loading does: a tied head whose file holds another
    matrix is untied, with a warning; a cross width that old files leave out is the encoder's where no bridge is stored.
    Raises CheckpointError if names or shapes do not fit, FileNotFoundError if there are no weights.
    """
    path = find_weights(folder)
    return params_from(read_tensors(path), config, path)


def params_from(
    tensors: Mapping[str, np.ndarray], config: VisionEncoderDecoderConfig, path: pathlib.Path
) -> tuple[VisionEncoderDecoderConfig, Params]:
    """What `load_params` returns, of tensors that have been read from `path`."""
    if not is_native(path):
        tensors = without_trainer_prefix(tensors, path)
        config = _reconcile(config, tensors, path)
    return config, _tree(tensors, names.table(config), path)


def load_encoder(folder: str | os.PathLike[str], config: ViTConfig) -> Params:
    """The canonical tree of an encoder saved on its own; errors as in `load_params`."""
    path = find_weights(folder)
    return _tree(read_tensors(path), names.encoder_table(config), path)


def load_decoder(folder: str | os.PathLike[str], config: TrOCRConfig) -> tuple[TrOCRConfig, Params]:
    """(configuration, canonical tree) of a decoder saved on its own; changes and errors as in `load_params`."""
    path = find_weights(folder)
    tensors = read_tensors(path)
    config = _untied_if_different(config, tensors, path, prefix="")
    return config, _tree(tensors, names.decoder_table(config), path)


def _tree(tensors: Mapping[str, np.ndarray], entries: Iterable[Entry], path: pathlib.Path) -> Params:
    if is_native(path):
        return unflatten({tuple(name.split(".")): tensor for name, tensor in tensors.items()})
    return from_torch(tensors, entries, path)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors or torch file, or of the shards that an index lists; nothing is executed."""
    if path.name.endswith(".index.json"):
        return read_shards(path, read_tensors)
    if path.suffix != ".safetensors":
        return read_torch_tensors(path)
    try:
        tensors = safetensors.numpy.load_file(path)
        _check_named_once(path)
    except (safetensors.SafetensorError, KeyError, ValueError, MemoryError) as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        reason = "it is a pointer of Git LFS; fetch the weights with `git lfs pull`"
        reason = reason if is_pointer else f"{error}; download or export it again"
        raise CheckpointError(f"{path} cannot be read as safetensors: {reason}") from error
    except AttributeError as error:  # what the format's package raises for numbers of 8 bits and fewer
        raise CheckpointError(
            f"{path} holds numbers of a type that is not read ({error}); export it in float32, float16 or bfloat16"
        ) from error
    return tensors


def _check_named_once(path: pathlib.Path) -> None:
    """Raises ValueError if a header, which the format's package has read, names a tensor twice: it takes the last."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            twice = [name for name, count in collections.Counter(name for name, _ in pairs).items() if count > 1]
            raise ValueError(f"{twice[:5]} are stored more than once")
        return dict(pairs)

    json.loads(header, object_pairs_hook=once)


def check_not_adapters(tensors: Iterable[str], source: pathlib.Path) -> None:
    """Raises CheckpointError if these names are of the adapters of a fine-tune rather than of a model."""
    if any(".lora_" in name for name in tensors):
        raise CheckpointError(f"{source} {ADAPTER_REASON}")


def without_trainer_prefix(tensors: Mapping[str, np.ndarray], source: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a whole model without the word that a trainer put before every name, if there is one.

    Raises CheckpointError naming `source` for the adapters of a fine-tune, which are no model by themselves.
    """
    check_not_adapters(tensors, source)
    for prefix in _TRAINER_PREFIXES:
        parts = tuple(f"{prefix}{part}" for part in ("encoder.", "decoder.", "enc_to_dec_proj."))
        if tensors and all(name.startswith(parts) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _reconcile(
    config: VisionEncoderDecoderConfig, tensors: Mapping[str, np.ndarray], path: pathlib.Path
) -> VisionEncoderDecoderConfig:
    if config.has_bridge and "enc_to_dec_proj.weight" not in tensors:
        decoder = config.decoder.replace(cross_attention_hidden_size=config.encoder.hidden_size)
        config = config.replace(decoder=decoder)
    decoder = _untied_if_different(config.decoder, tensors, path, prefix="decoder.")
    return config.replace(decoder=decoder)


def _untied_if_different(
    config: TrOCRConfig, tensors: Mapping[str, np.ndarray], path: pathlib.Path, *, prefix: str
) -> TrOCRConfig:
    # names.py lists whole models' names; a decoder on its own has them without the first word.
    head, embedding = (
        tensors.get(prefix + name.removeprefix("decoder.")) for name in (names.TIED_HEAD, names.EMBEDDING)
    )
    if not config.tie_word_embeddings or head is None or embedding is None or np.array_equal(head, embedding):
        return config
    warnings.warn(
        f"{path}: the configuration ties the head to the embeddings, but the file holds two different matrices; "
        "they are kept apart, as transformers does",
        stacklevel=2,
    )
    return config.replace(tie_word_embeddings=False)


def from_torch(tensors: Mapping[str, np.ndarray], entries: Iterable[Entry], source: str | os.PathLike[str]) -> Params:
    """Torch tensors by name -> canonical tree, in the tensors' dtypes. Raises CheckpointError naming `source`."""
    entries = list(entries)
    head_names = {name for name in (names.TIED_HEAD, names.TIED_HEAD.removeprefix("decoder.")) if name in tensors}
    is_tied = not any(name in entry.names for entry in entries for name in head_names)
    leaves: dict[Path, np.ndarray] = {}
    problems: list[str] = []
    used = set(head_names) if is_tied else set()
    for entry in entries:
        found = [name for name in entry.names if name in tensors]
        if not found and is_tied and entry.path[-2:] == ("embed_tokens", "embedding"):
            found = sorted(head_names)  # of two tied matrices a file may hold either
        used |= set(found)
        if not found:
            problems.append(f"- {entry.names[0]}")
        elif len(found) > 1:
            problems.append(f"! {found[0]} is stored twice, also as {', '.join(found[1:])}")
        else:
            tensor = tensors[found[0]]
            ndim = {"linear": 2, "conv": 4}.get(entry.transform, tensor.ndim)
            if tensor.ndim != ndim:
                problems.append(f"! {found[0]} has shape {tensor.shape}; {ndim} axes were expected")
            else:
                leaves[entry.path] = entry.to_flax(tensor)
    problems += [f"+ {name}" for name in sorted(tensors.keys() - used) if names.ignored_reason(name) is None]
    _raise_if(problems, source)
    return unflatten(leaves)


def to_torch(params: Mapping[str, Any], entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """Canonical tree -> torch tensors under v4's names, in the leaves' dtypes; views, as far as numpy arrays go."""
    leaves = flatten(params)
    return {entry.names[0]: entry.to_torch(np.asarray(leaves[entry.path])) for entry in entries}


def check_tree(
    params: Mapping[str, Any],
    abstract: Mapping[str, Any],
    source: str | os.PathLike[str],
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Raises CheckpointError listing every leaf that is missing, unexpected, misshapen or not finite.

    `abstract` is the tree that the configuration asks for; `progress` is told the bytes of each leaf looked at.
    """
    given, wanted = flatten(params), flatten(abstract)
    problems = [f"- {'.'.join(path)}" for path in sorted(wanted.keys() - given.keys())]
    problems += [f"+ {'.'.join(path)}" for path in sorted(given.keys() - wanted.keys())]
    for path in sorted(given.keys() & wanted.keys()):
        problem = _leaf_problem(given[path], wanted[path].shape)
        problems += [f"! {'.'.join(path)} {problem}"] if problem else []
        if progress is not None:
            progress(given[path].nbytes)
    _raise_if(problems, source)


def _leaf_problem(leaf: np.ndarray, shape: tuple[int, ...]) -> str | None:
    if leaf.shape != shape:
        return f"has shape {leaf.shape}; the configuration asks for {shape}"
    if not np.issubdtype(leaf.dtype, np.floating) and leaf.dtype.name != "bfloat16":
        return f"holds {leaf.dtype}; floating-point numbers were expected"
    count = leaf.size - np.count_nonzero(np.isfinite(leaf))
    # One such number would make every text of the model empty or wrong, without a word.
    return (
        f"holds {count} numbers that are not finite: the file is damaged, or the training diverged" if count else None
    )


def _raise_if(problems: list[str], source: str | os.PathLike[str]) -> None:
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise CheckpointError(
            f"{source} does not fit its configuration (- missing, + unexpected, ! wrong):\n  " + "\n  ".join(shown)
        )


def to_native(params: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical tree -> its leaves under the names that the native file has."""
    return {".".join(path): leaf for path, leaf in flatten(params).items()}
