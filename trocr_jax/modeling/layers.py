"""The parts that encoder and decoder share: linear layer, normalisation, the only attention, the feed-forward block.

B images, Q queries of one image, L keys of one image, H heads, D head size, E width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from trocr_jax.modeling.policy import FLOAT32, INT8, Layout, Policy
from trocr_jax.modeling.products import matmul, panel_shapes, product

Array = jax.Array


def gelu(x: Array) -> Array:
    """As the reference, by erf: jax.nn.gelu takes erfc instead, which has two branches and costs 2.5 times as much."""
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
}


def remat_if(is_on: bool, run: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a module and arrays; if so asked, one that keeps no more than its arguments for its gradient."""
    return nn.remat(run) if is_on else run


class Dense(nn.Module):
    """A linear layer: x [..., in_features] -> [..., features]."""

    in_features: int
    features: int
    use_bias: bool = True
    policy: Policy = FLOAT32
    layout: Layout = "in_out"
    init_std: float = 0.02

    def setup(self) -> None:
        self.kernel = self.param("kernel", self._init_kernel)
        if self.layout.startswith(INT8):
            self.scale = self.param("scale", nn.initializers.ones, (self.features,), self.policy.result)
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.features,), self.policy.param_dtype)

    def _init_kernel(self, key: Array) -> Any:
        shape = (self.in_features, self.features)
        if self.layout in ("in_out", "out_in"):
            shape = shape if self.layout == "in_out" else shape[::-1]
            return nn.initializers.normal(self.init_std)(key, shape, self.policy.param_dtype)
        # Of a prepared tree, which nobody draws.
        dtype = jnp.int8 if self.layout.startswith(INT8) else self.policy.param_dtype
        if self.layout == "int8_in_out":
            return jnp.zeros(shape, dtype)
        return tuple(jnp.zeros(part, dtype) for part in panel_shapes(*shape, self.policy.parts))

    def __call__(self, x: Array) -> Array:
        y = matmul(x, self.kernel, self.policy, self.layout)[..., : self.features]
        y = y * self.scale if self.layout.startswith(INT8) else y
        return y + self.bias.astype(y.dtype) if self.use_bias else y


class LayerNorm(nn.Module):
    """Normalises the last axis: x [..., features] -> the same, in the policy's result dtype.

    Mean first, then the mean of squared differences: Flax's default E[x^2] - E[x]^2 loses digits that the reference
    keeps.
    """

    features: int
    epsilon: float
    policy: Policy = FLOAT32

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.features,), self.policy.param_dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), self.policy.param_dtype)

    def __call__(self, x: Array) -> Array:
        x = x.astype(self.policy.result)
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        y = centered * lax.rsqrt(variance + self.epsilon)
        return y * self.scale.astype(x.dtype) + self.bias.astype(x.dtype)


class Embedding(nn.Module):
    """A table of vectors: ids [...] -> [..., features] in the policy's result dtype."""

    num_embeddings: int
    features: int
    policy: Policy = FLOAT32
    init_std: float = 0.02

    def setup(self) -> None:
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", nn.initializers.normal(self.init_std), shape, self.policy.param_dtype)

    def __call__(self, ids: Array) -> Array:
        return jnp.take(self.embedding, ids, axis=0, mode="clip").astype(self.policy.result)

    def attend(self, x: Array) -> Array:
        """X [..., features] -> logits [..., num_embeddings]: the tied head of a canonical tree."""
        return matmul(x, self.embedding, self.policy, "out_in")


