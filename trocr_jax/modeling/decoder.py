"""The text decoder: BART-like post-norm blocks. One implementation serves teacher forcing, a cached continuation and
one step of a search, since all three are queries that look at slots of keys through a mask.

B images, K beams, T target tokens, Q queries of one image (T tokens of one text, or one token of K beams), L cache
length, S encoder tokens, H heads, D head size, E width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np

from trocr_jax.config import TrOCRConfig
from trocr_jax.modeling.cache import CrossKV, SelfKV
from trocr_jax.modeling.layers import Array, Attention, Dense, Embedding, LayerNorm, Mlp, attend, remat_if
from trocr_jax.modeling.policy import FLOAT32, Policy

LAYER_NORM_EPS = 1e-5
# The reference keeps BART's two unused rows in front of the learned position table.
POSITION_OFFSET = 2


@flax.struct.dataclass
class DecoderOutput:
    """What the decoder computes; the optional parts only where they were asked for."""

    logits: Array  # [B, Q, V]
    self_kv: tuple[SelfKV, ...] | None = None
    hidden_states: tuple[Array, ...] | None = None  # the embeddings, then each layer's output, [B, Q, E]
    attentions: tuple[Array, ...] | None = None  # one a layer, [B, H, Q, slots]
    cross_attentions: tuple[Array, ...] | None = None  # one a layer, [B, H, Q, S]


@flax.struct.dataclass
class HeadMasks:
    """Multipliers of the attention weights, 1.0 to keep a head and 0.0 to silence it, each [layers, H]."""

    self_attention: Array | None = None
    cross_attention: Array | None = None


def sinusoidal_table(num_rows: int, width: int, padding_row: int) -> np.ndarray:
    """tensor2tensor's position table [num_rows, width], float32: sines then cosines, zeros in the padding row.

    In float32 throughout, as the reference and fairseq compute it, also where the rest is in float64.
    """
    half = width // 2
    frequency = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000) / (half - 1)))
    angle = np.arange(num_rows, dtype=np.float32)[:, None] * frequency[None]
    table = np.concatenate([np.sin(angle), np.cos(angle), np.zeros((num_rows, width % 2), np.float32)], axis=1)
    table[padding_row] = 0
    return table.astype(np.float32)


class DecoderLayer(nn.Module):
    """One post-norm block: self-attention, cross-attention where an encoder is given, feed-forward."""

    config: TrOCRConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        config, policy, layout = self.config, self.policy, self.policy.decoder_layout
        width, heads, std = config.d_model, config.decoder_attention_heads, config.init_std
        self.self_attn = Attention(width, heads, None, True, policy, layout, std)
        self.self_attn_layer_norm = LayerNorm(width, LAYER_NORM_EPS, policy)
        if config.is_decoder:
            kv_width = config.cross_attention_hidden_size or width
            self.encoder_attn = Attention(width, heads, kv_width, True, policy, layout, std)
            self.encoder_attn_layer_norm = LayerNorm(width, LAYER_NORM_EPS, policy)
        hidden, activation = config.decoder_ffn_dim, config.activation_function
        self.mlp = Mlp(width, hidden, activation, policy, layout, std, config.activation_dropout)
        self.final_layer_norm = LayerNorm(width, LAYER_NORM_EPS, policy)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def project_encoder(self, encoder_hidden_states: Array) -> CrossKV:
        """[B, S, E'] -> this layer's cross-attention keys and values, as operands of its products."""
        key, value = self.encoder_attn.project_key_value(encoder_hidden_states)
        return CrossKV(key.astype(self.policy.operand), value.astype(self.policy.operand))

    def __call__(
        self,
        x: Array,
        mask: Array,
        cross_kv: CrossKV | None,
        self_kv: SelfKV | None = None,
        slot: Array | int = 0,
        *,
        cross_mask: Array | None = None,
        self_head_mask: Array | None = None,
        cross_head_mask: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, SelfKV | None, Array, Array | None]:
        """X [B, Q, E] -> (x, the cache with x's keys written from `slot` on, self and cross attention weights)."""

        def add(x: Array, y: Array) -> Array:
            return x + self.dropout(y, deterministic=deterministic)

        def drop(weights: Array) -> Array:
            return self.attention_dropout(weights, deterministic=deterministic)

        policy = self.policy
        query, key, value = self.self_attn.project_self(x)
        if self_kv is not None:
            self_kv = self_kv.write(key, value, slot)
            key, value = self_kv.key, self_kv.value
        context, weights = attend(query, key, value, policy, mask=mask, head_mask=self_head_mask, drop=drop)
        x = self.self_attn_layer_norm(add(x, self.self_attn.project_out(context)))

        cross_weights = None
        if cross_kv is not None:
            query = self.encoder_attn.project_query(x)
            context, cross_weights = attend(
                query, cross_kv.key, cross_kv.value, policy, mask=cross_mask, head_mask=cross_head_mask, drop=drop
            )
            x = self.encoder_attn_layer_norm(add(x, self.encoder_attn.project_out(context)))

        x = self.final_layer_norm(add(x, self.mlp(x, deterministic=deterministic)))
        return x, self_kv, weights, cross_weights


def _run_layer(layer: DecoderLayer, *arguments: Any, deterministic: bool, **masks: Any) -> Any:
    return layer(*arguments, deterministic=deterministic, **masks)


class Decoder(nn.Module):
    """TrOCR's text decoder with its language-model head."""

    config: TrOCRConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        config, policy, width, std = self.config, self.policy, self.config.d_model, self.config.init_std
        self.embed_tokens = Embedding(config.vocab_size, width, policy, std)
        if config.use_learned_position_embeddings:
            self.embed_positions = Embedding(config.max_position_embeddings + POSITION_OFFSET, width, policy, std)
        if config.layernorm_embedding:
            self.layernorm_embedding = LayerNorm(width, LAYER_NORM_EPS, policy)
        self.layers = [DecoderLayer(config, policy) for _ in range(config.decoder_layers)]
        if not self.is_head_tied:
            self.output_projection = Dense(width, config.vocab_size, False, policy, policy.head_layout, std)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def is_head_tied(self) -> bool:
        """Whether the head is the embedding table itself; a prepared tree always names its head."""
        return self.config.tie_word_embeddings and not self.policy.is_prepared

    def project_encoder(self, encoder_hidden_states: Array) -> tuple[CrossKV, ...]:
        """[B, S, E'] -> the cross-attention keys and values of every layer: once an image, whatever the beams."""
        return tuple(layer.project_encoder(encoder_hidden_states) for layer in self.layers)

    def __call__(
        self,
        input_ids: Array | None,
        cross_kv: tuple[CrossKV, ...] | None,
        mask: Array,
        position: Array | int = 0,
        *,
        self_kv: tuple[SelfKV, ...] | None = None,
        slot: Array | int = 0,
        is_one_position: bool = False,
        inputs_embeds: Array | None = None,
        cross_mask: Array | None = None,
        head_masks: HeadMasks | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        deterministic: bool = True,
    ) -> DecoderOutput:
        """Logits of Q queries an image.

        input_ids [B, Q] (or inputs_embeds [B, Q, E]); they stand at positions `position`, `position` + 1, ... or,
        with `is_one_position`, all at `position` (one token of each beam). mask [B or 1, 1, Q, slots] is True where a
        query may look; without `self_kv` the slots are the queries themselves. Writing to `self_kv` starts at `slot`.
        """
        x = self._embed(input_ids, inputs_embeds, position, is_one_position)
        x = self.dropout(x, deterministic=deterministic)
        masks = head_masks or HeadMasks()
        hidden_states: list[Any] = [x]
        caches: list[Any] = []
        attentions: list[Any] = []
        cross_attentions: list[Any] = []
        run = remat_if(self.policy.remat, functools.partial(_run_layer, deterministic=deterministic))
        for i, layer in enumerate(self.layers):
            x, cache, weights, cross_weights = run(
                layer,
                x,
                mask,
                None if cross_kv is None else cross_kv[i],
                None if self_kv is None else self_kv[i],
                slot,
                cross_mask=cross_mask,
                self_head_mask=None if masks.self_attention is None else masks.self_attention[i],
                cross_head_mask=None if masks.cross_attention is None else masks.cross_attention[i],
            )
            hidden_states.append(x)
            caches.append(cache)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        return DecoderOutput(
            logits=self.embed_tokens.attend(x) if self.is_head_tied else self.output_projection(x),
            self_kv=None if self_kv is None else tuple(caches),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions and cross_kv is not None else None,
        )

    def _embed(
        self, input_ids: Any, inputs_embeds: Array | None, position: Array | int, is_one_position: bool
    ) -> Array:
        config = self.config
        if inputs_embeds is not None:
            x = inputs_embeds.astype(self.policy.result)
        else:
            scale = config.d_model**0.5 if config.scale_embedding else 1.0
            x = self.embed_tokens(input_ids) * scale
        steps = jnp.zeros(x.shape[1], jnp.int32) if is_one_position else jnp.arange(x.shape[1], dtype=jnp.int32)
        if config.use_learned_position_embeddings:
            x = x + self.embed_positions(position + steps + POSITION_OFFSET)
        else:
            x = x + self._sinusoidal(input_ids, position, steps, is_one_position).astype(x.dtype)
        return self.layernorm_embedding(x) if config.layernorm_embedding else x

    def _sinusoidal(self, input_ids: Array | None, position: Array | int, steps: Array, is_one_position: bool) -> Array:
        # Real tokens count from padding_row + 1 and skip pads, which get the zero row; embeddings hold no pads.
        config = self.config
        padding_row = config.pad_token_id or 0
        table = sinusoidal_table(config.max_position_embeddings + padding_row + 1, config.d_model, padding_row)
        if input_ids is None:
            rows = (position + steps + 1 + padding_row)[None]
        else:
            is_real = (input_ids != padding_row).astype(jnp.int32)
            # Beams in one position are strangers to each other: each counts only itself.
            count = is_real if is_one_position else jnp.cumsum(is_real, axis=1)
            rows = (position + count) * is_real + padding_row  # [B, Q]
        return jnp.take(jnp.asarray(table), rows, axis=0, mode="clip")


def causal_mask(num_queries: int, num_slots: int, position: Array | int = 0) -> Array:
    """[1, 1, Q, slots], True where a query may look: slots up to its own position.

    In: num_queries 2, num_slots 4, position 1
    Out: [[1, 1, 0, 0],
          [1, 1, 1, 0]]
    """
    own = position + jnp.arange(num_queries)[:, None]
    return (jnp.arange(num_slots)[None, :] <= own)[None, None]


def beam_mask(ancestors: Array, position: Array | int) -> Array:
    """Ancestors [B, K, L] -> [B, 1, K, L*K], True where a beam may look: its ancestors' slots up to `position`."""
    batch, beams, length = ancestors.shape
    is_mine = ancestors[..., None] == jnp.arange(beams)  # [B, K, L, K]
    is_past = (jnp.arange(length) <= position)[None, None, :, None]
    return (is_mine & is_past).reshape(batch, 1, beams, length * beams)
