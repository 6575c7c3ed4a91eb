"""A model for images of another size: long lines want more columns than those of a page that is as high as wide."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.recognizer import TrOCR

POSITIONS = "encoder/embeddings/position_embeddings"


def with_image_size(ocr: TrOCR, size: tuple[int, int]) -> TrOCR:
    """The recogniser for images made `size` (height, width) in pixels, to be trained further.

    The positions of its patches are interpolated (bicubic) to the new rows and columns; all other weights stay.
    Characters look wider or narrower to it than before, so it reads worse until it is trained. Raises ValueError for a
    size that its patches do not divide.
    """
    size = (size[0], size[1])  # a list's numbers, too
    encoder = ocr.config.encoder
    if any(side < 1 or side % patch for side, patch in zip(size, encoder.patch_shape, strict=True)):
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels (height x width) hold no whole number of this model's patches of "
            f"{encoder.patch_shape[0]} x {encoder.patch_shape[1]}; choose multiples"
        )
    config = dataclasses.replace(ocr.config, encoder=dataclasses.replace(encoder, image_size=size))
    flat = flatten_dict(dict(ocr.params), sep="/")
    table = jnp.asarray(flat[POSITIONS], jnp.float32)  # [1, S, E]
    prefix, width = encoder.num_prefix_tokens, encoder.hidden_size
    old, new = (
        tuple(side // patch for side, patch in zip(shape, encoder.patch_shape, strict=True))
        for shape in (encoder.image_shape, size)
    )
    grid = jax.image.resize(table[:, prefix:].reshape(1, *old, width), (1, *new, width), "bicubic")
    spread = jnp.concatenate([table[:, :prefix], grid.reshape(1, -1, width)], 1)
    resized = ocr.with_params(unflatten_dict({**flat, POSITIONS: spread}, sep="/"), config=config)
    images = dataclasses.replace(ocr.processor.image_processor, size=size, crop_size=size)
    resized.processor = TrOCRProcessor(images, ocr.processor.tokenizer)
    return resized
