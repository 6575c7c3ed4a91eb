"""Images changed at random, as TrOCR was trained on them: functions of an image and a numpy Generator.

Source: microsoft/unilm, trocr/data_aug.py. None of them changes the image that it is given.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from trocr_jax.datasets.randaugment import LEVELS, RANDAUGMENT, Change, rand_augment
from trocr_jax.replacing import replacing

Augmentation = Callable[[Image.Image, np.random.Generator], Image.Image]
AugmentationName = Literal["da2", "randaugment"]

# Where an underline is drawn, the darkest this many of 255 grey levels are ink.
INK = 50


def keep(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The image itself."""
    return image


def rotate(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Turned by up to 10 degrees to either side, on white and whole."""
    angle = random.uniform(-10, 10)
    return image.rotate(angle, Image.Resampling.NEAREST, expand=True, fillcolor=(255, 255, 255))


def blur(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Blurred by a Gaussian cut off at 3x3 pixels, its deviation 0.1 to 2 pixels, the edges mirrored."""
    deviation = random.uniform(0.1, 2.0)
    weights = np.exp(-0.5 * (np.array([-1, 0, 1]) / deviation) ** 2)
    weights /= weights.sum()
    padded = np.pad(np.asarray(image, np.float32), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    rows = sum(weight * padded[i : i + image.height] for i, weight in enumerate(weights))
    columns = sum(weight * rows[:, i : i + image.width] for i, weight in enumerate(weights))
    return Image.fromarray(np.rint(columns).astype(np.uint8))


def dilate(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Each pixel the lightest of the 3x3 around it, which makes dark strokes thinner."""
    return image.filter(ImageFilter.MaxFilter(3))


def erode(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Each pixel the darkest of the 3x3 around it, which makes dark strokes thicker."""
    return image.filter(ImageFilter.MinFilter(3))


def downscale(image: Image.Image, random: np.random.Generator, *, size: tuple[int, int] = (384, 384)) -> Image.Image:
    """A third of the model's `size` (height, width) in pixels, by the nearest pixel; the model's resize undoes it."""
    return image.resize((size[1] // 3, size[0] // 3), Image.Resampling.NEAREST)


def underline(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """With a black line of 3 pixels along the lowest ink, from the first column of ink to the last."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < INK)
    if not len(rows):
        return image
    levels = np.array(image)
    bottom = rows.max()
    levels[max(bottom - 2, 0) : bottom + 1, columns.min() : columns.max()] = 0
    return Image.fromarray(levels)


DA2: Mapping[str, Augmentation] = {
    "rotate": rotate,
    "blur": blur,
    "dilate": dilate,
    "erode": erode,
    "downscale": downscale,
    "underline": underline,
    "keep": keep,
}


def da2(image: Image.Image, random: np.random.Generator, *, size: tuple[int, int] = (384, 384)) -> Image.Image:
    """An RGB image by one of the seven kinds in DA2, each as likely as another: what lines are trained with.

    `size` is the model's (height, width) in pixels.
    """
    kind = list(DA2)[random.integers(len(DA2))]
    if kind == "downscale":
        return downscale(image, random, size=size)
    return DA2[kind](image, random)


# What a training may change its images with by name; each takes the model's `size`.
NAMED: Mapping[str, Callable[..., Image.Image]] = {"da2": da2, "randaugment": rand_augment}


def augmentation_of(augment: Augmentation | AugmentationName | None, size: tuple[int, int]) -> Augmentation | None:
    """The augmentation itself, or the one of that name for a model whose images have `size` (height, width) in pixels.

    Raises ValueError for a name that there is not, TypeError for what is no function.
    """
    given: Any = augment
    if given is None or callable(given):
        return given
    choices = f"{', '.join(NAMED)}, a function of an image and a numpy Generator, or None"
    if not isinstance(given, str):
        raise TypeError(f"augment is {given!r}, of type {type(given).__name__}; pass one of {choices}")
    if given not in NAMED:
        raise ValueError(f"augment is {given!r}; pass one of {choices}")
    return functools.partial(NAMED[given], size=size)


def _at_any_level(image: Image.Image, random: np.random.Generator, *, change: Change) -> Image.Image:
    return change(image, random, int(random.integers(LEVELS)))


# The kinds of change of each augmentation, to look at.
AUGMENTATIONS: Mapping[str, Mapping[str, Augmentation]] = {
    "da2": DA2,
    "randaugment": {
        change.__name__: functools.partial(_at_any_level, change=change)
        for changes in RANDAUGMENT.values()
        for change in changes
    },
}


def contact_sheet(rows: Mapping[str, list[Image.Image]], *, width: int = 260, height: int = 56) -> Image.Image:
    """The images of each row side by side behind its name, each made to fit into `width` x `height` pixels."""
    label, gap = 130, 6
    columns = max(map(len, rows.values()), default=0)
    sheet = Image.new("RGB", (label + columns * (width + gap), len(rows) * (height + gap) + gap), (120, 120, 120))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (name, images) in enumerate(rows.items()):
        top = gap + i * (height + gap)
        draw.text((gap, top + height // 3), name, font=font, fill=(255, 255, 255))
        for j, image in enumerate(images):
            fitted = image.copy()
            fitted.thumbnail((width, height))
            sheet.paste(fitted, (label + j * (width + gap), top))
    return sheet


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image, in the format of the name's suffix, to a temporary name first. ValueError for another suffix."""
    kind = Image.registered_extensions().get(pathlib.Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"{path} is no name of a picture; let it end in .png")
    with replacing(path) as partial:
        image.save(partial, kind)
