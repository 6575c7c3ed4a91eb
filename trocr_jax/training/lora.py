"""Low-rank adapters: beside a frozen kernel W a product of two narrow matrices is trained, W + alpha / rank * A B.

Source: Hu et al., arXiv 2106.09685; A is drawn as peft draws it, B starts at zero. Adapters are merged whenever the
parameters are looked at, so that the network, its checkpoints and everything that reads them know plain weights only.

Flat trees are {path: array}; the adapters of "decoder/layers_0/self_attn/q_proj/kernel" are that path with "/lora_a"
[in, rank] and "/lora_b" [rank, out] behind it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from trocr_jax.replacing import replacing
from trocr_jax.training.optimizer import compile_pattern

Array = jax.Array
A, B = "/lora_a", "/lora_b"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which kernels are adapted, those whose path `pattern` is found in, and how; the paper's by default."""

    rank: int = 8
    alpha: float = 16.0
    pattern: str = r"(q_proj|v_proj)/kernel$"

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"LoRA of rank {self.rank} and alpha {self.alpha}: both must be above 0")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank

    def adapters(self, params: Mapping[str, Any], key: Array) -> dict[str, Array]:
        """New float32 adapters of a flat tree; merged they change nothing. ValueError for a pattern that fits none."""
        pattern = compile_pattern(self.pattern, "the pattern of LoRA")
        names = sorted(name for name in params if pattern.search(name))
        if not names or any(np.ndim(params[name]) != 2 for name in names):
            others = [name for name in names if np.ndim(params[name]) != 2]
            told = f"finds {others[0]}, which is no matrix" if others else "is found in no parameter's path"
            raise ValueError(f"the pattern of LoRA, {self.pattern!r}, {told}; paths are as {min(params)}")
        found = {}
        for number, name in enumerate(names):
            width, features = params[name].shape
            bound = width**-0.5
            shape = (width, self.rank)
            found[name + A] = jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)
            found[name + B] = jnp.zeros((self.rank, features))
        return found


def merge(flat: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A flat tree with its adapters, if there are any, added into their kernels, which become float32."""
    merged = {name: leaf for name, leaf in flat.items() if not name.endswith((A, B))}
    for name in flat:
        if name.endswith(A):
            kernel = name.removesuffix(A)
            product = jnp.matmul(flat[name], flat[kernel + B], precision="highest")
            merged[kernel] = merged[kernel] + scale * product
    return merged


def save_adapters(flat: Mapping[str, Any], scale: float, path: str | os.PathLike[str]) -> None:
    """Writes the adapters of a flat tree, and nothing else of it, to a safetensors file."""
    tensors = {name: np.array(leaf) for name, leaf in flat.items() if name.endswith((A, B))}
    with replacing(path) as partial:
        save_file(tensors, partial, {"scale": repr(scale)})


def merge_adapters(params: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """A parameter tree with the adapters of a file added: plain weights.

    Raises ValueError where the file holds none or others than for this architecture.
    """
    with safe_open(os.fspath(path), "np") as file:
        adapters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        scale = (file.metadata() or {}).get("scale")
    flat = flatten_dict(dict(params), sep="/")
    shapes = {name: leaf.shape for name, leaf in adapters.items()}
    kernels = {name.removesuffix(A) for name in shapes if name.endswith(A)}
    fits = kernels <= flat.keys() and all(
        flat[name].shape == (shapes[name + A][0], shapes.get(name + B, (0, 0))[1]) for name in kernels
    )
    if scale is None or not kernels or not fits:
        raise ValueError(f"{path} holds no adapters for this model; pass those that were trained on it")
    return unflatten_dict(merge({**flat, **adapters}, float(scale)), sep="/")
