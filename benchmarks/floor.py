"""The least time that reading can take on a machine: arithmetic over its rate, bytes over the bandwidth.

The encoder's arithmetic, the projection of cross-attention's keys and values included, at the measured rate of matrix
products; then for each token the larger of its bytes (the decoder's weights once, the keys and values of
cross-attention once an image, those of self-attention once a row) over the measured bandwidth and of its arithmetic
over that rate. Norms, activations, softmax and the search count nothing.

E encoder width, F its feed-forward, S encoder tokens, D decoder width, G its feed-forward, V vocabulary.
"""

from __future__ import annotations

import dataclasses

from trocr_jax.config import VisionEncoderDecoderConfig


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a machine was measured to do: flop/s of large matrix products by dtype of operands, and bytes/s read."""

    matmul: dict[str, float]
    bandwidth: float


def encoder_flops(config: VisionEncoderDecoderConfig) -> float:
    """Of one image, attention included; a product of [m, k] and [k, n] counts 2mkn."""
    encoder, tokens, width = config.encoder, config.encoder.num_tokens, config.encoder.hidden_size
    patches = tokens * encoder.num_channels * encoder.patch_shape[0] * encoder.patch_shape[1] * width
    layer = tokens * (4 * width**2 + 2 * width * encoder.intermediate_size) + 2 * tokens**2 * width
    return 2.0 * (patches + encoder.num_hidden_layers * layer)


def projection_flops(config: VisionEncoderDecoderConfig) -> float:
    """Of cross-attention's keys and values of one image, through the bridge if there is one."""
    encoder, decoder = config.encoder, config.decoder
    bridge = encoder.hidden_size * decoder.d_model if config.has_bridge else 0
    width = decoder.d_model if config.has_bridge else (decoder.cross_attention_hidden_size or decoder.d_model)
    return 2.0 * encoder.num_tokens * (bridge + decoder.decoder_layers * 2 * width * decoder.d_model)


def decoder_weights(config: VisionEncoderDecoderConfig) -> int:
    """How many weights one token takes: 4D^2 of self-attention, 2D^2 of cross-attention, 2DG, and the head's VD."""
    decoder, width = config.decoder, config.decoder.d_model
    layer = 6 * width**2 + 2 * width * decoder.decoder_ffn_dim
    return decoder.decoder_layers * layer + decoder.vocab_size * width


def floor_seconds(
    config: VisionEncoderDecoderConfig,
    rates: Rates,
    *,
    batch: int,
    num_beams: int,
    new_tokens: int,
    dtype: str,
    weight_bytes: int,
) -> float:
    """Seconds for a batch whose texts all have `new_tokens` tokens, with operands of `dtype`."""
    decoder, rows = config.decoder, batch * num_beams
    item = 2 if dtype == "bfloat16" else 4
    kv = decoder.decoder_layers * 2 * decoder.d_model  # numbers of keys and values, a token
    cross = batch * config.encoder.num_tokens * kv * item
    seconds = batch * (encoder_flops(config) + projection_flops(config)) / rates.matmul[dtype]
    weights = decoder_weights(config)
    for length in range(1, new_tokens + 1):
        moved = weights * weight_bytes + cross + rows * length * kv * item
        flops = 2.0 * rows * (weights + (config.encoder.num_tokens + length) * kv)
        seconds += max(moved / rates.bandwidth, flops / rates.matmul[dtype])
    return seconds
