"""Augmentations against their definitions, and what holds for each of them."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SAMPLES
from trocr_jax import cli
from trocr_jax.datasets.augmentation import AUGMENTATIONS, DA2, augmentation_of, contact_sheet, da2, keep
from trocr_jax.datasets.randaugment import rand_augment

WHITE = (255, 255, 255)


@pytest.fixture
def line():
    return Image.open(SAMPLES / "printed.png").convert("RGB")


def random(seed=0):
    return np.random.default_rng(seed)


KINDS = [(name, kind) for name, kinds in AUGMENTATIONS.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("size", [None, (1, 1), (3, 40), (40, 2)])
def test_every_kind_is_a_pure_function(line, name, kind, size):
    tinted = Image.fromarray((np.asarray(line) * [0.9, 0.6, 0.7]).astype(np.uint8))
    image = tinted if size is None else tinted.resize(size)
    before, change = image.tobytes(), AUGMENTATIONS[name][kind]
    changed = [change(image, random(seed)) for seed in (1, 1, 2)]
    assert image.tobytes() == before
    assert changed[0] == changed[1]
    assert all(result.mode == "RGB" for result in changed)
    assert name == "da2" or changed[0].size == image.size
    if size is None and kind != "keep":
        assert changed[0] != image


def test_the_seven_kinds_are_equally_likely(line, monkeypatch):
    drawn = collections.Counter()

    def counted(kind):
        return lambda image, *_, **__: drawn.update([kind]) or image

    monkeypatch.setattr("trocr_jax.datasets.augmentation.DA2", {kind: counted(kind) for kind in DA2})
    monkeypatch.setattr("trocr_jax.datasets.augmentation.downscale", counted("downscale"))
    generator = random()
    for _ in range(7000):
        da2(line, generator)
    assert set(drawn) == {"rotate", "blur", "dilate", "erode", "downscale", "underline", "keep"}
    # Of a count with mean 1000 and deviation 29: beyond five deviations once in two million.
    assert all(abs(count - 1000) < 150 for count in drawn.values())


def test_dilation_and_erosion_are_the_extremes_of_3x3(line):
    levels = np.pad(np.asarray(line), ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = [levels[i : i + line.height, j : j + line.width] for i in range(3) for j in range(3)]
    assert np.array_equal(np.asarray(DA2["dilate"](line, random())), np.max(around, axis=0))
    assert np.array_equal(np.asarray(DA2["erode"](line, random())), np.min(around, axis=0))


def test_blur_is_a_convolution_with_mirrored_edges(line):
    # As torchvision's GaussianBlur(3): a kernel of two dimensions on a padded image, rounded.
    deviation = random(4).uniform(0.1, 2.0)
    weights = torch.exp(-0.5 * (torch.tensor([-1.0, 0, 1]) / deviation) ** 2)
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(3, 1, 3, 3)
    pixels = torch.from_numpy(np.array(line)).permute(2, 0, 1)[None].float()
    padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1), mode="reflect")
    expected = torch.round(torch.nn.functional.conv2d(padded, kernel, groups=3))[0].permute(1, 2, 0).numpy()
    found = np.asarray(DA2["blur"](line, random(4)), float)
    assert np.abs(found - expected).max() <= 1  # where rounding falls between two levels
    assert np.abs(found - expected).mean() < 1e-3


def test_rotation_is_whole_on_white_and_within_ten_degrees():
    black = Image.new("RGB", (100, 100), "black")
    sizes = set()
    for seed in range(100):
        turned = DA2["rotate"](black, random(seed))
        assert turned.getpixel((0, 0)) == WHITE
        assert abs((np.asarray(turned) == 0).all(axis=2).sum() - 10_000) < 300
        sizes.add(turned.width)
    # 100 (cos 10 + sin 10) = 115.8
    assert 114 <= max(sizes) <= 117


def test_underline_is_three_rows_below_the_lowest_ink():
    levels = np.full((20, 30, 3), 255, np.uint8)
    levels[5:11, 4] = 10
    levels[5:9, 20] = 10
    levels[15, 25] = 60  # too light to be ink
    lined = np.asarray(DA2["underline"](Image.fromarray(levels), random()))[:, :, 0]
    assert [row for row in range(20) if (lined[row, 4:20] == 0).all()] == [8, 9, 10]
    assert not (lined[:, 20:] == 0).any()
    assert not (lined[:, :4] == 0).any()
    blank = Image.new("RGB", (9, 9), "white")
    assert DA2["underline"](blank, random()) == blank


def test_downscaling_is_to_a_third_of_the_models_size(line):
    downscale = DA2["downscale"](line, random())
    assert downscale == line.resize((128, 128), Image.Resampling.NEAREST)
    sizes = {da2(line, random(seed), size=(64, 256)).size for seed in range(60)}
    assert (85, 21) in sizes
    assert (128, 128) not in sizes


def test_augmentations_are_found_by_their_names(line):
    for name, function in (("da2", da2), ("randaugment", rand_augment)):
        found = augmentation_of(name, (64, 256))
        assert [found(line, random(seed)) for seed in range(9)] == [
            function(line, random(seed), size=(64, 256)) for seed in range(9)
        ]
    assert augmentation_of(keep, (64, 256)) is keep
    assert augmentation_of(None, (64, 256)) is None
    with pytest.raises(ValueError, match="augment is 'da3'; pass one of da2, randaugment, a function"):
        augmentation_of("da3", (64, 256))
    with pytest.raises(TypeError, match=r"augment is \['da2'\], of type list; pass one of da2, randaugment"):
        augmentation_of(["da2"], (64, 256))


def test_a_contact_sheet_has_every_image_in_its_row():
    colours = [["red", "lime"], ["blue"]]
    rows = {str(i): [Image.new("RGB", (50, 20), c) for c in row] for i, row in enumerate(colours)}
    sheet = contact_sheet(rows, width=100, height=30)
    found = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} < found
    red, blue = (np.argwhere((np.asarray(sheet) == colour).all(axis=2)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert len(red) == len(blue) == 50 * 20
    assert red[:, 0].max() < blue[:, 0].min()


def test_data_show_draws_every_kind(tmp_path, capsys):
    assert cli.main(["data", "show", str(SAMPLES), "--output", str(tmp_path / "s.png"), "--lines", "2"]) == 0
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (130 + 2 * 266, 8 * 62 + 6)
    for arguments, message in (
        ((str(SAMPLES), "--output", str(tmp_path / "s.what")), "let it end in .png"),
        (("none", "--output", str(tmp_path / "s.png")), "none does not exist"),
    ):
        assert cli.main(["data", "show", *arguments]) == 2
        assert message in capsys.readouterr().err
