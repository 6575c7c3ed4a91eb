"""Where each character stands: heads that look the right way, cuts that are the best there are, and true boxes."""

from __future__ import annotations

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.boxes import METHODS, measure, overlap, render
from tests.conftest import SAMPLES
from tests.twins import config_dict
from trocr_jax import TrOCR, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, alignment
from trocr_jax.alignment import align, attention_of_best, column_attention, head_weights, locate_characters
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.processing.image import ImageProcessor
from trocr_jax.results import Recognition, find_words

PATHS = [str(SAMPLES / name) for name in ("words.png", "date.png", "printed.png", "capitals.png")]


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained()


def looking(places, spread, columns=20):
    """Attention [T, C] around a place a token, in columns."""
    distance = (np.arange(columns) + 0.5 - np.asarray(places)[:, None]) / spread
    weights = np.exp(-(distance**2))
    return weights / weights.sum(-1, keepdims=True)


def test_heads_that_move_along_the_line_count():
    moving, resting = looking(np.linspace(2, 18, 8), 1.0), looking(np.full(8, 5.0), 0.3)
    diffuse = looking(np.linspace(9, 11, 8), 30.0)
    jumping = looking([3, 15, 7, 18, 2, 12, 5, 9], 1.0)
    heads = np.stack([resting, moving, diffuse, jumping])[None]
    weights = np.asarray(head_weights(jnp.asarray(heads, jnp.float32), jnp.ones((1, 8), bool)))[0]
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert weights[1] > 0.9


def test_positions_that_only_fill_up_do_not_count():
    heads = jnp.asarray(np.stack([looking(np.linspace(2, 18, 8), s) for s in (1.0, 3.0)])[None], jnp.float32)
    is_query = jnp.arange(8)[None] < 5
    other = heads.at[:, :, 5:].set(1 / 20)
    np.testing.assert_allclose(head_weights(heads, is_query), head_weights(other, is_query), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_tokens_leave_sharpness_alone(count):
    heads = jnp.asarray(np.stack([looking([5.0, 5.0, 5.0], s) for s in (0.5, 4.0)])[None], jnp.float32)
    weights = np.asarray(head_weights(heads, jnp.arange(3)[None] < count))[0]
    assert np.isfinite(weights).all()
    if count:
        assert weights[0] > weights[1]


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_attention_is_the_models_by_columns(kind):
    # Three rows and five columns of patches behind one or two prefix tokens; three layers, of which two count.
    config = VisionEncoderDecoderConfig.from_dict(
        config_dict({"model_type": kind, "num_hidden_layers": 1}, {"decoder_layers": 3})
    )
    generator = np.random.default_rng(0)
    shapes = abstract_params(VisionEncoderDecoder(config))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (generator.normal(path[-1].key == "scale", 0.3, leaf.shape)).astype(np.float32), shapes
    )
    network = VisionEncoderDecoderModel(config, params=params)
    pixels = generator.normal(size=(3, 3, 24, 40)).astype(np.float32)
    ids = np.array([[2, 5, 6, 7, 8, 9], [2, 9, 3, 4, 0, 0], [2, 11, 0, 0, 0, 0]])
    is_query = np.arange(6) < np.array([[6], [4], [2]])
    whole = network(pixels, ids, output_attentions=True)
    heads = np.concatenate([np.asarray(layer) for layer in whole.cross_attentions[1:]], axis=1)
    heads = heads[..., config.encoder.num_prefix_tokens :]  # [B, G, T, 15], row by row
    by_column = np.stack([heads[..., column::5].sum(-1) for column in range(5)], axis=-1)
    by_column = by_column / by_column.sum(-1, keepdims=True)
    weights = np.asarray(head_weights(jnp.asarray(by_column), jnp.asarray(is_query)))
    model, params = network.runtime
    states = whole.encoder_last_hidden_state
    found = np.asarray(column_attention(params, states, ids, is_query, model=model))
    assert found.shape == (3, 6, 5)
    np.testing.assert_allclose(found, np.einsum("bg,bgtc->btc", weights, by_column), atol=1e-5)
    # An image's attention depends neither on its neighbours nor on how far the batch is filled up.
    alone = np.asarray(column_attention(params, states[1:2], ids[1:2, :4], is_query[1:2, :4], model=model))
    np.testing.assert_allclose(alone[0], found[1, :4], atol=1e-5)


