"""Whole checkpoints from one format to another, and a look at what one is, without torch.

Sources: a folder or hub id of transformers (safetensors or .bin) or of this library, or an original fairseq .pt file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from trocr_jax import registry
from trocr_jax.checkpoints import fairseq, names, store
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.fairseq_tokenizer import write_tokenizer
from trocr_jax.checkpoints.hub import NATIVE_NAME, TORCH_NAME, local_folder
from trocr_jax.checkpoints.names import flatten, unflatten
from trocr_jax.checkpoints.torch_reader import read_torch, tensors
from trocr_jax.config import CONFIG_NAME, GENERATION_CONFIG_NAME, VisionEncoderDecoderConfig, write_json
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.processing.image import PREPROCESSOR_NAME, PROCESSOR_NAME
from trocr_jax.processing.tokenizer import FILE_NAMES as TOKENIZER_NAMES

Target = Literal["flax", "torch"]
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and fits its configuration.

    `write_beside` puts preprocessing and tokenizer files into a folder. `ignored` are tensors that were not read, each
    with the reason; `decisions` say where each field of a fairseq configuration comes from.
    """

    path: pathlib.Path
    kind: str
    config: VisionEncoderDecoderConfig
    generation_config: GenerationConfig
    params: dict[str, Any]
    write_beside: Callable[[pathlib.Path], None]
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decisions: tuple[fairseq.Decision, ...] = ()


def load_checkpoint(
    source: str | os.PathLike[str], *, tokenizer: str | os.PathLike[str] | None = None, **hub_options: Any
) -> Checkpoint:
    """The checkpoint of a folder, hub id or fairseq .pt file, with its parameters as the canonical tree.

    `tokenizer` is the folder or file of a fairseq checkpoint's tokenizer. Raises CheckpointError, ValueError or OSError
    saying what is wrong.
    """
    if pathlib.Path(source).is_file():
        return _from_fairseq(pathlib.Path(source), tokenizer)
    folder = local_folder(source, **hub_options)
    path = store.find_weights(folder)
    config = VisionEncoderDecoderConfig.from_pretrained(folder)
    stored = store.read_tensors(path)
    config, params = store.params_from(stored, config, path)
    _check(params, config, path)
    ignored = {} if path.name == NATIVE_NAME else _ignored(store.without_trainer_prefix(stored))

    def copy_small_files(target: pathlib.Path) -> None:
        for name in (PREPROCESSOR_NAME, PROCESSOR_NAME, *TOKENIZER_NAMES):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)

    generation_config = GenerationConfig.from_pretrained(folder)
    return Checkpoint(path, _kind(path), config, generation_config, params, copy_small_files, ignored)


def _from_fairseq(path: pathlib.Path, tokenizer: str | os.PathLike[str] | None) -> Checkpoint:
    content = read_torch(path).content
    state = tensors(content, path)
    if not fairseq.is_fairseq(state):
        raise CheckpointError(
            f"{path} is no original TrOCR checkpoint; of transformers' checkpoints pass the folder with config.json"
        )
    converted = fairseq.convert(state, fairseq.saved_arguments(content), source=path)
    params = store.from_torch(converted.tensors, names.table(converted.config), path)
    _check(params, converted.config, path)
    vocab_size = converted.config.decoder.vocab_size

    def write_small_files(target: pathlib.Path) -> None:
        converted.image_processor.save_pretrained(target)
        if tokenizer is not None:
            write_tokenizer(target, tokenizer, vocab_size)

    return Checkpoint(
        path=path,
        kind="fairseq",
        config=converted.config,
        generation_config=converted.generation_config,
        params=params,
        write_beside=write_small_files,
        ignored=converted.dropped,
        decisions=converted.decisions,
    )


def _check(params: Mapping[str, Any], config: VisionEncoderDecoderConfig, path: pathlib.Path) -> None:
    store.check_shapes(params, abstract_params(VisionEncoderDecoder(config)), path)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: Target = "flax",
    dtype: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Reads a checkpoint and writes it as a whole folder: `to` "flax" for this library, "torch" for transformers.

    Weights keep the dtype they are stored in unless `dtype` ("float32", "float16", "bfloat16") names another. A torch
    folder has v4's names in model.safetensors, which transformers' from_pretrained loads. Nothing is written until all
    has been read and checked, and nothing at all with `dry_run`. Errors are those of `load_checkpoint`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {list(DTYPES)}")
    if to not in ("flax", "torch"):
        raise ValueError(f'the target is {to!r}; choose "flax" or "torch"')
    checkpoint = load_checkpoint(source, tokenizer=tokenizer, **hub_options)
    if dtype is not None:
        params = unflatten({path: leaf.astype(np.dtype(dtype)) for path, leaf in flatten(checkpoint.params).items()})
        checkpoint = dataclasses.replace(checkpoint, params=params)
    if not dry_run:
        with _whole_folder(pathlib.Path(output)) as folder:
            checkpoint.write_beside(folder)
            _write(checkpoint, folder, to)
    return checkpoint


