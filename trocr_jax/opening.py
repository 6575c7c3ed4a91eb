"""Images on their way to the device: opened by any thread, sent as bytes, turned into pixel values there."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trocr_jax.decoding.token_automaton import TokenAutomaton
from trocr_jax.processing.blank import is_blank
from trocr_jax.processing.image import ImageError, ImageProcessor, describe, load_rgb
from trocr_jax.processing.ink import find_ink
from trocr_jax.results import Recognition
from trocr_jax.sharding import shard_batch

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class OpenedImage:
    """An image for the model, or `unread`, the result of one that the model shall not see.

    `number` is its place among all images, `source` its path if it has one, `levels` uint8 [height, width, 3] at the
    model's size. `ink` marks the ink in the upright image, where it was asked for. `error` is why it is unread, if that
    is an error. `automaton` is the text's constraint. `aspect` is the original's width over its height: what is known
    of a text's length before it is read.
    """

    number: int
    source: str | None
    levels: np.ndarray | None = None
    ink: np.ndarray | None = None
    unread: Recognition | None = None
    error: ImageError | None = None
    automaton: TokenAutomaton | None = None
    aspect: float = 0.0


def take_image(
    number: int, image: Any, image_processor: ImageProcessor, *, skip_blank: bool, with_ink: bool
) -> Callable[[], OpenedImage]:
    """What a thread is to do to open the image; one given in memory is copied now, as the caller may change it."""
    source = path_of(image)
    if source is None and not isinstance(image, bytes):
        try:
            image = load_rgb(image)
        except ImageError as error:
            return functools.partial(_broken, number, source, error)
    return functools.partial(_open, number, source, image, image_processor, skip_blank, with_ink)


def path_of(image: Any) -> str | None:
    """The path of an image; None for one given in memory."""
    return describe(image) if isinstance(image, str | os.PathLike) else None


def _open(
    number: int, source: str | None, image: Any, image_processor: ImageProcessor, skip_blank: bool, with_ink: bool
) -> OpenedImage:
    try:
        rgb = load_rgb(image)
    except ImageError as error:
        return _broken(number, source, error)
    if skip_blank and is_blank(rgb):
        return OpenedImage(number, source, unread=Recognition("", finish_reason="blank", source=source))
    ink = find_ink(rgb) if with_ink else None
    return OpenedImage(number, source, image_processor.levels(rgb), ink, aspect=rgb.width / rgb.height)


def _broken(number: int, source: str | None, error: ImageError) -> OpenedImage:
    unread = Recognition("", finish_reason="error", error=str(error), source=source)
    return OpenedImage(number, source, unread=unread, error=error)


def to_device(
    levels: Sequence[np.ndarray], rows: int, image_processor: ImageProcessor, mesh: Mesh | None = None
) -> Array:
    """Pixel values float32 [rows, 3, height, width] on the device or mesh, to the bit those of the image processor.

    A quarter of their bytes cross over. Rows behind the images repeat the first.
    """
    filled = np.stack([*levels, *[levels[0]] * (rows - len(levels))])
    return pixel_values(shard_batch(filled, mesh), image_processor)


def pixel_values(levels: np.ndarray | Array, image_processor: ImageProcessor) -> Array:
    """The pixel values of levels uint8 [B, height, width, 3], computed where those are."""
    if is_exact(image_processor):
        return _computed(levels, _constants(image_processor))
    return _looked_up(levels, image_processor.table)


@functools.lru_cache
def is_exact(image_processor: ImageProcessor) -> bool:
    """Whether the device's own arithmetic gives the image processor's value for each of the 256 levels.

    It does for the settings that TrOCR's checkpoints have. Others are looked up in a table, which is slow on TPU.
    """
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 256, 1, 3))
    found = jax.device_get(_computed(levels, _constants(image_processor)))[0, :, :, 0].T
    return found.tobytes() == image_processor.table.tobytes()


def _constants(image_processor: ImageProcessor) -> tuple[np.ndarray, ...]:
    """(high [], low [], mean [3], 1 / std [3]), float32; a pixel value is (level * (high + low) - mean) / std.

    The rescale factor is in two parts, of which the high one has 16 bits: its product with a level is exact, and so the
    sum is rounded once, as the reference's product in float64 is.
    """
    factor = np.asarray(image_processor.rescale_factor if image_processor.do_rescale else 1.0)
    high = (factor.astype(np.float32).view(np.int32) >> 8 << 8).view(np.float32)
    low = (factor - high).astype(np.float32)
    if not image_processor.do_normalize:
        return high, low, np.zeros(3, np.float32), np.ones(3, np.float32)
    return (
        high,
        low,
        np.asarray(image_processor.image_mean, np.float32),
        1 / np.asarray(image_processor.image_std, np.float32),
    )


@jax.jit
def _computed(levels: Array, constants: tuple[Array, ...]) -> Array:
    high, low, mean, inverse_std = constants
    values = levels.astype(jnp.float32)
    values = (values * high + values * low - mean) * inverse_std
    return values.transpose(0, 3, 1, 2)  # [B, height, width, 3] -> [B, 3, height, width]


@jax.jit
def _looked_up(levels: Array, table: Array) -> Array:
    return jnp.stack([table[:, c][levels[..., c]] for c in range(3)], axis=1)
