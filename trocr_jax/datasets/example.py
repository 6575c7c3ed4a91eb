"""One line with a known text, whatever file it lies in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Example:
    """A line of a dataset: `name` says where it lies, for messages; `open` gives its upright RGB image when asked.

    `open` may be called by any thread and raises `trocr_jax.processing.image.ImageError` for an image that cannot be
    read.
    """

    name: str
    text: str
    open: Callable[[], Image.Image]
