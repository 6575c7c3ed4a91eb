"""How a training's state lies on devices: whole on each, or divided among them.

Divided (FSDP: Rajbhandari et al., "ZeRO", arXiv 1910.02054, stage 3), each device holds its part of the weights, of
the optimizer's state and of the moving average. A step gathers the weights to compute with them, and each device gets
the sum over devices of its part of the gradients alone. Nothing but annotations says so: the compiler puts the
collectives where they belong, and results are those of one device up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trocr_jax.sharding import DATA, axis_size, place


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Where the arrays of a state lie on a mesh; divided over its axis `data` if `is_divided`."""

    mesh: Mesh
    is_divided: bool = False

    def sharding(self, leaf: Any) -> NamedSharding:
        """Of an array: its largest dimension that the devices divide evenly is divided, whatever it is."""
        parts = axis_size(self.mesh, DATA) if self.is_divided else 1
        return NamedSharding(self.mesh, divided(leaf.shape, parts))

    def put(self, tree: Any) -> Any:
        """The tree's arrays on devices, each of which gets its part alone; random keys are whole."""
        return jax.tree.map(self._put, tree)

    def _put(self, leaf: Any) -> jax.Array:
        if _is_key(leaf):
            words = place(jax.random.key_data(leaf), NamedSharding(self.mesh, P()))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return place(leaf, self.sharding(leaf))

    def constrain(self, tree: Any) -> Any:
        """Inside a program: the tree's arrays, laid out so."""

        def laid_out(leaf: jax.Array) -> jax.Array:
            return leaf if _is_key(leaf) else jax.lax.with_sharding_constraint(leaf, self.sharding(leaf))

        return jax.tree.map(laid_out, tree)

    def gather(self, tree: Any) -> Any:
        """Inside a program: the tree's arrays, whole on each device; their gradients are divided again."""
        return jax.tree.map(self._gather, tree)

    def _gather(self, leaf: jax.Array) -> jax.Array:
        everywhere = NamedSharding(self.mesh, P())

        # Left to itself, a constraint's gradient has the same layout: whole gradients on each device.
        @jax.custom_vjp
        def whole(leaf: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(leaf, everywhere)

        whole.defvjp(lambda leaf: (whole(leaf), None), lambda _, gradient: (self.constrain(gradient),))
        return whole(leaf)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def divided(shape: Sequence[int], parts: int) -> P:
    """The spec that divides an array's largest dimension that `parts` divides evenly; whole where there is none.

    In:  (50265, 1024), 8 parts
    Out: P(None, "data")
    """
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0 and size]
    if parts == 1 or not fitting:
        return P()
    largest = max(fitting, key=lambda axis: shape[axis])
    return P(*[DATA if axis == largest else None for axis in range(largest + 1)])
