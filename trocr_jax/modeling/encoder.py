"""The image encoder: ViT, and DeiT with its distillation token. Pre-norm blocks and a final norm.

B images, C colour channels, S tokens (prefix tokens, then patches row by row), E width.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from trocr_jax.config import ViTConfig
from trocr_jax.modeling.layers import Array, Attention, LayerNorm, Mlp, attend, remat_if
from trocr_jax.modeling.policy import FLOAT32, Policy
from trocr_jax.modeling.products import matmul


@flax.struct.dataclass
class EncoderOutput:
    """What the encoder computes; the last two only where they were asked for."""

    last_hidden_state: Array  # [B, S, E], behind the final norm
    hidden_states: tuple[Array, ...] | None = None  # the embeddings, then each block's output, [B, S, E]
    attentions: tuple[Array, ...] | None = None  # one a block, [B, H, S, S]


class PatchEmbedding(nn.Module):
    """pixel_values [B, C, height, width] -> patch vectors [B, patches, E].

    A convolution whose stride is its window is one matrix product over flattened patches.
    """

    config: ViTConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        config = self.config
        (height, width), channels, features = config.patch_shape, config.num_channels, config.hidden_size
        shape: tuple[int, ...] = (height, width, channels, features)
        if self.policy.is_prepared:
            flat = height * width * channels
            shape = (flat, features) if self.policy.encoder_layout == "in_out" else (features, flat)
        initializer = nn.initializers.truncated_normal(config.initializer_range)
        self.kernel = self.param("kernel", initializer, shape, self.policy.param_dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (features,), self.policy.param_dtype)

    def __call__(self, pixel_values: Array) -> Array:
        batch, channels = pixel_values.shape[:2]
        (rows, columns), (patch_height, patch_width) = self.config.patch_grid, self.config.patch_shape
        grid = pixel_values[:, :, : rows * patch_height, : columns * patch_width]
        grid = grid.reshape(batch, channels, rows, patch_height, columns, patch_width)
        patches = grid.transpose(0, 2, 4, 3, 5, 1)  # -> [B, rows, columns, patch_height, patch_width, C]
        patches = patches.reshape(batch, rows * columns, -1)
        kernel, layout = self.kernel, self.policy.encoder_layout
        if not self.policy.is_prepared:
            kernel, layout = kernel.reshape(-1, kernel.shape[-1]), "in_out"
        y = matmul(patches, kernel, self.policy, layout)
        return y + self.bias.astype(y.dtype)


class Embeddings(nn.Module):
    """pixel_values [B, C, height, width] -> [B, S, E]: prefix tokens, patches, and the learned positions of both."""

    config: ViTConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        config, dtype = self.config, self.policy.param_dtype
        normal, width = nn.initializers.truncated_normal(config.initializer_range), config.hidden_size
        self.cls_token = self.param("cls_token", normal, (1, 1, width), dtype)
        if config.num_prefix_tokens == 2:
            self.distillation_token = self.param("distillation_token", normal, (1, 1, width), dtype)
        self.position_embeddings = self.param("position_embeddings", normal, (1, config.num_tokens, width), dtype)
        self.patch_embeddings = PatchEmbedding(config, self.policy)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, pixel_values: Array, *, deterministic: bool = True) -> Array:
        patches = self.patch_embeddings(pixel_values)
        prefix = [self.cls_token]
        if self.config.num_prefix_tokens == 2:
            prefix.append(self.distillation_token)
        tokens = [
            jnp.broadcast_to(token.astype(patches.dtype), (patches.shape[0], *token.shape[1:])) for token in prefix
        ]
        x = jnp.concatenate([*tokens, patches], axis=1)  # [B, S, E]
        return self.dropout(x + self.position_embeddings.astype(x.dtype), deterministic=deterministic)


class EncoderLayer(nn.Module):
    """One pre-norm block: x [B, S, E] -> (x [B, S, E], attention weights [B, H, S, S])."""

    config: ViTConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        config, policy, layout = self.config, self.policy, self.policy.encoder_layout
        width, std = config.hidden_size, config.initializer_range
        self.layernorm_before = LayerNorm(width, config.layer_norm_eps, policy)
        self.attention = Attention(width, config.num_attention_heads, None, config.qkv_bias, policy, layout, std)
        self.layernorm_after = LayerNorm(width, config.layer_norm_eps, policy)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act, policy, layout, std)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, x: Array, *, deterministic: bool = True) -> tuple[Array, Array]:
        query, key, value = self.attention.project_self(self.layernorm_before(x))
        context, weights = attend(
            query, key, value, self.policy, drop=lambda w: self.attention_dropout(w, deterministic=deterministic)
        )
        x = x + self.dropout(self.attention.project_out(context), deterministic=deterministic)
        y = self.mlp(self.layernorm_after(x))
        return x + self.dropout(y, deterministic=deterministic), weights


class Encoder(nn.Module):
    """ViT or DeiT without a pooler, which no TrOCR uses: pixel_values [B, C, height, width] -> EncoderOutput."""

    config: ViTConfig
    policy: Policy = FLOAT32

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config, self.policy)
        self.layers = [EncoderLayer(self.config, self.policy) for _ in range(self.config.num_hidden_layers)]
        self.layernorm = LayerNorm(self.config.hidden_size, self.config.layer_norm_eps, self.policy)

    def __call__(
        self,
        pixel_values: Array,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        deterministic: bool = True,
    ) -> EncoderOutput:
        expected = (self.config.num_channels, *self.config.image_shape)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise ValueError(f"pixel_values have shape {pixel_values.shape}; this model takes [B, {expected}]")
        x = self.embeddings(pixel_values.astype(self.policy.result), deterministic=deterministic)
        hidden_states, attentions = [x], []
        run = remat_if(self.policy.remat, lambda layer, x: layer(x, deterministic=deterministic))
        for layer in self.layers:
            x, weights = run(layer, x)
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            last_hidden_state=self.layernorm(x),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
