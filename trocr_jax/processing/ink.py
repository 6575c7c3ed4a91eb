"""Where the ink is in an image of a text line: what boxes around words and characters are snapped to.

h and w are the image's pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# Of the way from paper to ink: strokes are counted with their grey edges, as fonts' boxes count them.
INK_LEVEL = 0.25
# Standard deviations of the paper's noise that ink must differ by, unless its contrast is lower than twice that.
NOISE_LEVEL = 4
# Rows with less ink than this share of the width part a line from its neighbours above and below.
GAP_SHARE = 0.005


def find_ink(image: Image.Image) -> np.ndarray:
    """The strokes in an image: bool [h, w], dark on light or light on dark, on paper of uneven brightness too.

    Ink is the smaller part of the pixels. Straight lines that the text stands on and pieces of neighbouring lines at
    the upper and lower border are left out. No pixel is ink in an image of one colour.
    """
    levels = np.asarray(image.convert("L"), np.float64)
    radius = max(8, levels.shape[0] // 2)
    offset = levels - _box_mean(levels, radius)
    if offset.max() - offset.min() < 1:
        return np.zeros(levels.shape, bool)
    is_dark = offset <= _otsu(offset)
    sign = 1 if is_dark.mean() < 0.5 else -1
    is_ink = is_dark if sign == 1 else ~is_dark
    # Once more, against the brightness of the paper alone, which strokes nearby no longer darken.
    paper = _box_mean(levels * ~is_ink, radius) / np.maximum(_box_mean(~is_ink * 1.0, radius), 1e-3)
    strength = sign * (paper - levels)
    contrast = float(np.median(strength[is_ink]))
    grain = strength[~is_ink]
    noise = 1.4826 * float(np.median(np.abs(grain - np.median(grain))))  # of a normal distribution, by its median
    found = strength > max(INK_LEVEL * contrast, min(NOISE_LEVEL * noise, contrast / 2))
    return _without_neighbours(_without_rules(found))


def _box_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Means over squares of 2 * radius + 1 pixels, cut at the borders: [h, w] -> [h, w]."""
    for axis in (0, 1):
        size = values.shape[axis]
        total = np.insert(np.cumsum(values, axis), 0, 0.0, axis)
        first = np.maximum(np.arange(size) - radius, 0)
        last = np.minimum(np.arange(size) + radius + 1, size)
        count = (last - first).reshape([-1 if i == axis else 1 for i in (0, 1)])
        values = (total.take(last, axis) - total.take(first, axis)) / count
    return values


def _otsu(values: np.ndarray) -> float:
    """The threshold whose two classes lie farthest apart (Otsu 1979); the lower class holds it."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * middles)[:-1]
    above = counts.sum() - below
    apart = sums / np.maximum(below, 1) - ((counts * middles).sum() - sums) / np.maximum(above, 1)
    return float(edges[1 + np.argmax(below * above * apart**2)])


def _without_rules(ink: np.ndarray) -> np.ndarray:
    """Without runs of ink along a row that no stroke is as long as; what is nothing else stays.

    In: 1 1 1 1 1 1 1 1   Out: 0 0 0 0 0 0 0 0
        0 1 0 0 1 1 0 0        0 1 0 0 1 1 0 0
    """
    height, width = ink.shape
    least = max(width // 2, 2 * height)
    rest = ink.copy()
    for row in np.flatnonzero(ink.sum(1) >= least):
        for start, end in _runs(ink[row]):
            if end - start >= least:
                rest[row, start:end] = False
    return rest if rest.any() else ink


def _without_neighbours(ink: np.ndarray) -> np.ndarray:
    """Without what touches the upper or lower border and is parted from the line by rows without ink."""
    per_row = ink.sum(1)
    bands = _runs(per_row > GAP_SHARE * ink.shape[1])
    if len(bands) < 2:
        return ink
    line = max(bands, key=lambda band: per_row[band[0] : band[1]].sum())
    rest = ink.copy()
    for start, end in bands:
        if (start, end) != line and (start == 0 or end == len(ink)):
            rest[start:end] = False
    return rest


def _runs(is_on: np.ndarray) -> list[tuple[int, int]]:
    """Runs of True as (first, behind the last). In: 0 1 1 0 1, out: (1, 3), (4, 5)."""
    padded = np.concatenate([[0], is_on.astype(np.int8), [0]])
    ends = np.flatnonzero(np.diff(padded)).tolist()
    return list(zip(ends[::2], ends[1::2], strict=True))