def test_no_product_leaves_its_precision_to_the_device():
    program = jax.jit(head_weights).lower(jnp.ones((1, 2, 5, 8)), jnp.ones((1, 5), bool)).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_one_program_serves_every_text_of_a_bucket(ocr):
    pixels = ocr.processor(PATHS).pixel_values
    states = ocr.encode(pixels)
    model, params = ocr._network.runtime
    attention_of_best(model, params, states, ocr.generate(pixels[:3], max_new_tokens=9), 3)
    before = column_attention._cache_size()
    for max_new_tokens in (10, 12):
        output = ocr.generate(pixels[:3], max_new_tokens=max_new_tokens)
        rows = attention_of_best(model, params, states, output, 3)
        assert [len(row) for row in rows] == output.num_tokens.tolist()
        for row in rows:
            np.testing.assert_allclose(row.sum(-1), 1, atol=1e-4)
    assert column_attention._cache_size() == before


def score(clusters, cuts, log_shares, profile):
    """What `align` maximises, cell by cell."""
    is_ink = profile > alignment.INK_SHARE
    inked = np.flatnonzero(is_ink)
    widths = [alignment.common_width(cluster) for cluster in clusters]
    unit = (inked[-1] + 1 - inked[0]) / sum(widths)
    outside = [*range(cuts[0]), *range(cuts[-1], len(profile))]
    total = -alignment.MARGIN * sum(is_ink[x] for x in outside) / unit
    for i, (cluster, width) in enumerate(zip(clusters, widths, strict=True)):
        length, common = cuts[i + 1] - cuts[i], max(width * unit, 1.0)
        is_space = cluster.isspace()
        if length > int(max(4, (alignment.LONGEST_SPACE if is_space else alignment.LONGEST) * common + 2)):
            return -np.inf
        for x in range(cuts[i], cuts[i + 1]):
            wrong = is_ink[x] if is_space else not is_ink[x]
            total += (alignment.ATTENTION * log_shares[i, x] - alignment.MISMATCH * wrong) / unit
        weight = alignment.SPACE_WIDTH if is_space else alignment.WIDTH
        total -= weight * np.log(length / common) ** 2
        if 0 < cuts[i + 1] < len(profile):
            total -= alignment.CUT * min(profile[cuts[i + 1] - 1], profile[cuts[i + 1]])
    return total


@pytest.mark.parametrize("seed", range(12))
def test_the_cuts_are_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    clusters = [["a"], ["a", " ", "W"], ["i", "m", "i"], ["a", "b", " ", "c"]][seed % 4]
    num_cells = 11
    profile = generator.choice([0.0, 0.0, 0.3, 1.0], num_cells)
    profile[generator.integers(num_cells)] = 1.0
    log_shares = np.log(generator.dirichlet(np.full(len(clusters), 0.3), num_cells).T + alignment.FLOOR)
    found = align(clusters, log_shares, profile)
    every = list(itertools.combinations(range(num_cells + 1), len(clusters) + 1))
    best = max(score(clusters, cuts, log_shares, profile) for cuts in every)
    np.testing.assert_allclose(score(clusters, tuple(found), log_shares, profile), best, rtol=1e-9)


def bars(*spans, width=100, height=20):
    ink = np.zeros((height, width), bool)
    for start, end in spans:
        ink[5:15, start:end] = True
    return ink


def even(count):
    """Attention of one token a character that moves along a whole line, and the middles of its ten columns."""
    return looking((np.arange(count) + 0.5) * 10 / count, 1.0, columns=10), np.arange(5, 100, 10.0)


def locate(text, ink, attention=None, places=None):
    if attention is None:
        attention, places = even(len(text))
    return locate_characters(text, [(i, i + 1) for i in range(len(text))], attention, places, ink)


def test_boxes_end_with_the_ink():
    boxes = locate("ab cd", bars((10, 22), (25, 37), (52, 64), (67, 79)))
    assert boxes == [(10, 5, 22, 15), (25, 5, 37, 15), None, (52, 5, 64, 15), (67, 5, 79, 15)]


def test_white_space_around_the_text_has_no_place():
    ink = bars((10, 22), (25, 37))
    assert locate(" ab ", ink) == [None, (10, 5, 22, 15), (25, 5, 37, 15), None]
    assert locate("   ", ink) == [None] * 3
    assert locate("", ink, np.zeros((0, 4)), np.arange(4.0)) == []


