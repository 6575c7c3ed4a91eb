"""RandAugment for scene text, as TrOCR was trained for it: functions of an image and a numpy Generator.

Source: microsoft/unilm, trocr/data_aug.py and trocr/augmentation, after Atienza, Data Augmentation for Scene Text
Recognition, 2021. Equalize and autocontrast, which a slip leaves without effect there, have one here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from trocr_jax.datasets.blurs import (
    defocus_blur,
    fog,
    gaussian_blur,
    glass_blur,
    motion_blur,
    rain,
    shadow,
    snow,
    to_image,
    to_levels,
    zoom_blur,
)
from trocr_jax.datasets.warps import curve, distort, perspective, rotate, shrink, stretch

Change = Callable[[Image.Image, np.random.Generator, int], Image.Image]

INTACT = 0.5  # probability that an image stays as it is
CHANGES = 3  # made to others, each of another group
LEVELS = 3


def posterize(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With few levels: 1 or 2 bits, 3 or 4, 6 or 7."""
    return ImageOps.posterize(image, int(random.integers((1, 3, 6)[level], (3, 5, 8)[level])))


def solarize(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With the levels above a threshold inverted."""
    return ImageOps.solarize(image, int(random.integers((64, 128, 192)[level], (128, 192, 256)[level])))


def invert(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Its negative."""
    return ImageOps.invert(image)


def equalize(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With all levels equally frequent."""
    return ImageOps.equalize(image)


def autocontrast(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With its levels from black to white."""
    return ImageOps.autocontrast(image)


def sharpness(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Less sharp or sharper, by a factor of 0.1 to 1.9."""
    return ImageEnhance.Sharpness(image).enhance(_factor(random, level))


def color(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Less or more colourful, by a factor of 0.1 to 1.9."""
    return ImageEnhance.Color(image).enhance(_factor(random, level))


def _factor(random: np.random.Generator, level: int) -> float:
    return random.uniform((0.1, 0.7, 1.3)[level], (0.7, 1.3, 1.9)[level])


def contrast(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With 40, 30 or 20 % of its contrast."""
    levels = to_levels(image)
    mean = levels.mean(axis=(0, 1), keepdims=True)
    return to_image((levels - mean) * (0.4, 0.3, 0.2)[level] + mean)


def brightness(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Brighter by 10, 20 or 30 % of the full value, its hues and saturations kept."""
    hue, saturation, value = image.convert("HSV").split()
    added = round(255 * (0.1, 0.2, 0.3)[level])
    return Image.merge("HSV", (hue, saturation, value.point(lambda v: min(v + added, 255)))).convert("RGB")


def jpeg(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Through JPEG of quality 25, 18 or 15."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=(25, 18, 15)[level])
    return Image.open(content).convert("RGB")


def pixelate(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """At 60, 50 or 40 % of its resolution."""
    share = (0.6, 0.5, 0.4)[level]
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def gaussian_noise(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With noise of a deviation of 8 to 15 % of white."""
    deviation = (0.08, 0.1, 0.12)[level] + random.uniform(0, 0.03)
    levels = to_levels(image)
    return to_image(levels + random.normal(0, deviation, levels.shape))


def shot_noise(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """As counted by 20 to 3 photons, Poisson's noise."""
    photons = (13, 8, 3)[level] + random.uniform(0, 7)
    return to_image(random.poisson(to_levels(image) * photons) / photons)


def impulse_noise(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With 3 to 15 % of all values black or white."""
    levels = to_levels(image)
    amount = (0.03, 0.07, 0.11)[level] + random.uniform(0, 0.04)
    is_hit, is_white = random.random(levels.shape) < amount, random.random(levels.shape) < 0.5
    return to_image(np.where(is_hit, is_white.astype(np.float32), levels))


def speckle_noise(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With noise of a deviation of 15 to 30 % of each value."""
    deviation = (0.15, 0.2, 0.25)[level] + random.uniform(0, 0.05)
    levels = to_levels(image)
    return to_image(levels + levels * random.normal(0, deviation, levels.shape))


def columns(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Behind black lines from top to bottom, 3, 2 or 1 pixels of the image between them."""
    return _behind(image, level, by_rows=False, by_columns=True)


def rows(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Behind black lines from left to right."""
    return _behind(image, level, by_rows=True, by_columns=False)


def grid(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Behind black lines both ways."""
    return _behind(image, level, by_rows=True, by_columns=True)


def _behind(image: Image.Image, level: int, *, by_rows: bool, by_columns: bool) -> Image.Image:
    levels, between = np.array(image), 3 - level
    if by_rows:
        levels[between :: between + 1] = 0
    if by_columns:
        levels[:, between :: between + 1] = 0
    return Image.fromarray(levels)


def rectangles(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Behind black rectangles around its middle, one in another."""
    return _around_middle(image, level, is_round=False)


def ellipses(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Behind black ellipses around its middle, one in another."""
    return _around_middle(image, level, is_round=True)


def _around_middle(image: Image.Image, level: int, *, is_round: bool) -> Image.Image:
    changed = image.copy()
    draw = ImageDraw.Draw(changed)
    between, (width, height) = 3 - level, image.size
    for i in range(1, height // 2 // (between + 1) + (4 if is_round else 1)):
        y = between * i + i - 1
        x = y * width / height
        box = (width // 2 - x, height // 2 - y, width // 2 + x, height // 2 + y)
        (draw.ellipse if is_round else draw.rectangle)(box, outline="black")
    return changed


RANDAUGMENT: Mapping[str, tuple[Change, ...]] = {
    "process": (posterize, solarize, invert, equalize, autocontrast, sharpness, color),
    "camera": (contrast, brightness, jpeg, pixelate),
    "noise": (gaussian_noise, shot_noise, impulse_noise, speckle_noise),
    "blur": (gaussian_blur, defocus_blur, motion_blur, glass_blur, zoom_blur),
    "weather": (fog, snow, rain, shadow),
    "pattern": (columns, rows, grid, rectangles, ellipses),
    "warp": (curve, distort, stretch),
    "geometry": (rotate, perspective, shrink),
}


def rand_augment(image: Image.Image, random: np.random.Generator, *, size: tuple[int, int] = (384, 384)) -> Image.Image:
    """An RGB image at the model's `size` (height, width), as it is or, as often, with three changes.

    Each is one of another group in RANDAUGMENT, groups, changes and their levels being equally likely.
    """
    image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    if random.random() < INTACT:
        return image
    groups = list(RANDAUGMENT.values())
    for group in random.choice(len(groups), CHANGES, replace=False):
        change = groups[group][random.integers(len(groups[group]))]
        image = change(image, random, int(random.integers(LEVELS)))
    return image
