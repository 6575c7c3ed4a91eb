"""What decoding remembers: a typed, preallocated cache, passed in and handed back.

B images, K beams, L positions, S encoder tokens, H heads, D head size.

Slots of the self-attention cache lie position by position, the beams of one position side by side: slot = l*K + k.
When a beam continues another beam's text, nothing is copied: `ancestors` says which beam's slot holds each position of
its past, and attention masks the rest.

In:  K = 2, L = 3, position 2, beam 0 continued beam 1 at position 1
Out: slots             l0k0 l0k1 l1k0 l1k1 l2k0 l2k1
     beam 0 may see      0    1    0    1    1    0      ancestors[0] = [1, 1, 0]
     beam 1 may see      0    1    0    1    0    1      ancestors[1] = [1, 1, 1]
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@flax.struct.dataclass
class SelfKV:
    """Keys and values of one layer's self-attention, each [B, H, L*K, D]."""

    key: Array
    value: Array

    def write(self, key: Array, value: Array, slot: Array | int) -> SelfKV:
        """This cache with new keys and values [B, H, Q, D] in the Q slots from `slot` on."""
        return SelfKV(
            lax.dynamic_update_slice_in_dim(self.key, key.astype(self.key.dtype), slot, axis=2),
            lax.dynamic_update_slice_in_dim(self.value, value.astype(self.value.dtype), slot, axis=2),
        )


@flax.struct.dataclass
class CrossKV:
    """Keys and values of one layer's cross-attention, each [B, H, S, D]: one an image, shared by its beams."""

    key: Array
    value: Array


def allocate(num_layers: int, batch: int, heads: int, slots: int, depth: int, dtype: jnp.dtype) -> tuple[SelfKV, ...]:
    """Empty self-attention caches [B, H, slots, D], one a layer."""
    shape = (batch, heads, slots, depth)
    return tuple(SelfKV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(num_layers))
