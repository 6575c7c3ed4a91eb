"""Pictures of results: outlines around the ink and never over it, words above where they fit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.conftest import SAMPLES
from trocr_jax import TrOCR
from trocr_jax.drawing import COLOURS, draw_words
from trocr_jax.results import Word

RED, BLUE = (ImageColor.getrgb(colour) for colour in COLOURS)


def page(width=200, height=40, level=255):
    return Image.new("RGB", (width, height), (level,) * 3)


def is_colour(picture, colour):
    return (np.asarray(picture) == colour).all(-1)


def test_outlines_run_around_the_ink():
    image = page()
    image.paste((0, 0, 0), (20, 10, 60, 30))
    picture = draw_words(image, [Word("ab", 0, 2, 1.0, (20, 10, 60, 30))])
    strip = picture.height - 40
    assert (picture.width, strip > 0) == (200, True)
    below = np.asarray(picture)[strip:]
    assert (below[10:30, 20:60] == 0).all()
    marked = is_colour(below, RED)
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (9, 30, 19, 60)
    untouched = np.ones(marked.shape, bool)
    untouched[9:31, 19:61] = False
    assert (below[untouched] == 255).all()


def test_words_stand_above_their_boxes_where_they_fit():
    words = [Word("one", 0, 3, 1.0, (10, 5, 60, 35)), Word("two", 4, 7, 1.0, (100, 5, 150, 35))]
    picture = draw_words(page(), words)
    strip = np.asarray(picture)[: picture.height - 40]
    assert is_colour(strip, RED)[:, 10:60].any()
    assert not is_colour(strip, RED)[:, 100:].any()
    assert is_colour(strip, BLUE)[:, 100:150].any()
    # The first would run into the second; the last would run out of the picture.
    tight = [
        Word("much too long", 0, 13, 1.0, (10, 5, 30, 35)),
        Word("b", 14, 15, 1.0, (35, 5, 50, 35)),
        Word("and here too", 16, 28, 1.0, (180, 5, 199, 35)),
    ]
    strip = np.asarray(draw_words(page(), tight))[: picture.height - 40]
    assert not is_colour(strip, RED).any()
    assert is_colour(strip, BLUE).any()


def test_characters_boxes_take_the_place_of_their_words():
    boxes = ((20, 10, 30, 30), (40, 10, 60, 30))
    picture = draw_words(page(), [Word("ab", 0, 2, 1.0, (20, 10, 60, 30), boxes)])
    marked = is_colour(np.asarray(picture)[picture.height - 40 :], RED)
    assert marked[20].tolist() == [x in (19, 30, 39, 60) for x in range(200)]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (500, 4)])
def test_boxes_at_the_border_stay_in_the_picture(size):
    picture = draw_words(page(*size), [Word("word", 0, 4, 1.0, (0, 0, *size))])
    assert picture.width == size[0]
    assert is_colour(picture, RED).any()


def test_without_words_the_image_is_all_there_is():
    picture = draw_words(page(30, 20, level=7), [])
    assert picture.size == (30, 20)
    assert (np.asarray(picture) == 7).all()


def test_results_are_drawn_from_file_and_memory(tmp_path):
    ocr = TrOCR.from_pretrained()
    path = SAMPLES / "words.png"
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    from_file = ocr(path, boxes=True).draw()
    in_memory = ocr(np.asarray(image), boxes=True)
    with pytest.raises(ValueError, match="pass it to draw"):
        in_memory.draw()
    np.testing.assert_array_equal(np.asarray(in_memory.draw(image)), np.asarray(from_file))
    np.testing.assert_array_equal(np.asarray(in_memory.draw(np.asarray(image))), np.asarray(from_file))
    # Three words of each colour.
    assert is_colour(from_file, RED).any()
    assert is_colour(from_file, BLUE).any()
    # A sideways photograph is drawn upright, as its boxes are.
    exif = Image.Exif()
    exif[0x0112] = 8
    sideways = tmp_path / "sideways.png"
    image.transpose(Image.Transpose.ROTATE_270).save(sideways, exif=exif)
    np.testing.assert_array_equal(np.asarray(ocr(sideways, boxes=True).draw()), np.asarray(from_file))