def _write(checkpoint: Checkpoint, folder: pathlib.Path, to: Target) -> None:
    content = checkpoint.config.to_dict()
    stored = {str(leaf.dtype) for leaf in flatten(checkpoint.params).values()}
    content |= {
        "architectures": ["VisionEncoderDecoderModel"],
        "dtype": stored.pop() if len(stored) == 1 else "float32",
    }
    write_json(folder / CONFIG_NAME, content)
    write_json(folder / GENERATION_CONFIG_NAME, checkpoint.generation_config.to_dict())
    if to == "flax":
        store.save_native(checkpoint.params, folder / NATIVE_NAME)
    else:
        torch_tensors = store.to_torch(checkpoint.params, names.table(checkpoint.config))
        safetensors.numpy.save_file(torch_tensors, folder / TORCH_NAME, metadata={"format": "pt"})
        (folder / TORCH_NAME).chmod(0o644)


@contextlib.contextmanager
def _whole_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to that becomes `output` when all is written; an existing folder gets its files replaced."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as partial:
        yield pathlib.Path(partial)
        output.mkdir(exist_ok=True)
        for path in sorted(pathlib.Path(partial).iterdir()):
            os.replace(path, output / path.name)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint is; `problem` says why it cannot be converted, None if it can."""

    path: pathlib.Path
    kind: str
    num_tensors: int
    num_parameters: int
    dtypes: Mapping[str, int]  # tensors of each dtype
    problem: str | None = None
    official: tuple[str, ...] = ()
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decisions: tuple[fairseq.Decision, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(self.dtypes.items()))
        lines = [
            f"{self.path}: {self.kind}",
            f"  {self.num_tensors} tensors ({dtypes}), {self.num_parameters:,} numbers",
        ]
        if self.problem is not None:
            lines += ["  cannot be converted:", *(f"    {line}" for line in self.problem.splitlines())]
        if self.architecture:
            lines += [f"  architecture of {', '.join(self.official) or 'no official model'}"]
            lines += [f"    {name}: {value}" for name, value in self.architecture.items()]
        if self.decisions:
            lines += ["  decided:", *(f"    {d.field} = {d.value!r}: {d.source}" for d in self.decisions)]
        if self.ignored:
            lines += ["  not read:", *(f"    {name}: {reason}" for name, reason in self.ignored.items())]
        return "\n".join(lines)


def inspect(source: str | os.PathLike[str], **hub_options: Any) -> Inspection:
    """What a checkpoint is, also one that is refused. Raises OSError or CheckpointError for one that is unreadable."""
    path = pathlib.Path(source)
    if not path.is_file():
        path = store.find_weights(local_folder(source, **hub_options))
    stored = tensors(read_torch(path).content, path) if path.suffix in (".pt", ".bin") else store.read_tensors(path)
    dtypes: dict[str, int] = {}
    for tensor in stored.values():
        dtypes[str(tensor.dtype)] = dtypes.get(str(tensor.dtype), 0) + 1
    found = Inspection(
        path=path,
        kind="fairseq" if fairseq.is_fairseq(stored) else _kind(path),
        num_tensors=len(stored),
        num_parameters=sum(tensor.size for tensor in stored.values()),
        dtypes=dtypes,
    )
    try:
        checkpoint = load_checkpoint(source, **hub_options)
    except ValueError as error:
        return dataclasses.replace(found, problem=str(error))
    return dataclasses.replace(
        found,
        official=tuple(registry.matching_models(checkpoint.config)),
        architecture=registry.architecture(checkpoint.config),
        ignored=checkpoint.ignored,
        decisions=checkpoint.decisions,
    )


def _kind(path: pathlib.Path) -> str:
    if path.name == NATIVE_NAME:
        return "trocr_jax"
    return "transformers, safetensors" if "safetensors" in path.name else "transformers, torch"


def _ignored(stored: Mapping[str, np.ndarray]) -> dict[str, str]:
    reasons = {name: names.ignored_reason(name) for name in stored}
    return {name: reason for name, reason in reasons.items() if reason is not None}
