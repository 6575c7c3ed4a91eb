"""Whole checkpoints from one format to another, without torch.

Sources: a folder or hub id of transformers (safetensors or .bin) or of this library, a weights file that lies beside
its config.json, or an original fairseq .pt file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from trocr_jax import registry
from trocr_jax.calibration import Calibration
from trocr_jax.checkpoints import fairseq, names, store
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.fairseq_tokenizer import write_tokenizer
from trocr_jax.checkpoints.folder import USAGE, USAGE_IN_TORCH, Source, check_output, whole_folder, write_card
from trocr_jax.checkpoints.hub import NATIVE_NAME, NATIVE_NAMES, TORCH_NAME, TORCH_NAMES, local_folder
from trocr_jax.checkpoints.names import flatten
from trocr_jax.checkpoints.safetensors_writer import (
    DEFAULT_MAX_SHARD_SIZE,
    Progress,
    parse_size,
    round_to,
    save_weights,
)
from trocr_jax.checkpoints.torch_reader import read_torch, tensors
from trocr_jax.config import CONFIG_NAME, GENERATION_CONFIG_NAME, VisionEncoderDecoderConfig, read_json, write_json
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.processing.image import PREPROCESSOR_NAME, PROCESSOR_NAME
from trocr_jax.processing.tokenizer import FILE_NAMES as TOKENIZER_NAMES

Target = Literal["flax", "torch"]
DTYPES = ("float32", "float16", "bfloat16")
# What a file of weights may be called, so that one that is missing is not looked for on the hub.
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A weights file as it is stored: its tensors by name, and all that a file of torch.save holds beside them.

    `folder` is where what belongs to it lies: config.json, tokenizer and preprocessing.
    """

    path: pathlib.Path
    folder: pathlib.Path
    tensors: Mapping[str, np.ndarray]
    content: Any = None

    @property
    def kind(self) -> str:
        """Whose file it is."""
        if fairseq.is_fairseq(self.tensors):
            return "fairseq"
        if store.is_native(self.path):
            return "trocr_jax"
        return "transformers, safetensors" if "safetensors" in self.path.name else "transformers, torch"

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """The file, or the shards that it is the index of."""
        if not self.path.name.endswith(".index.json"):
            return (self.path,)
        return tuple(self.path.parent / name for name in sorted(set(read_json(self.path)["weight_map"].values())))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and fits its configuration.

    `write_beside` puts preprocessing, tokenizer files and a calibration into a folder. `ignored` are tensors that were
    not read, each with the reason; `decisions` say where each field of a fairseq configuration comes from.
    """

    path: pathlib.Path
    kind: str
    config: VisionEncoderDecoderConfig
    generation_config: GenerationConfig
    params: dict[str, Any]
    write_beside: Callable[[pathlib.Path], None]
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decisions: tuple[fairseq.Decision, ...] = ()


def read_weights(source: str | os.PathLike[str], **hub_options: Any) -> Weights:
    """The weights of a folder, hub id or file, whatever they are of. Raises CheckpointError or OSError."""
    path = pathlib.Path(source)
    if path.is_file():
        if hub_options:
            raise ValueError(f"{sorted(hub_options)} are options of the hub, but {path} is a file")
        folder = path.parent
    elif path.suffix in _SUFFIXES and not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    else:
        folder = local_folder(source, **hub_options)
        path = store.find_weights(folder)
    if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
        return Weights(path, folder, store.read_tensors(path))
    content = read_torch(path).content
    return Weights(path, folder, tensors(content, path), content)


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    **hub_options: Any,
) -> Checkpoint:
    """The checkpoint of a folder, hub id or file, with its parameters as the canonical tree.

    `tokenizer` is the folder or file of a fairseq checkpoint's tokenizer, `overrides` what it does not say itself: see
    `fairseq.convert`, and input_size, the images' [height, width]. Raises CheckpointError, ValueError or OSError
    saying what is wrong.
    """
    return interpret(read_weights(source, **hub_options), tokenizer=tokenizer, overrides=overrides)


def interpret(
    weights: Weights,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """The checkpoint that weights are of; errors as in `load_checkpoint`. `progress` is told the bytes looked at."""
    if weights.kind == "fairseq":
        checkpoint = _from_fairseq(weights, tokenizer, overrides or {})
    elif tokenizer is not None or overrides:
        raise ValueError(f"{weights.path} is no original TrOCR checkpoint: its tokenizer and settings lie beside it")
    else:
        store.check_not_adapters(weights.tensors, weights.path)
        checkpoint = _from_folder(weights)
    abstract = abstract_params(VisionEncoderDecoder(checkpoint.config))
    store.check_tree(checkpoint.params, abstract, weights.path, progress)
    return checkpoint


def _from_folder(weights: Weights) -> Checkpoint:
    folder, path = weights.folder, weights.path
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{path} is no original TrOCR checkpoint, and as one of transformers or of this library it lacks "
            f"{CONFIG_NAME} beside it; put that there, or pass the folder that has both"
        )
    config = VisionEncoderDecoderConfig.from_pretrained(folder)
    config, params = store.params_from(weights.tensors, config, path)
    calibration = Calibration.from_pretrained(folder)

    def copy_small_files(target: pathlib.Path) -> None:
        if calibration is not None:
            calibration.write_files(target)
        for name in (PREPROCESSOR_NAME, PROCESSOR_NAME, *TOKENIZER_NAMES):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)

    generation_config = GenerationConfig.from_pretrained(folder)
    ignored = {} if store.is_native(path) else _ignored(store.without_trainer_prefix(weights.tensors, path))
    return Checkpoint(path, weights.kind, config, generation_config, params, copy_small_files, ignored)


def _ignored(stored: Mapping[str, np.ndarray]) -> dict[str, str]:
    reasons = {name: names.ignored_reason(name) for name in stored}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _from_fairseq(
    weights: Weights, tokenizer: str | os.PathLike[str] | None, overrides: Mapping[str, Any]
) -> Checkpoint:
    arguments = fairseq.saved_arguments(weights.content)
    if "input_size" in overrides:
        arguments = {**(arguments or {}), "input_size": overrides["input_size"]}
    if unknown := sorted(overrides.keys() - {"input_size", *fairseq.OVERRIDES}):
        raise ValueError(f"nothing can be said of {unknown}; there are {sorted(['input_size', *fairseq.OVERRIDES])}")
    told = {name: value for name, value in overrides.items() if name != "input_size"}
    converted = fairseq.convert(weights.tensors, arguments, source=weights.path, **told)
    vocab_size = converted.config.decoder.vocab_size

    def write_small_files(target: pathlib.Path) -> None:
        converted.image_processor.save_pretrained(target)
        if tokenizer is not None:
            write_tokenizer(target, tokenizer, vocab_size)

    return Checkpoint(
        path=weights.path,
        kind=weights.kind,
        config=converted.config,
        generation_config=converted.generation_config,
        params=store.from_torch(converted.tensors, names.table(converted.config), weights.path),
        write_beside=write_small_files,
        ignored=converted.dropped,
        decisions=converted.decisions,
    )


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: Target = "flax",
    dtype: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE,
    dry_run: bool = False,
    show_progress: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Reads a checkpoint, writes it as a whole folder, and returns what was read: `to` "flax" is for this library,
    "torch" for transformers.

    Weights keep the dtype they are stored in unless `dtype` ("float32", "float16", "bfloat16") names another, and are
    split into shards of at most `max_shard_size`. A torch folder has v4's names in model.safetensors, which
    transformers' from_pretrained loads. `tokenizer` and `overrides` are for fairseq files. Nothing is written until all
    has been read and checked, and nothing at all with `dry_run`. `show_progress` shows a bar on stderr if that is a
    terminal. Errors are those of `load_checkpoint`, FileExistsError where the output cannot be written to, and
    ValueError for numbers that `dtype` cannot hold.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {list(DTYPES)}")
    if to not in ("flax", "torch"):
        raise ValueError(f'the target is {to!r}; choose "flax" or "torch"')
    parse_size(max_shard_size)
    target = check_output(output)
    _check_alone(target, source, to)
    weights = read_weights(source, **hub_options)
    sizes = [
        (tensor.nbytes, tensor.size * np.dtype(dtype or tensor.dtype).itemsize) for tensor in weights.tensors.values()
    ]
    with _progress_bar(sum(read for read, _ in sizes), "checking", show_progress) as progress:
        checkpoint = interpret(weights, tokenizer=tokenizer, overrides=overrides, progress=progress)
    if dry_run:
        _try_to_write(checkpoint, dtype)
        return checkpoint
    written = sum(size for _, size in sizes)
    with whole_folder(output) as folder, _progress_bar(written, "writing", show_progress) as progress:
        checkpoint.write_beside(folder)
        hashes = _write(checkpoint, folder, to, dtype, max_shard_size, progress)
        write_card(
            folder,
            registry.summary(checkpoint.config),
            hashes,
            Source.of(source, weights.folder),
            usage=USAGE if to == "flax" else USAGE_IN_TORCH,
            converted=weights.files,
        )
    return checkpoint


def _try_to_write(checkpoint: Checkpoint, dtype: str | None) -> None:
    """What can go wrong in writing but the writing itself: the tokenizer's files, and numbers too large for a dtype."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write_beside(pathlib.Path(folder))
    for name, leaf in store.to_native(checkpoint.params).items():
        round_to(leaf, dtype, name)


