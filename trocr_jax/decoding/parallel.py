"""A search over several devices: each part of the mesh's data axis searches its own images, without the others.

Left to the compiler, every step would gather the scores of all images on all devices for `top_k`, and all devices would
stop as one. Here no device waits for another, not even at the end, so that programs started by several threads cannot
wait for each other either. Where devices share weights that is not possible, since all of them take part in sums: there
everything is left to the compiler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trocr_jax.decoding.constrained import Constrain
from trocr_jax.decoding.search import Hypotheses, SearchOptions
from trocr_jax.sharding import DATA, MODEL, axis_size, place, shard_batch


def over_data(search: Callable[..., Hypotheses]) -> Callable[..., Hypotheses]:
    """A search (params, inputs [B, ...], options, **static) that takes a `mesh` as well, None for one device."""

    def run(params: Any, inputs: Any, options: SearchOptions, *, mesh: Mesh | None = None, **static: Any) -> Hypotheses:
        def part(params: Any, inputs: Any, options: SearchOptions) -> Hypotheses:
            found = search(params, inputs, options, **static)
            return dataclasses.replace(found, length=found.length[None])

        if mesh is None or axis_size(mesh, MODEL) > 1:
            return search(params, inputs, options, **static)
        whole = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(P(), P(DATA), specs(options)),
            out_specs=P(DATA),
            # Loops begin with constants and go on with what differs between devices, which the check would refuse.
            check_vma=False,
        )
        return whole(params, inputs, options)

    return run


def specs(options: SearchOptions) -> Any:
    """How options are divided: what there is one of an image goes with the image, all else is everywhere."""
    whole = jax.tree.map(lambda _: P(), options)
    randomness = whole.randomness and dataclasses.replace(whole.randomness, image_numbers=P(DATA))
    processors = tuple(
        dataclasses.replace(processor, starts=P(DATA)) if isinstance(processor, Constrain) else processor
        for processor in whole.processors
    )
    return dataclasses.replace(whole, is_image=P(DATA), randomness=randomness, processors=processors)


def place_batch(inputs: Any, options: SearchOptions, mesh: Mesh | None) -> tuple[Any, SearchOptions]:
    """Inputs [B, ...], and the options that go with the images, on the devices of a mesh; as they are without one."""
    if mesh is None:
        return inputs, options

    def put(leaf: Any, spec: P) -> Any:
        return leaf if spec == P() else place(leaf, NamedSharding(mesh, spec))

    return shard_batch(inputs, mesh), jax.tree.map(put, options, specs(options))
