"""Warps and other geometry for scene text: functions of an RGB image, a numpy Generator and a level of 0 to 2.

Source of the kinds and their strengths: microsoft/unilm, trocr/augmentation. As there, the size stays and what comes
into view is black.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

BICUBIC = Image.Resampling.BICUBIC
# Parts of the width where a warp's control points are.
COLUMNS = np.array([0.0, 0.33, 0.66, 1.0])


def stretch(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With some parts of the line wider and others narrower."""
    share = (0.2, 0.3, 0.4)[level]
    moves = 0.33 * np.array([random.uniform(low, high) for low, high in _inwards(share)])
    source = [(x, y) for x in COLUMNS for y in (0.0, 0.5, 1.0)]
    target = [(x + move, y) for x, move in zip(COLUMNS, moves, strict=True) for y in (0.0, 0.5, 1.0)]
    return _spline(image, source, target)


def distort(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """With points of its upper and its lower edge moved, to inside the image."""
    share = (0.2, 0.3, 0.4)[level]
    source, target = [], []
    for y, (low, high) in ((0.0, (0, share)), (1.0, (-share, 0))):
        for x, (left, right) in zip(COLUMNS, _inwards(share), strict=True):
            source.append((x, y))
            target.append((x + 0.33 * random.uniform(left, right), y + 0.5 * random.uniform(low, high)))
    return _spline(image, source, target)


def curve(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Along an arc, upwards or downwards, whose radius is about the image's height, less at each level."""
    is_flipped = random.random() < 0.5
    upright = ImageOps.flip(image) if is_flipped else image
    radius = random.uniform(*((1.1, 1.2), (0.95, 1.05), (0.8, 0.9))[level])
    depth = random.uniform(0.4, 0.5)  # of the line, as a part of the image's height
    half = np.arcsin(0.5 / radius)  # the angle from the middle of the arc to its ends
    places = [(x, y) for x in (0.0, 0.25, 0.5, 0.75, 1.0) for y in (0.0, 0.5, 1.0)]
    target = []
    for x, y in places:
        angle, reach = (2 * x - 1) * half, radius - depth * y
        target.append((0.5 + reach * np.sin(angle), radius - reach * np.cos(angle)))
    bent = _spline(upright, places, target)
    # The arc takes the upper half, and is enlarged to the whole.
    lowest = max(y for _, y in target)
    bent = bent.crop((0, 0, bent.width, max(1, round(lowest * bent.height)))).resize(image.size, BICUBIC)
    return ImageOps.flip(bent) if is_flipped else bent


def rotate(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Turned, as a square, by up to 20, 40 or 60 degrees."""
    angle = random.uniform(*((0, 20), (20, 40), (40, 60))[level]) * random.choice([-1, 1])
    side = max(image.size)
    return image.resize((side, side), BICUBIC).rotate(angle, BICUBIC, expand=True).resize(image.size, BICUBIC)


def perspective(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """As seen from one side, which makes the other end lower by 20 to 80 %."""
    low = (0.1, 0.2, 0.3)[level]
    top, bottom = random.uniform(low, low + 0.1), random.uniform(0.9 - low, 1 - low)
    ends = [(0, 1), (top, bottom)] if random.random() < 0.5 else [(top, bottom), (0, 1)]
    target = [(x, y) for x, heights in zip((0.0, 1.0), ends, strict=True) for y in heights]
    return _in_perspective(image, [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)], target)


def shrink(image: Image.Image, random: np.random.Generator, level: int) -> Image.Image:
    """Smaller, and off its middle."""
    share = (0.2, 0.3, 0.4)[level]
    x, y = 0.33 * random.uniform(share - 0.1, share), 0.5 * random.uniform(share - 0.1, share)
    size = max(1, round(image.width * (1 - 2 * x))), max(1, round(image.height * (1 - 2 * y)))
    left, top = x + random.uniform(-x, x), y
    if random.random() < 0.5:
        left, top = x, y + random.uniform(-y, y)
    smaller = Image.new("RGB", image.size)
    smaller.paste(image.resize(size, BICUBIC), (round(left * image.width), round(top * image.height)))
    return smaller


def _inwards(share: float) -> tuple[tuple[float, float], ...]:
    """Where the points of each of COLUMNS may move to: those at the ends to the inside only."""
    return ((0, share), (-share, share), (-share, share), (-share, 0))


def _in_perspective(
    image: Image.Image, source: list[tuple[float, float]], target: list[tuple[float, float]]
) -> Image.Image:
    """The image with four points moved from `source` to `target`, both as parts of its size, straight lines staying."""
    rows, sides = [], []
    for (x, y), (u, v) in zip(_pixels(source, image), _pixels(target, image), strict=True):
        rows += [[u, v, 1, 0, 0, 0, -x * u, -x * v], [0, 0, 0, u, v, 1, -y * u, -y * v]]
        sides += [x, y]
    coefficients = np.linalg.solve(np.array(rows), np.array(sides))
    return image.transform(image.size, Image.Transform.PERSPECTIVE, coefficients.tolist(), BICUBIC)


def _pixels(points: list[tuple[float, float]], image: Image.Image) -> list[tuple[float, float]]:
    return [(x * image.width, y * image.height) for x, y in points]


def _spline(image: Image.Image, source: list[tuple[float, float]], target: list[tuple[float, float]]) -> Image.Image:
    """The image with points moved from `source` to `target`, both as parts of its size, by a thin plate spline.

    Source: Bookstein, Principal Warps, 1989. The spline goes from places in the result to those in the image.
    """
    fixed, wanted = np.array(target), np.array(source)
    around = np.hstack([np.ones((len(fixed), 1)), fixed])
    own = _bending(fixed[:, None, 0] - fixed[:, 0], fixed[:, None, 1] - fixed[:, 1])
    system = np.block([[own, around], [around.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.vstack([wanted, np.zeros((3, 2))])).astype(np.float32)
    x = ((np.arange(image.width) + 0.5) / image.width).astype(np.float32)[None, :]
    y = ((np.arange(image.height) + 0.5) / image.height).astype(np.float32)[:, None]
    # [height, width, 2]: where in the image each pixel of the result is from
    found = weights[-3] + x[:, :, None] * weights[-2] + y[:, :, None] * weights[-1]
    for (point_x, point_y), weight in zip(fixed.astype(np.float32), weights[:-3], strict=True):
        found += _bending(x - point_x, y - point_y)[:, :, None] * weight
    return _sampled(image, found[:, :, 0] * image.width - 0.5, found[:, :, 1] * image.height - 0.5)


def _bending(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """r^2 log r^2, r being the length of (x, y)."""
    squares = x * x + y * y
    return squares * np.log(np.maximum(squares, 1e-30))


def _sampled(image: Image.Image, x: np.ndarray, y: np.ndarray) -> Image.Image:
    """The image at places x, y [height, width] in pixels, between its own if need be; black outside."""
    levels = np.pad(np.asarray(image, np.float32), ((1, 2), (1, 2), (0, 0)))
    x, y = np.clip(x + 1, 0, image.width + 1), np.clip(y + 1, 0, image.height + 1)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right, down = (x - left)[:, :, None], (y - top)[:, :, None]
    upper = levels[top, left] * (1 - right) + levels[top, left + 1] * right
    lower = levels[top + 1, left] * (1 - right) + levels[top + 1, left + 1] * right
    return Image.fromarray(np.rint(upper * (1 - down) + lower * down).astype(np.uint8))