def _check_alone(output: pathlib.Path, source: str | os.PathLike[str], to: Target) -> None:
    """Refuses a folder where this library and transformers would read different models."""
    path = pathlib.Path(source).resolve()
    if to == "flax" and output in (path, path.parent if path.is_file() else path):  # one model for both
        return
    told = f"which this library would read instead of {TORCH_NAME}"
    if to == "flax":
        told = f"which transformers reads, beside another {NATIVE_NAME} for this library"
    if found := [name for name in (TORCH_NAMES if to == "flax" else NATIVE_NAMES) if (output / name).exists()]:
        raise FileExistsError(f"{output} holds {found[0]}, {told}; choose another folder, or delete that file")


def _write(
    checkpoint: Checkpoint,
    folder: pathlib.Path,
    to: Target,
    dtype: str | None,
    max_shard_size: int | str,
    progress: Progress | None,
) -> dict[str, str]:
    """Weights and configurations; returns the SHA-256 of each weights file."""
    stored = {dtype or str(leaf.dtype) for leaf in flatten(checkpoint.params).values()}
    content = checkpoint.config.to_dict()
    for part in (content, content["encoder"], content["decoder"]):
        for name in ("dtype", "torch_dtype"):  # of the weights that were read
            part.pop(name, None)
    content |= {
        "architectures": ["VisionEncoderDecoderModel"],
        "dtype": stored.pop() if len(stored) == 1 else "float32",
    }
    write_json(folder / CONFIG_NAME, content)
    write_json(folder / GENERATION_CONFIG_NAME, checkpoint.generation_config.to_dict())
    table = names.table(checkpoint.config)
    found = store.to_native(checkpoint.params) if to == "flax" else store.to_torch(checkpoint.params, table)
    return save_weights(
        found,
        folder,
        NATIVE_NAME if to == "flax" else TORCH_NAME,
        format_name="flax" if to == "flax" else "pt",
        max_shard_size=max_shard_size,
        dtype=dtype,
        progress=progress,
    )


@contextlib.contextmanager
def _progress_bar(total: int, what: str, is_wanted: bool) -> Iterator[Progress | None]:
    if not is_wanted or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    # A delay, so that what takes no time shows no bar.
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, file=sys.stderr, delay=0.5, leave=False) as bar:
        yield bar.update
