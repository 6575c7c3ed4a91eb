"""Several devices: one mesh with two axes, and the table that says how a parameter tree lies on it.

Images are divided over the axis `data`; each part of it holds whole weights, or shares them over the axis `model`.
Modules know nothing of either. Several hosts are one mesh over `jax.devices()` behind `jax.distributed.initialize`:
every process then makes the same calls and gets the same results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, MODEL = "data", "model"

# How the canonical tree is divided, by the end of a parameter's path; what is not named here stays whole. Heads and
# hidden features are divided going in and added up coming out, so that a block has one sum over devices.
# Source: Shoeybi et al., "Megatron-LM", 2019.
PARTITION: tuple[tuple[str, P], ...] = (
    (r"(q_proj|k_proj|v_proj|fc1)/kernel$", P(None, MODEL)),
    (r"(q_proj|k_proj|v_proj|fc1)/bias$", P(MODEL)),
    (r"(out_proj|fc2)/kernel$", P(MODEL, None)),
    (r"embed_tokens/embedding$", P(MODEL, None)),
    (r"output_projection/kernel$", P(None, MODEL)),
)


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """The mesh of these devices (default: this process's), `model` of them sharing a copy of the weights.

    Raises ValueError where the number of devices is not a multiple of `model`.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if model < 1 or not devices or len(devices) % model:
        raise ValueError(f"model is {model}; it must divide the number of devices, which is {len(devices)}")
    grid = np.asarray(devices).reshape(-1, model)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def default_mesh() -> Mesh | None:
    """The mesh of all local devices; None where there is one, which needs no mesh."""
    return make_mesh() if jax.local_device_count() > 1 else None


def checked_mesh(mesh: Mesh) -> Mesh:
    """The mesh; ValueError if it has other axes than `make_mesh` makes."""
    if tuple(mesh.axis_names) != (DATA, MODEL) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"the mesh is {mesh}; make one with trocr_jax.make_mesh, with automatic axes data and model")
    return mesh


def platform_of(mesh: Mesh | None) -> str:
    """What computes: the platform of the mesh's devices, or else of JAX's default device."""
    if mesh is not None:
        return str(mesh.devices.flat[0].platform)
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    return jax.default_backend() if device is None else str(getattr(device, "platform", device))


def axis_size(mesh: Mesh | None, axis: str) -> int:
    """How many parts an axis of the mesh divides things into; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape[axis]


def mesh_of(params: Mapping[str, Any]) -> Mesh | None:
    """The mesh that `shard_params` laid this tree on, or None."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    is_ours = isinstance(sharding, NamedSharding) and tuple(sharding.mesh.axis_names) == (DATA, MODEL)
    return sharding.mesh if is_ours else None  # type: ignore[union-attr]


def param_shardings(params: Mapping[str, Any], mesh: Mesh) -> Any:
    """The tree's shardings, by `PARTITION`; an axis of a parameter that cannot be divided evenly stays whole."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        parts = axis_size(mesh, MODEL)
        spec = next((spec for pattern, spec in PARTITION if re.search(pattern, name)), P()) if parts > 1 else P()
        # A vocabulary of 50265 tokens, for one.
        is_even = all(axis is None or size % parts == 0 for axis, size in zip(spec, leaf.shape, strict=False))
        return NamedSharding(mesh, spec if is_even else P())

    return jax.tree_util.tree_map_with_path(sharding, params)


def shard_params(params: Mapping[str, Any], mesh: Mesh) -> Any:
    """The tree on the mesh's devices, each of which gets its own part only."""
    return jax.tree.map(place, params, param_shardings(params, mesh))


def shard_batch(batch: Any, mesh: Mesh | None) -> Any:
    """A tree of arrays [B, ...] divided over the images; whole where B is no multiple of the axis; as is if no mesh."""
    if mesh is None:
        return batch
    parts = axis_size(mesh, DATA)
    return jax.tree.map(lambda leaf: place(leaf, NamedSharding(mesh, P() if leaf.shape[0] % parts else P(DATA))), batch)


def local_rows(mesh: Mesh | None, size: int) -> list[int]:
    """Which of a batch's `size` rows lie on this process's devices, in order: all of them where there is no other."""
    if mesh is None or not mesh.is_multi_process:
        return list(range(size))
    indices = NamedSharding(mesh, P(DATA)).addressable_devices_indices_map((size,)).values()
    return sorted({row for index in indices if index is not None for row in range(*index[0].indices(size))})


def shard_rows(batch: Any, mesh: Mesh | None, size: int) -> Any:
    """A tree of arrays [B, ...] divided over the images, of which each process has its `local_rows` alone.

    B is `size`, a multiple of the axis `data`.
    """
    rows = local_rows(mesh, size)
    if mesh is None or len(rows) == size:
        return shard_batch(batch, mesh)
    places, sharding = {row: i for i, row in enumerate(rows)}, NamedSharding(mesh, P(DATA))

    def put(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return leaf[[places[row] for row in range(*index[0].indices(size))]]

        return jax.make_array_from_callback((size, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)


def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on devices; with several hosts, each must hold the same array and puts its own part."""
    is_everywhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if is_everywhere or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def least(value: int, mesh: Mesh | None) -> int:
    """The least of what each process of the mesh gives; all of them must ask."""
    if mesh is None or not mesh.is_multi_process:
        return value
    sharding = NamedSharding(mesh, P((DATA, MODEL)))
    of_devices = jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.full(1, value, np.int32))
    return int(fetch(of_devices).min())


def fetch(tree: Any) -> Any:
    """The tree's arrays as numpy's, also of arrays whose parts lie on other hosts: each host gets the whole."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        # One at a time: on CPU the collectives of several programs at once take all threads and wait for each other.
        return jax.device_get(jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, P())))

    return jax.device_get(jax.tree.map(whole, tree))
