"""RandAugment's draws, and its changes against what they are said to do."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from PIL import Image

from trocr_jax.datasets import blurs, randaugment, warps
from trocr_jax.datasets.randaugment import RANDAUGMENT, rand_augment


def random(seed=0):
    return np.random.default_rng(seed)


def levels_of(image):
    return np.asarray(image, float)


@pytest.fixture
def grey():
    return Image.new("RGB", (120, 90), (128, 128, 128))


@pytest.fixture
def board():
    """Squares of 20 pixels, black and white."""
    rows, columns = np.indices((80, 120)) // 20
    return Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8)).convert("RGB")


def test_half_stay_and_the_others_have_three_changes_of_different_groups(monkeypatch, grey):
    made = []

    def noted(group, change):
        return lambda image, _, level: made.append((group, change.__name__, level)) or image

    noting = {group: tuple(noted(group, change) for change in changes) for group, changes in RANDAUGMENT.items()}
    monkeypatch.setattr(randaugment, "RANDAUGMENT", noting)
    counts, drawn = collections.Counter(), collections.Counter()
    generator = random()
    for _ in range(4000):
        made.clear()
        assert rand_augment(grey, generator, size=(20, 30)).size == (30, 20)
        counts[len(made)] += 1
        assert len({group for group, _, _ in made}) == len(made)
        drawn.update(made)
    assert counts.keys() == {0, 3}
    assert abs(counts[0] - 2000) < 160  # five deviations
    groups = collections.Counter()
    for (group, _, _), count in drawn.items():
        groups[group] += count
    assert groups.keys() == RANDAUGMENT.keys()
    # Three of eight groups in every other image.
    assert all(abs(count - 750) < 130 for count in groups.values())
    assert {level for _, _, level in drawn} == {0, 1, 2}
    assert {name for _, name, _ in drawn} == {change.__name__ for changes in RANDAUGMENT.values() for change in changes}


def test_it_is_reproducible_and_at_the_models_size(board):
    first, again, other = (rand_augment(board, random(seed), size=(64, 128)) for seed in (5, 5, 6))
    assert first.size == (128, 64)
    assert first == again
    assert first != other


@pytest.mark.parametrize("level", range(3))
def test_contrast_and_brightness(board, level):
    found = levels_of(randaugment.contrast(board, random(), level))
    assert found.max() - found.min() == pytest.approx(255 * (0.4, 0.3, 0.2)[level], abs=1)
    grey = Image.new("RGB", (9, 9), (100, 100, 100))
    brighter = levels_of(randaugment.brightness(grey, random(), level))
    assert brighter == pytest.approx(100 + 255 * (0.1, 0.2, 0.3)[level], abs=1)


@pytest.mark.parametrize("level", range(3))
def test_noise_is_of_the_deviation_it_says(grey, level):
    mean = levels_of(grey).mean()
    gaussian = levels_of(randaugment.gaussian_noise(grey, random(), level)).std() / 255
    assert (0.08, 0.1, 0.12)[level] - 0.005 < gaussian < (0.11, 0.13, 0.15)[level] + 0.005
    shot = levels_of(randaugment.shot_noise(grey, random(), level))
    # Poisson: the deviation is the root of the mean; both in photons, of which white has 13 to 20, 8 to 15, 3 to 10.
    photons = mean * 255 / shot.std() ** 2
    assert (13, 8, 3)[level] * 0.9 < photons < (20, 15, 10)[level] * 1.2
    impulse = levels_of(randaugment.impulse_noise(grey, random(), level))
    hit = np.isin(impulse, (0, 255)).mean()
    assert (0.03, 0.07, 0.11)[level] - 0.01 < hit < (0.07, 0.11, 0.15)[level] + 0.01
    assert 0.4 < (impulse[np.isin(impulse, (0, 255))] == 255).mean() < 0.6
    speckle = levels_of(randaugment.speckle_noise(grey, random(), level)).std() / mean
    assert (0.15, 0.2, 0.25)[level] - 0.01 < speckle < (0.2, 0.25, 0.3)[level] + 0.01


@pytest.mark.parametrize("level", range(3))
def test_patterns_leave_stripes_of_the_image(grey, level):
    between = 3 - level
    rows = levels_of(randaugment.rows(grey, random(), level))[:, 0, 0]
    assert np.flatnonzero(rows == 0).tolist() == list(range(between, 90, between + 1))
    columns = levels_of(randaugment.columns(grey, random(), level))[0, :, 0]
    assert np.flatnonzero(columns == 0).tolist() == list(range(between, 120, between + 1))
    both = levels_of(randaugment.grid(grey, random(), level))[:, :, 0]
    assert np.array_equal(both == 0, (rows == 0)[:, None] | (columns == 0))


@pytest.mark.parametrize("change", RANDAUGMENT["blur"])
def test_blur_keeps_the_mean_and_takes_contrast(board, change):
    for level in range(3):
        found = levels_of(change(board, random(), level))
        assert found.mean() == pytest.approx(levels_of(board).mean(), abs=8)
        assert found.std() < levels_of(board).std() - 1


def test_blurs_leave_one_level_as_it_is(grey):
    for change in RANDAUGMENT["blur"]:
        assert np.abs(levels_of(change(grey, random(), 2)) - 128).max() <= 1


def test_motion_is_along_the_line_and_defocus_round():
    dot = np.zeros((61, 61, 3), np.uint8)
    dot[30, 30] = 255
    moved = levels_of(blurs.motion_blur(Image.fromarray(dot), random(), 0))[:, :, 0]
    spread = np.argwhere(moved > 0).max(axis=0) - np.argwhere(moved > 0).min(axis=0)
    assert spread[1] >= spread[0]  # within 45 degrees of level
    assert spread[1] >= 4
    round_ = levels_of(blurs.defocus_blur(Image.fromarray(dot), random(), 2))[:, :, 0]
    at = np.argwhere(round_ > 0) - 30
    assert len(at) == 49  # whole pixels within 4 of the middle
    assert (at**2).sum(axis=1).max() == 16


def test_a_spline_that_moves_nothing_changes_nothing(board):
    places = [(x, y) for x in warps.COLUMNS for y in (0.0, 1.0)]
    assert np.abs(levels_of(warps._spline(board, places, places)) - levels_of(board)).max() <= 1


def test_a_spline_moves_its_points(board):
    # Affine moves are followed everywhere: a quarter to the right, and what comes into view is black.
    places = [(x, y) for x in warps.COLUMNS for y in (0.0, 1.0)]
    moved = levels_of(warps._spline(board, places, [(x + 0.25, y) for x, y in places]))
    assert np.abs(moved[:, 31:] - levels_of(board)[:, 1:90]).max() <= 1
    assert moved[:, :29].max() == 0


def test_perspective_moves_the_corners(board):
    white = Image.new("RGB", (100, 100), "white")
    for seed in range(6):
        found = levels_of(warps.perspective(white, random(seed), 1))[:, :, 0] > 128
        heights = sorted((found[:, 2].sum(), found[:, -3].sum()))
        assert heights[1] >= 97
        assert 38 <= heights[0] <= 64  # 1 - 0.2 - 0.2 less up to a tenth at either end, seen two pixels inside


@pytest.mark.parametrize("level", range(3))
def test_shrinking_keeps_a_part_of_the_image(level):
    white = Image.new("RGB", (300, 200), "white")
    share = (0.2, 0.3, 0.4)[level]
    for seed in range(8):
        found = levels_of(warps.shrink(white, random(seed), level))[:, :, 0] > 0
        width, height = found.any(axis=0).sum(), found.any(axis=1).sum()
        assert 300 * (1 - 0.66 * share) - 1 <= width <= 300 * (1 - 0.66 * (share - 0.1)) + 1
        assert 200 * (1 - share) - 1 <= height <= 200 * (1.1 - share) + 1


def test_a_curve_is_an_arc_over_the_whole_size():
    white = Image.new("RGB", (200, 200), "white")
    ups = 0
    for seed in range(8):
        found = levels_of(warps.curve(white, random(seed), 2))[:, :, 0] > 128
        top = found.argmax(axis=0)
        is_up = top[100] < top[60]
        ups += is_up
        assert found[:, 100].sum() > 60
        assert abs(top[60] - top[139]) <= 4
    assert 0 < ups < 8


def test_weather_has_its_look(grey):
    snowy = levels_of(blurs.snow(grey, random(), 1))
    assert snowy.mean() > 150
    wet = levels_of(blurs.rain(grey, random(), 1))
    assert set(np.unique(wet)) == {128, 200}
    shaded = levels_of(blurs.shadow(grey, random(), 0))
    assert 255 * (1 - 96 / 255) / 2 - 2 <= shaded.min() <= 255 * (1 - 64 / 255) / 2 + 2
    assert shaded.max() == 128
    foggy = levels_of(blurs.fog(grey, random(), 0))
    assert foggy.std() > 8
