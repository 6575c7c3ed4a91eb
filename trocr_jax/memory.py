"""How many images fit the device's memory at a time, by the sizes of what a batch keeps there."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.decoding.shapes import bucket
from trocr_jax.modeling.policy import Policy
from trocr_jax.sharding import least, platform_of

# Images a batch where memory does not limit it. Larger batches gain little: rows wait for the longest text of theirs.
CPU_BATCH, DEVICE_BATCH = 8, 64
# Of what is free, the part to plan with: allocators leave gaps, compilers keep copies.
USABLE = 0.7


def default_batch_size(
    config: VisionEncoderDecoderConfig, policy: Policy, num_beams: int, length: int, mesh: Mesh | None = None
) -> int:
    """Images a batch and device where none is asked for: 8 on CPU, elsewhere 64 or as many as fit what is free there.

    Of several devices, and of several processes, that with the least room decides: all take batches of one size.
    """
    most = CPU_BATCH if platform_of(mesh) == "cpu" else DEVICE_BATCH
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    image = bytes_per_image(config, policy, num_beams, length)
    fitting = least(min((_fitting(device, image, most) for device in devices), default=most), mesh)
    return max(size for size in range(1, fitting + 1) if bucket(size) == size)  # others would be filled up


def _fitting(device: Any, image: int, most: int) -> int:
    memory = device.memory_stats() or {}  # of a CPU there are none
    if "bytes_limit" not in memory:
        return most
    free = USABLE * (memory["bytes_limit"] - memory.get("bytes_in_use", 0))
    return max(1, min(most, int(free // image)))


def bytes_per_image(config: VisionEncoderDecoderConfig, policy: Policy, num_beams: int, length: int) -> int:
    """Bytes of one more image in a batch, from above: pixels, a layer of the encoder, both caches, a step's scores.

    `num_beams` rows of at most `length` tokens are decoded for it. What XLA's CPU compiler allocates is less.
    """
    encoder, decoder = config.encoder, config.decoder
    result = np.dtype(policy.result).itemsize
    height, width = encoder.image_shape
    tokens, heads = encoder.num_tokens, encoder.num_attention_heads
    pixels = 2 * 3 * height * width * result
    layer = tokens * (8 * encoder.hidden_size + 2 * encoder.intermediate_size) + 2 * heads * tokens**2
    state = 2 * decoder.decoder_layers * decoder.d_model  # keys and values of a position
    caches = state * (tokens + 2 * num_beams * length)  # a step may copy the own one
    return pixels + result * (layer + caches + 8 * num_beams * decoder.vocab_size)