def attend(
    query: Array,
    key: Array,
    value: Array,
    policy: Policy,
    *,
    mask: Array | None = None,
    head_mask: Array | None = None,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> tuple[Array, Array]:
    """Scaled dot-product attention: (context [B, Q, H*D], weights [B, H, Q, L] as the softmax gives them).

    query [B, Q, H, D], key and value [B, H, L, D]; mask is boolean and broadcasts to [B, H, Q, L], True where a query
    may look; head_mask [H] multiplies the weights, `drop` is their dropout. Softmax is in the policy's result dtype.
    """
    batch, num_queries, heads, depth = query.shape
    # XLA's CPU backend merges transpositions into a batched product, which then has no fast path: with 8 images of 4
    # queries it takes 3 (scores) to 8 times (context) as long.
    apart = lax.optimization_barrier if policy.keeps_products_apart else lambda x: x
    query = apart(query.swapaxes(1, 2))  # [B, Q, H, D] -> [B, H, Q, D]
    scores = product("bhqd,bhld->bhql", query, key, policy) * depth**-0.5
    if mask is not None:
        # The most negative finite number, as in the reference: a row with nothing to look at stays finite.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    used = drop(weights if head_mask is None else weights * head_mask[:, None, None])
    context = apart(product("bhql,bhld->bhqd", used, value, policy))
    return context.swapaxes(1, 2).reshape(batch, num_queries, heads * depth), weights  # [B, H, Q, D] -> [B, Q, H*D]


class Attention(nn.Module):
    """Multi-head attention's projections; the attention itself is `attend`.

    A canonical tree has `q_proj`, `k_proj`, `v_proj`; a prepared one has them side by side in one kernel, `qkv_proj`
    where all three look at the same input and `kv_proj` beside `q_proj` where keys come from the encoder.
    """

    width: int
    num_heads: int
    kv_width: int | None = None  # None: self-attention
    use_bias: bool = True
    policy: Policy = FLOAT32
    layout: Layout = "in_out"
    init_std: float = 0.02

    def setup(self) -> None:
        def dense(in_features: int, features: int, use_bias: bool = self.use_bias, layout: Any = self.layout) -> Dense:
            return Dense(in_features, features, use_bias, self.policy, layout, self.init_std)

        width, kv_width = self.width, self.width if self.kv_width is None else self.kv_width
        if not self.policy.is_prepared:
            self.q_proj, self.k_proj, self.v_proj = dense(width, width), dense(kv_width, width), dense(kv_width, width)
        elif self.kv_width is None:
            self.qkv_proj = dense(width, 3 * width)
        else:
            # Keys and values are those of all the encoder's tokens: many rows.
            kv_layout = self.policy.encoder_layout
            self.q_proj, self.kv_proj = dense(width, width), dense(kv_width, 2 * width, layout=kv_layout)
        self.out_proj = dense(width, width, use_bias=True)

    def project_query(self, x: Array) -> Array:
        """X [B, Q, E] -> queries [B, Q, H, D]; cross-attention's."""
        return self._split(self.q_proj(x))

    def project_key_value(self, states: Array) -> tuple[Array, Array]:
        """Encoder states [B, L, E'] -> keys and values, each [B, H, L, D]; cross-attention's."""
        if self.policy.is_prepared:
            key, value = jnp.split(self.kv_proj(states), 2, axis=-1)
        else:
            key, value = self.k_proj(states), self.v_proj(states)
        return self._heads_first(key), self._heads_first(value)

    def project_self(self, x: Array) -> tuple[Array, Array, Array]:
        """X [B, Q, E] -> queries [B, Q, H, D], keys and values [B, H, Q, D]; self-attention's."""
        if self.policy.is_prepared:
            query, key, value = jnp.split(self.qkv_proj(x), 3, axis=-1)
        else:
            query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self._split(query), self._heads_first(key), self._heads_first(value)

    def project_out(self, context: Array) -> Array:
        """Context [B, Q, H*D] -> [B, Q, E]."""
        return self.out_proj(context)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)  # [B, Q, E] -> [B, Q, H, D]

    def _heads_first(self, x: Array) -> Array:
        return jnp.swapaxes(self._split(x), 1, 2)  # [B, L, H, D] -> [B, H, L, D]


class Mlp(nn.Module):
    """The feed-forward block: x [..., E] -> fc1 -> activation -> fc2 -> [..., E]."""

    width: int
    hidden: int
    activation: str
    policy: Policy = FLOAT32
    layout: Layout = "in_out"
    init_std: float = 0.02
    dropout_rate: float = 0.0

    def setup(self) -> None:
        self.fc1 = Dense(self.width, self.hidden, True, self.policy, self.layout, self.init_std)
        self.fc2 = Dense(self.hidden, self.width, True, self.policy, self.layout, self.init_std)
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(self, x: Array, *, deterministic: bool = True) -> Array:
        x = ACTIVATIONS[self.activation](self.fc1(x))
        return self.fc2(self.dropout(x, deterministic=deterministic))
