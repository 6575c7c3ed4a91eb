"""Blur and weather for scene text: functions of an RGB image, a numpy Generator and a level of 0 to 2.

Source of the kinds and their strengths: microsoft/unilm, trocr/augmentation. Frost is not here, since it needs its
photographs of frost.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

GAUSSIAN_RADIUS = 15  # pixels that the kernels reach to either side


def to_levels(image: Image.Image) -> np.ndarray:
    """float32 [height, width, 3] in [0, 1]."""
    return np.asarray(image, np.float32) / 255


def to_image(levels: np.ndarray) -> Image.Image:
    """[height, width, 3] in [0, 1], what is outside cut off and fractions of a level dropped, as an image."""
    return Image.fromarray((np.clip(levels, 0, 1) * 255).astype(np.uint8))


def gaussian_blur(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """By a deviation of 0.5, 1 or 2 pixels."""
    return to_image(_smoothed(to_levels(image), (0.5, 1.0, 2.0)[level]))


def defocus_blur(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """By a disk of 2, 3 or 4 pixels radius."""
    radius = (2, 3, 4)[level]
    steps = range(-radius, radius + 1)
    disk = [(y, x, 1.0) for y in steps for x in steps if y * y + x * x <= radius * radius]
    return to_image(_weighted(to_levels(image), disk))


def motion_blur(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Along some direction within 45 degrees of level."""
    radius, deviation = ((10, 3), (12, 4), (14, 5))[level]
    return to_image(_moved(to_levels(image), radius, deviation, random.uniform(-45, 45)))


def glass_blur(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Every pixel is, twice, one of its neighbours' above and to the left, in a slightly blurred image.

    The original swaps pixels one after the other, which is the same but for a pixel that is moved again.
    """
    deviation = (0.7, 0.75, 0.8)[level]
    levels = _smoothed(to_levels(image), deviation)
    rows, columns = np.indices(levels.shape[:2])
    for _ in range(2):
        up, left = random.integers(0, 2, (2, *rows.shape))
        levels = levels[np.maximum(rows - up, 0), np.maximum(columns - left, 0)]
    return to_image(_smoothed(levels, deviation))


def zoom_blur(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """The mean of the image and of its middle enlarged by up to 10, 15 or 20 %."""
    factors = (np.arange(1, 1.11, 0.01), np.arange(1, 1.16, 0.01), np.arange(1, 1.21, 0.02))[level]
    width, height = image.size
    total = to_levels(image)
    for factor in factors:
        zoomed = image.resize((int(width * factor), int(height * factor)), Image.Resampling.BICUBIC)
        left, top = (zoomed.width - width) // 2, (zoomed.height - height) // 2
        total = total + to_levels(zoomed.crop((left, top, left + width, top + height)))
    return to_image(total / (len(factors) + 1))


def fog(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Under clouds: noise of ever finer grain, each `decay` times weaker than the one before."""
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7))[level]
    clouds = np.zeros((image.height, image.width), np.float32)
    for octave in range(1, 8):
        grain = Image.fromarray(random.uniform(-1, 1, (2**octave, 2**octave)).astype(np.float32))
        clouds += np.asarray(grain.resize(image.size, Image.Resampling.BICUBIC)) / decay**octave
    clouds -= clouds.min()
    clouds /= max(float(clouds.max()), 1e-6)
    levels = to_levels(image)
    brightest = float(levels.max())
    return to_image((levels + strength * clouds[:, :, None]) * brightest / (brightest + strength))


def snow(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Whiter, and with flakes in motion from both sides."""
    mean, least, radius, deviation, share = (
        (0.1, 0.5, 10, 4, 0.8),
        (0.2, 0.5, 12, 4, 0.7),
        (0.55, 0.9, 12, 8, 0.7),
    )[level]
    flakes = random.normal(mean, 0.3, (image.height, image.width, 1)).astype(np.float32)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = _moved(flakes, radius, deviation, random.uniform(-135, -45))
    levels = to_levels(image)
    grey = np.asarray(image.convert("L"), np.float32)[:, :, None] / 255
    whiter = share * levels + (1 - share) * np.maximum(levels, grey * 1.5 + 0.5)
    return to_image(whiter + flakes + np.rot90(flakes, 2))


def rain(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With 50 to 110 light strokes of one slant."""
    wet = image.copy()
    draw = ImageDraw.Draw(wet)
    slant = np.radians(random.integers(-60, 60))
    for _ in range(int(random.integers((50, 70, 90)[level], (70, 90, 110)[level]))):
        length = int(random.integers(5, 10))
        x, y = (int(random.integers(0, max(side - length, 1))) for side in image.size)
        end = int(x + length * np.sin(slant)), int(y + length * np.cos(slant))
        draw.line([(x, y), end], fill=(200, 200, 200))
    return wet


def shadow(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With a band from top to bottom that is darker by a quarter to more than half."""
    opacity = int(random.integers((64, 96, 128)[level], (96, 128, 160)[level]))
    middle, width = max(image.width // 2, 1), max(image.width, 2)
    left, right = random.integers(0, middle, 2), random.integers(middle, width, 2)
    bottom = image.height - 1
    corners = [(int(left[0]), 0), (int(right[0]), 0), (int(right[1]), bottom), (int(left[1]), bottom)]
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).polygon(corners, fill=opacity)
    dark = image.copy()
    dark.paste((0, 0, 0), (0, 0), mask)
    return dark


def _weighted(levels: np.ndarray, parts: Iterable[tuple[int, int, float]]) -> np.ndarray:
    """The mean of the image moved by (rows, columns) with weights, what is outside being as the edge."""
    parts = list(parts)
    reach = max(max(abs(y), abs(x)) for y, x, _ in parts)
    height, width = levels.shape[:2]
    padded = np.pad(levels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(levels)
    for y, x, weight in parts:
        total += np.float32(weight) * padded[reach + y : reach + y + height, reach + x : reach + x + width]
    return total / np.float32(sum(weight for _, _, weight in parts))


def _smoothed(levels: np.ndarray, deviation: float) -> np.ndarray:
    """By a Gaussian, rows and columns one after the other."""
    reach = min(GAUSSIAN_RADIUS, int(np.ceil(4 * deviation)))
    weights = [(i, float(np.exp(-0.5 * (i / deviation) ** 2))) for i in range(-reach, reach + 1)]
    rows = _weighted(levels, [(i, 0, weight) for i, weight in weights])
    return _weighted(rows, [(0, i, weight) for i, weight in weights])


def _moved(levels: np.ndarray, radius: int, deviation: float, degrees: float) -> np.ndarray:
    """Along a direction, by one half of a Gaussian, as ImageMagick's motion blur."""
    steps = np.arange(2 * radius + 1)
    y, x = (np.rint(steps * part).astype(int) for part in (np.sin(np.radians(degrees)), np.cos(np.radians(degrees))))
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    return _weighted(levels, zip(y.tolist(), x.tolist(), weights.tolist(), strict=True))
