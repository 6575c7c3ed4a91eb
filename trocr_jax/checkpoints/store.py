"""Weights on disk <-> canonical parameter trees: transformers' safetensors and .bin, and our native file.

Loading is strict four ways: a missing, unexpected, duplicate or misshapen parameter is an error, and all of them are
reported at once.
"""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from trocr_jax.checkpoints import names
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.hub import NATIVE_NAME, WEIGHT_NAMES
from trocr_jax.checkpoints.names import Entry, Path, flatten, unflatten
from trocr_jax.checkpoints.torch_reader import read_shards, read_torch_tensors
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
    raise FileNotFoundError(f"{folder} holds none of {list(WEIGHT_NAMES)}")


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
    if path.name != NATIVE_NAME:
        tensors = without_trainer_prefix(tensors)
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
    if path.name == NATIVE_NAME:  # whose names are the tree's own paths
        return unflatten({tuple(name.split(".")): tensor for name, tensor in tensors.items()})
    return from_torch(tensors, entries, path)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors or torch file, or of the shards that an index lists; nothing is executed."""
    if path.name.endswith(".index.json"):
        return read_shards(path, read_tensors)
    if path.suffix != ".safetensors":
        return read_torch_tensors(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); download or export it again") from error


def without_trainer_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a whole model without the word that a trainer put before every name, if there is one.

    Raises CheckpointError for the adapters of a fine-tune, which are no model by themselves.
    """
    if any(".lora_" in name for name in tensors):
        raise CheckpointError(
            "the file holds LoRA adapters, not a model: merge them into their base first (peft: merge_and_unload)"
        )
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
    """Canonical tree -> torch tensors under v4's names, in the leaves' dtypes."""
    leaves = flatten(params)
    return {entry.names[0]: np.ascontiguousarray(entry.to_torch(np.asarray(leaves[entry.path]))) for entry in entries}


def check_shapes(params: Mapping[str, Any], abstract: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Raises CheckpointError listing every leaf that is missing, unexpected or misshapen against the abstract tree."""
    given, wanted = flatten(params), flatten(abstract)
    problems = [f"- {'.'.join(path)}" for path in sorted(wanted.keys() - given.keys())]
    problems += [f"+ {'.'.join(path)}" for path in sorted(given.keys() - wanted.keys())]
    for path in sorted(given.keys() & wanted.keys()):
        if tuple(given[path].shape) != tuple(wanted[path].shape):
            problems.append(
                f"! {'.'.join(path)} has shape {tuple(given[path].shape)}; "
                f"the configuration asks for {tuple(wanted[path].shape)}"
            )
        elif not np.issubdtype(given[path].dtype, np.floating) and given[path].dtype.name != "bfloat16":
            problems.append(f"! {'.'.join(path)} holds {given[path].dtype}; floating-point numbers were expected")
    _raise_if(problems, source)


def _raise_if(problems: list[str], source: str | os.PathLike[str]) -> None:
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise CheckpointError(
            f"{source} does not fit its configuration (- missing, + unexpected, ! wrong):\n  " + "\n  ".join(shown)
        )


def save_native(params: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the canonical tree as it is, through a temporary name; loading gives the same bits back."""
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    tensors = {".".join(leaf): np.ascontiguousarray(array) for leaf, array in flatten(params).items()}
    safetensors.numpy.save_file(tensors, partial, metadata={"format": "flax"})
    partial.chmod(0o644)  # the package writes files that only their owner can read
    os.replace(partial, path)
