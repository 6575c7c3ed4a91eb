"""A model for images of another size: long lines want more columns than a square image has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from trocr_jax.recognizer import TrOCR

POSITIONS = "encoder/embeddings/position_embeddings"


def with_image_size(ocr: TrOCR, size: tuple[int, int]) -> TrOCR:
    """The recogniser for images resized to `size` (height, width) in pixels, uncalibrated, to be trained further.

    The positions of its patches are interpolated to the new rows and columns (cubic, as jax.image.resize has it); all
    other weights stay. Characters look wider or narrower to it than before, so it reads worse until it is trained.
    Images are resized whole: what a processor cut from their margins before is kept. Raises ValueError for a size that
    its patches do not divide.
    """
    height, width = size
    encoder = ocr.config.encoder
    patch_height, patch_width = encoder.patch_shape
    if min(height, width) < 1 or height % patch_height or width % patch_width:
        raise ValueError(
            f"images of {height} x {width} pixels (height x width) hold no whole number of this model's patches of "
            f"{patch_height} x {patch_width}; choose multiples"
        )
    side = height if height == width else (height, width)  # a number for a square, as official configurations have it
    resized = dataclasses.replace(encoder, image_size=side)
    flat = flatten_dict(dict(ocr.params), sep="/")
    table = np.asarray(flat[POSITIONS])
    flat[POSITIONS] = _interpolated(table, encoder.num_prefix_tokens, encoder.patch_grid, resized.patch_grid)
    config = dataclasses.replace(ocr.config, encoder=resized)
    images = dataclasses.replace(
        ocr.processor.image_processor, size=(height, width), do_resize=True, do_center_crop=False
    )
    return ocr.with_params(unflatten_dict(flat, sep="/"), config=config, image_processor=images)


def _interpolated(table: np.ndarray, prefix: int, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Positions [1, S, E] of `prefix` tokens and a grid of `old` (rows, columns), for a grid of `new`."""
    exact = jnp.promote_types(table.dtype, jnp.float32)
    features = table.shape[-1]
    grid = jnp.asarray(table[:, prefix:], exact).reshape(*old, features)
    grid = jax.image.resize(grid, (*new, features), "cubic").reshape(1, -1, features)
    return np.concatenate([table[:, :prefix], np.asarray(grid).astype(table.dtype)], 1)