def test_attention_tells_text_from_other_ink():
    # Three bars for two letters, with the gaps alike: only attention knows which one is a stain.
    ink = bars((10, 25), (40, 55), (70, 85))
    columns = np.arange(5, 100, 10.0)
    for seen, expected in (((17, 47), (10, 40)), ((47, 77), (40, 70))):
        attention = looking(np.array(seen) / 10, 1.0, columns=10)
        boxes = locate_characters("a b", [(0, 1), (1, 3)], attention, columns, ink)
        assert (boxes[0][0], boxes[2][0]) == expected


def test_marks_share_the_box_of_what_they_stand_over():
    boxes = locate("ae\u0301b", bars((10, 22), (30, 42), (50, 62)))
    assert boxes == [(10, 5, 22, 15), (30, 5, 42, 15), (30, 5, 42, 15), (50, 5, 62, 15)]


@pytest.mark.parametrize("text", ["a \u0301", "a \u200b b", "\u0301", "\u200b a"])
def test_every_word_has_a_box_though_it_be_a_mark_alone(text):
    boxes = locate(text, bars((10, 22), (50, 62)))
    assert [box is None for box in boxes] == [character.isspace() for character in text]
    words = find_words(text, [(i, i + 1) for i in range(len(text))], [0.0] * len(text))
    line = Recognition(text, words=words).with_boxes(boxes, of_characters=True)
    assert all(word.box is not None and len(word.char_boxes) == len(word.text) for word in line.words)


def test_text_that_runs_to_the_left_is_cut_from_the_right():
    ink = bars((10, 22), (25, 37), (60, 72))
    attention, places = even(4)
    boxes = locate("א בג"[::1], ink, attention[::-1], places)
    assert boxes == [(60, 5, 72, 15), None, (25, 5, 37, 15), (10, 5, 22, 15)]


@pytest.mark.parametrize("width", [1, 3, 8, 2000])
def test_any_width_has_room_for_any_text(width):
    ink = np.ones((4, width), bool)
    ink[:, ::3] = False
    ink[0, 0] = True
    text = "a longer text than this"
    boxes = locate(text, ink, *even(len(text)))
    for character, box in zip(text, boxes, strict=True):
        assert (box is None) == character.isspace()
        if box is not None:
            assert 0 <= box[0] < box[2] <= width
            assert 0 <= box[1] < box[3] <= 4


def test_without_ink_attention_and_widths_are_left():
    attention = looking([2.5, 7.5], 1.5, columns=10)
    boxes = locate_characters("ab cd", [(0, 2), (2, 5)], attention, np.arange(5, 100, 10.0), np.zeros((20, 100), bool))
    assert {(box[1], box[3]) for box in boxes if box} == {(0, 20)}
    lefts = [box[0] for box in boxes if box]
    assert lefts == sorted(lefts)
    assert boxes[1][2] < 60
    assert boxes[3][0] > 40


