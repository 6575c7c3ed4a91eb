"""Lines given as paths, examples or pairs are the same examples, and what are no lines is told by its place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SAMPLES
from trocr_jax.datasets import Example, open_dataset
from trocr_jax.datasets.given import examples_of
from trocr_jax.processing.image import ImageError, load_rgb


def test_a_path_is_a_dataset():
    expected = [(line.name, line.text) for line in open_dataset(SAMPLES)]
    for path in (SAMPLES, str(SAMPLES / "labels.tsv")):
        assert [(line.name, line.text) for line in examples_of(path)] == expected


def test_examples_and_pairs_come_from_any_iterable():
    path = SAMPLES / "date.png"
    first = Example("first", "a", lambda: Image.new("RGB", (3, 2)))
    image, array = Image.new("L", (3, 2), 7), np.full((2, 3), 9, np.uint8)
    given = (line for line in (first, (path, "b"), [str(path), "c"], (image, "d"), (array, "")))
    found = list(examples_of(given, "training"))
    assert found[0] is first
    assert [line.name for line in found[1:]] == [str(path), str(path), "training image 3", "training image 4"]
    assert [line.text for line in found] == ["a", "b", "c", "d", ""]
    expected = [load_rgb(path), load_rgb(path), load_rgb(image), load_rgb(array)]
    assert [line.open() for line in found[1:]] == expected  # and so RGB


def test_images_in_memory_may_be_changed_when_their_turn_has_come():
    buffer = np.zeros((2, 3), np.uint8)

    def pairs():
        for level in (10, 20):
            buffer[:] = level
            yield buffer, str(level)

    found = list(examples_of(pairs()))
    found[0].open().paste("red", (0, 0, 3, 2))  # as an augmentation might
    assert [np.asarray(line.open()).max() for line in found] == [10, 20]
    assert [line.name for line in found] == ["image 0", "image 1"]


def test_lines_are_made_when_they_are_asked_for():
    assert next(examples_of(iter([("a.png", "a"), 3]))).text == "a"


def test_an_image_that_cannot_be_read_is_told_when_it_is_opened(tmp_path):
    missing, broken = examples_of([(tmp_path / "a.png", "a"), (np.full((2, 3), -1), "b")])
    with pytest.raises(ImageError, match=r"a\.png does not exist"):
        missing.open()
    with pytest.raises(ImageError, match=r"^image 1 cannot be read: its int64 values range from -1 to -1"):
        broken.open()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (3, "is int"),
        ("a.png", "is str"),
        ({"image": "a.png", "text": "a"}, "is dict"),
        (("a.png", None), r"is \(str, NoneType\)"),
        (("a text", Image.new("L", (3, 2))), r"is \(str, Image\)"),
        ((np.zeros(3), "a"), r"is \(ndarray \(3,\), str\)"),
        (("a.png", "a", "b"), "is tuple"),
    ],
)
def test_what_is_no_line_is_told_by_its_place(line, told):
    with pytest.raises(TypeError, match=rf"^validation line 1 \(counted from 0\) {told}; pass an Example, or a pair"):
        list(examples_of([("a.png", "a"), line], "validation"))


def test_nothing_and_no_lines_at_all_are_told():
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match=r"^there are no training lines: pass at least one"):
            list(examples_of(nothing, "training"))
    with pytest.raises(TypeError, match=r"^the lines are given as int; pass a path, or"):
        list(examples_of(3))