def test_places_in_the_model_are_places_in_the_image():
    # A mark of two columns in the middle of each processor's output, led back to where it was.
    for settings in (
        {"size": (32, 320)},
        {"size": (64, 256), "do_center_crop": True, "crop_size": (64, 224)},
        {"size": (64, 100), "do_center_crop": True, "crop_size": (64, 131)},
        {"do_resize": False},
    ):
        processor = ImageProcessor(**settings)
        levels = np.full((64, 500, 3), 255, np.uint8)
        levels[:, 200:220] = 0
        pixels = processor.pixels(levels)[0]
        dark = np.flatnonzero(pixels[pixels.shape[0] // 2, 20:-20] < -0.5) + 20  # crops pad with zeros, dark too
        middle = (dark[0] + dark[-1] + 1) / 2
        np.testing.assert_allclose(processor.to_original(middle, 500), 210, atol=500 / pixels.shape[1])


def test_boxes_of_rendered_lines_are_true(ocr):
    words, characters, right = measure(ocr, 35, seed=5)
    assert sum(sum(reads) for reads in right.values()) > 15

    def mean(overlaps, method):
        return np.mean([value for (_, name), values in overlaps.items() if name == method for value in values])

    by_method = {method: (mean(words, method), mean(characters, method)) for method in METHODS}
    assert by_method["with attention"][0] > 0.93
    assert by_method["with attention"][1] > 0.85
    assert by_method["equal division"][0] < 0.85
    assert by_method["equal division, shrunk to ink"][0] < by_method["with attention"][0] - 0.05


@pytest.mark.parametrize("options", [{"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "top_k": 2}])
def test_boxes_change_nothing_else(ocr, options):
    plain = ocr(PATHS, **options)
    for before, after in zip(plain, ocr(PATHS, boxes=True, **options), strict=True):
        assert after.text == before.text
        assert after.token_ids == before.token_ids
        np.testing.assert_allclose(after.token_log_probs, before.token_log_probs, atol=1e-4)
        assert [other.text for other in after.alternatives] == [other.text for other in before.alternatives]
        assert all(word.box is None for other in after.alternatives for word in other.words)
        assert all(word.char_boxes is None for word in after.words)
        with Image.open(after.source) as image:
            for word in after.words:
                x0, y0, x1, y1 = word.box
                assert 0 <= x0 < x1 <= image.width
                assert 0 <= y0 < y1 <= image.height
        lefts = [word.box[0] for word in after.words]
        assert lefts == sorted(lefts)


def test_boxes_do_not_depend_on_the_batch(ocr):
    together = ocr(PATHS, boxes="char")
    for path, line in zip(PATHS[:2], together, strict=False):
        alone = ocr(path, boxes="char")
        assert [(word.box, word.char_boxes) for word in alone.words] == [
            (word.box, word.char_boxes) for word in line.words
        ]


def test_characters_lie_in_their_words(ocr):
    for line in ocr(PATHS, boxes="char"):
        for word in line.words:
            assert len(word.char_boxes) == len(word.text)
            assert word.box == (
                min(box[0] for box in word.char_boxes),
                min(box[1] for box in word.char_boxes),
                max(box[2] for box in word.char_boxes),
                max(box[3] for box in word.char_boxes),
            )
            assert len(np.unique([box[0] for box in word.char_boxes])) == len(word.text)


def test_boxes_are_pixels_of_the_image_as_given(ocr, tmp_path):
    text = "such a structure"
    image, true = render(text, None, "plain", random.Random(1))
    image = image.convert("RGB")
    rotated = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees against the clock when shown
    image.transpose(Image.Transpose.ROTATE_270).save(rotated, exif=exif, quality=95)
    doubled = image.resize((image.width * 2, image.height * 3))
    for given, (wide, high) in ((image, (1, 1)), (np.asarray(image), (1, 1)), (rotated, (1, 1)), (doubled, (2, 3))):
        line = ocr(given, boxes=True)
        assert line.text == text
        for word in line.words:
            parts = [box for box in true[word.start : word.end] if box]
            expected = [min(box[i] for box in parts) for i in (0, 1)] + [max(box[i] for box in parts) for i in (2, 3)]
            expected = np.array(expected) * [wide, high, wide, high]
            assert overlap(word.box, expected) > 0.85


def test_images_that_are_not_read_have_no_boxes(ocr, tmp_path):
    blank = np.full((40, 300), 250, np.uint8)
    lines = ocr([tmp_path / "missing.png", blank, PATHS[0]], skip_blank=True, boxes=True)
    assert [len(line.words) for line in lines] == [0, 0, 6]
    # Without skipping, a blank image is read as something, which then stands somewhere in it.
    assert all(0 <= word.box[0] < word.box[2] <= 300 for word in ocr(blank, boxes=True).words)
    rejected = ocr(PATHS[0], boxes=True, reject_below=1.0)
    assert rejected.words == ()
    assert rejected.alternatives[0].words == lines[2].words
    with pytest.raises(ValueError, match="boxes is 'line'"):
        ocr(PATHS[0], boxes="line")


def test_damaged_weights_have_no_boxes():
    ocr = TrOCR.from_pretrained()
    params = jax.tree.map(np.array, ocr.params)
    params["decoder"]["layers_0"]["mlp"]["fc1"]["bias"][:] = np.nan
    ocr._network.params = params
    assert ocr(PATHS[0], num_beams=2, boxes=True).finish_reason == "error"


def test_boxes_in_bfloat16_are_those_of_float32(ocr):
    found = TrOCR.from_pretrained(dtype="bfloat16")(PATHS[1], boxes=True)
    assert [word.box for word in found.words] == [word.box for word in ocr(PATHS[1], boxes=True).words]
