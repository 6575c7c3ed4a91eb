from __future__ import annotations

import dataclasses
import io
import json
import random
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, features
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from trocr_jax.processing.image import ImageError, ImageProcessor, as_list, is_single, load_rgb

# preprocessor_config.json as hub repositories have it, old and new.
DIALECTS = {
    "vit_legacy": {
        "feature_extractor_type": "ViTFeatureExtractor",
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 384,
    },
    "deit_legacy": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "crop_size": 224,
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": 384,
    },
    "vit_new": {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 384, "width": 384},
    },
    "vit_fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 32, "width": 320}},
    "deit_new": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 64, "width": 48},
        "crop_size": {"height": 40, "width": 56},
    },
    "vit_defaults": {"feature_extractor_type": "ViTFeatureExtractor"},
    "deit_defaults": {"feature_extractor_type": "DeiTFeatureExtractor"},
    "deit_legacy_crop": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "crop_size": 33,
        "do_center_crop": True,
        "size": 48,
    },
    "numbers_for_all_channels": {"image_processor_type": "ViTImageProcessor", "image_mean": 0.4, "image_std": 0.3},
    "both_names": {
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 24, "width": 24},
        "do_center_crop": False,
    },
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
COLOR = (200, 30, 90)


def random_rgb(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def oracle(settings):
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "ViTImageProcessor"
    return (DeiTImageProcessorPil if kind.startswith("DeiT") else ViTImageProcessorPil).from_dict(dict(settings))


def assert_same_pixels(settings, images):
    ours = ImageProcessor.from_dict(settings)(images)
    theirs = oracle(settings)([image.convert("RGB") for image in images], return_tensors="np")["pixel_values"]
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, theirs)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reopened(image, kind="PNG", **options):
    return Image.open(io.BytesIO(encoded(image, kind, **options)))


def rgb(image):
    loaded = load_rgb(image)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


@pytest.mark.parametrize("name", DIALECTS)
def test_pixel_values_are_the_references_for_every_dialect(name):
    sizes = [(57, 211), (1, 40), (40, 1), (384, 384), (400, 500)]
    assert_same_pixels(DIALECTS[name], [Image.fromarray(random_rgb(*size, seed)) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "DeiTImageProcessor"])
@pytest.mark.parametrize("resample", [2, 3])
def test_pixel_values_are_the_references_for_random_images_and_settings(kind, resample):
    chosen = random.Random(f"{kind}{resample}")
    for seed in range(60):
        target = chosen.choice([(32, 320), (48, 48), (17, 5), (1, 9), (64, 33), (96, 96)])
        settings = {
            "image_processor_type": kind,
            "resample": resample,
            "size": {"height": target[0], "width": target[1]},
            "do_center_crop": chosen.random() < 0.4,
            "crop_size": {"height": chosen.randint(1, 70), "width": chosen.randint(1, 70)},
            **chosen.choice([{}, IMAGENET]),
        }
        longest = chosen.choice([3, 40, 400])
        size = chosen.choice([(1, chosen.randint(1, longest)), (chosen.randint(1, longest), 1), target])
        if chosen.random() < 0.6:
            size = (chosen.randint(1, longest), chosen.randint(1, longest))
        image = random_rgb(*size, seed)
        if chosen.random() < 0.3:  # flat areas and hard edges, where a resize over- and undershoots
            image = np.where(image > 128, np.uint8(255), np.uint8(0))
        assert_same_pixels(settings, [Image.fromarray(image)])


@pytest.mark.parametrize("crop", [(31, 31), (32, 33), (50, 20), (20, 51), (33, 60), (61, 61)])
@pytest.mark.parametrize("size", [(32, 32), (33, 32), (47, 60)])
def test_center_crop_cuts_and_pads_as_the_reference(size, crop):
    settings = {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": size[0], "width": size[1]},
        "crop_size": {"height": crop[0], "width": crop[1]},
    }
    assert_same_pixels(settings, [Image.fromarray(random_rgb(20, 90))])


@pytest.mark.parametrize(
    "switches",
    [
        {"do_resize": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_resize": False},
        {"rescale_factor": 1 / 127.5},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 11, "width": 70}},
    ],
    ids=str,
)
def test_steps_can_be_left_out_as_in_the_reference(switches):
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 40}, **switches}
    assert_same_pixels(settings, [Image.fromarray(random_rgb(13, 50, seed)) for seed in range(3)])


def test_a_batch_is_its_images_one_by_one():
    processor = ImageProcessor.from_dict(DIALECTS["vit_fast"])
    images = [Image.fromarray(random_rgb(height, 90, height)) for height in (5, 40, 32)]
    batch = processor(images)
    assert batch.shape == (3, 3, 32, 320)
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, processor.pixels(image))
        np.testing.assert_array_equal(row[None], processor(image))
    np.testing.assert_array_equal(processor(tuple(images)), batch)


def test_a_batch_may_be_one_array():
    processor = ImageProcessor(size=(8, 8))
    array = np.stack([random_rgb(10, 12, seed) for seed in range(3)])
    np.testing.assert_array_equal(processor(array), processor(list(array)))


def test_arrays_paths_and_pil_images_give_the_same_pixels(tmp_path):
    array = random_rgb(20, 70)
    Image.fromarray(array).save(tmp_path / "line.png")
    processor = ImageProcessor(size=(16, 64))
    expected = processor.pixels(Image.fromarray(array))
    paths = (tmp_path / "line.png", str(tmp_path / "line.png"))
    for image in (array, jnp.asarray(array), array.transpose(2, 0, 1), *paths):
        np.testing.assert_array_equal(processor.pixels(image), expected)


@pytest.mark.parametrize("name", DIALECTS)
def test_settings_survive_saving_in_both_libraries(name, tmp_path):
    processor = ImageProcessor.from_dict(DIALECTS[name])
    processor.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == processor
    assert ImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json") == processor
    image = Image.fromarray(random_rgb(30, 100))
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    theirs = oracle(saved)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(processor(image), theirs)


def test_trocr_dialects_read_as_written():
    base, small = (ImageProcessor.from_dict(DIALECTS[name]) for name in ("vit_legacy", "deit_legacy"))
    assert (base.size, base.resample, base.do_center_crop) == ((384, 384), 2, False)
    assert (small.size, small.resample, small.do_center_crop) == ((384, 384), 3, False)
    assert ImageProcessor.from_dict(DIALECTS["vit_new"]) == base


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor' is not supported"),
        ({"size": {"shortest_edge": 224}}, "size is {'shortest_edge': 224}"),
        ({"size": 3.5}, "size is 3.5"),
        ({"size": 8, "crop_size": "small"}, "crop_size is 'small'"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(content, message, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json") as caught:
        ImageProcessor.from_pretrained(tmp_path)
    assert message in str(caught.value)


def test_a_damaged_settings_file_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json.*not valid JSON"):
        ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_followed(orientation, kind):
    upright = random_rgb(6, 9)
    # What the camera stored, such that viewing it by the tag gives `upright`.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(rgb(reopened(Image.fromarray(stored.copy()), kind, exif=exif)), upright)


def test_a_palette_becomes_its_colors():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *COLOR])
    assert (rgb(reopened(image)) == COLOR).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_color_of_a_palette_becomes_white(kind):
    image = Image.new("P", (4, 3), 1)
    image.putpixel((0, 0), 0)
    image.putpalette([9, 9, 9, *COLOR])
    result = rgb(reopened(image, kind, transparency=0))
    assert result[0, 0].tolist() == [255, 255, 255]
    assert (result[1:] == COLOR).all()


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", COLOR, (255, 255, 255)),
        ("L", 40, (255, 255, 255)),
        ("1", 0, (255, 255, 255)),
    ],
)
def test_a_transparent_color_key_becomes_white(mode, color, expected):
    image = reopened(Image.new(mode, (4, 3), color), transparency=color)
    assert (rgb(image) == expected).all()


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (*COLOR, 255), COLOR),
        ("RGBA", (*COLOR, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("LA", (0, 51), (204, 204, 204)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("PA", (0, 0), (255, 255, 255)),
    ],
)
def test_transparency_is_laid_on_white(mode, color, expected):
    assert (rgb(Image.new(mode, (4, 3), color)) == expected).all()


def test_a_transparent_png_file_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (rgb(tmp_path / "clear.png") == 255).all()


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (77, 128, 128), (77, 77, 77)),
        ("HSV", (0, 0, 77), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("I", 0x4D00, (77, 77, 77)),
        ("I", 77, (77, 77, 77)),
        ("I;16", 0x4DFF, (77, 77, 77)),
        ("F", 0.4, (102, 102, 102)),
    ],
)
def test_every_mode_becomes_rgb(mode, color, expected):
    assert (rgb(Image.new(mode, (4, 3), color)) == expected).all()


def test_a_cmyk_jpeg_becomes_rgb():
    result = rgb(reopened(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)).astype(int)
    assert abs(result - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_files_keep_their_high_byte(kind):
    array = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    image = reopened(Image.fromarray(array), kind)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(rgb(image), np.repeat((array >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_dark_16_bit_image_is_dark_in_either_byte_order(order):
    array = np.full((3, 4), 200, f"{order}u2")
    mode = {"<": "I;16", ">": "I;16B"}[order]
    assert (rgb(Image.frombytes(mode, (4, 3), array.tobytes())) == 0).all()
    assert (rgb(array) == 0).all()


def test_a_1_bit_file_is_black_and_white(tmp_path):
    array = np.random.default_rng(0).integers(0, 2, (7, 13)).astype(bool)
    Image.fromarray(array).save(tmp_path / "fax.tif", compression="group4")
    np.testing.assert_array_equal(rgb(tmp_path / "fax.tif"), np.repeat(array[..., None] * np.uint8(255), 3, 2))


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    assert (rgb(reopened(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)).all()


GRAY = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    "array",
    [
        GRAY,
        GRAY[:, :, None],
        GRAY[None],
        GRAY.astype(np.int64),
        GRAY.astype(np.uint16) << 8,
        GRAY.astype(np.uint16) * 257,
        (GRAY.astype(np.uint16) * 257).astype(np.int32),
        GRAY / 255,
        (GRAY / 255).astype(np.float32),
        (GRAY / 255).astype(">f4"),
        jnp.asarray(GRAY),
        jnp.asarray(GRAY / 255, jnp.float32),
        np.asfortranarray(GRAY),
        Image.fromarray(GRAY),
    ],
    ids=lambda array: f"{type(array).__name__}-{getattr(array, 'dtype', 'L')}-{np.shape(array)}",
)
def test_grayscale_in_any_form(array):
    np.testing.assert_array_equal(rgb(array), np.repeat(GRAY[..., None], 3, 2))


def test_float16_is_taken_to_its_precision():
    result = rgb((GRAY / 255).astype(np.float16))[..., 0].astype(int)
    assert abs(result - GRAY).max() <= 1


@pytest.mark.parametrize("shape", [(4, 9, 3), (3, 4, 9), (9, 4, 3), (3, 3, 3), (1, 1, 3)], ids=str)
def test_color_arrays_with_channels_last_or_first(shape):
    array = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    is_first = shape[2] != 3
    np.testing.assert_array_equal(rgb(array), array.transpose(1, 2, 0) if is_first else array)


@pytest.mark.parametrize("is_first", [False, True])
def test_arrays_of_four_channels_are_rgba(is_first):
    array = np.zeros((5, 6, 4), np.uint8)
    array[0, 0] = (*COLOR, 255)
    result = rgb(array.transpose(2, 0, 1) if is_first else array)
    assert result[0, 0].tolist() == list(COLOR)
    assert (result[1:] == 255).all()


def test_bool_arrays_are_black_and_white():
    array = GRAY > 128
    np.testing.assert_array_equal(rgb(array)[..., 0], array * np.uint8(255))


def test_strided_arrays_are_read_as_they_look():
    array = random_rgb(12, 20)[::-2, 3::3]
    np.testing.assert_array_equal(rgb(array), array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (GRAY.astype(np.float32), "floats range from"),
        (GRAY / 255 - 0.1, "floats range from"),
        (np.full((3, 4), np.nan), "floats range from nan"),
        (np.full((3, 4), np.inf), "floats range from inf"),
        (GRAY.astype(np.int32) - 300, "int32 values range from"),
        (np.full((3, 4), 70000), "range from 70000 to 70000"),
        (np.zeros((3, 4), np.complex64), "complex64"),
        (np.array([["a", "b"]]), "cannot be read"),
        (np.zeros((5, 6, 2), np.uint8), "its shape is neither"),
        (np.zeros((2, 5, 6), np.uint8), "its shape is neither"),
        (np.zeros((0, 6), np.uint8), "it has no pixels"),
        (np.zeros((6, 0, 3), np.uint8), "it has no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}-{value.shape}",
)
def test_arrays_that_are_no_images_are_refused_by_shape(array, reason):
    with pytest.raises(ImageError) as caught:
        load_rgb(array)
    assert f"the array of shape {array.shape}" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ImageError, match=f"the RGB image of {size[0]}x{size[1]} pixels .*no pixels"):
        load_rgb(Image.new("RGB", size))


def test_what_is_no_image_at_all_is_refused():
    with pytest.raises(ImageError, match="the int is neither a path, nor a file, nor a PIL image, nor an array"):
        load_rgb(3)
    with pytest.raises(ImageError, match="the image in 3 bytes is not an image that Pillow can read"):
        load_rgb(b"abc")
    with pytest.raises(ImageError, match="the open file is not an image"):
        load_rgb(io.BytesIO(b"abc"))
    with tempfile.TemporaryFile() as file, pytest.raises(ImageError, match="the open file is not an image"):
        load_rgb(file)
    with pytest.raises(TypeError, match="NoneType"):
        as_list(None)


def test_one_image_and_several_are_told_apart():
    assert is_single("line.png")
    assert is_single(GRAY)
    assert is_single(random_rgb(3, 4))
    assert not is_single([GRAY])
    assert not is_single(GRAY[None, ..., None])
    assert len(as_list(("a.png", "b.png"))) == 2


PNG = encoded(Image.fromarray(random_rgb(20, 30)), "PNG")
JPEG = encoded(Image.fromarray(random_rgb(20, 30)), "JPEG")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("truncated.png", PNG[:-800], "cannot be read"),
        ("truncated.jpg", JPEG[: len(JPEG) // 2], "cannot be read"),
        ("header.png", PNG[:20], "cannot be read"),
        ("empty.png", b"", "is not an image that Pillow can read"),
        ("notes.png", b"not an image\n" * 50, "is not an image that Pillow can read"),
        ("zeros.png", bytes(1000), "is not an image that Pillow can read"),
    ],
)
def test_broken_files_are_named_with_the_reason(name, content, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    for given in (path, str(path)):
        with pytest.raises(ImageError) as caught:
            ImageProcessor().pixels(given)
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png does not exist"):
        load_rgb(tmp_path / "absent.png")
    with pytest.raises(ImageError, match=str(tmp_path)):
        load_rgb(tmp_path)


def test_a_truncated_image_that_was_opened_before_is_refused():
    image = Image.open(io.BytesIO(PNG[:-800]))
    with pytest.raises(ImageError, match="the RGB image of 30x20 pixels cannot be read"):
        load_rgb(image)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(PNG)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"bomb\.png cannot be read: .*decompression bomb"):
        load_rgb(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about the damaged metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "AVIF", "DDS"])
def test_damaged_files_give_an_image_or_an_image_error(kind, tmp_path, capfd):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    chosen = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF") else {}
    content = encoded(Image.fromarray(random_rgb(20, 30)), kind, **options)
    path = tmp_path / "damaged.img"
    modes, messages = set(), []
    for _ in range(150):
        damaged = bytearray(content[: chosen.randrange(len(content))] if chosen.random() < 0.3 else content)
        for _ in range(chosen.randint(0, 8)):
            if damaged:
                damaged[chosen.randrange(min(len(damaged), chosen.choice([200, len(damaged)])))] = chosen.randrange(256)
        path.write_bytes(damaged)
        try:
            modes.add(load_rgb(path).mode)
        except ImageError as error:
            messages.append(str(error))
    assert modes <= {"RGB"}
    assert messages
    assert all(str(path) in message for message in messages)
    capfd.readouterr()  # libtiff's own talk


def test_the_caller_keeps_the_image_as_it_was():
    image = Image.new("RGBA", (4, 3), (*COLOR, 7))
    before = image.tobytes()
    loaded = load_rgb(image)
    loaded.paste("black", (0, 0, 4, 3))
    assert (image.mode, image.tobytes()) == ("RGBA", before)
    plain = Image.new("RGB", (4, 3), COLOR)
    load_rgb(plain).paste("black", (0, 0, 4, 3))
    assert plain.getpixel((0, 0)) == COLOR


def test_settings_can_be_replaced():
    processor = dataclasses.replace(ImageProcessor(), size=(8, 12))
    assert processor(GRAY).shape == (1, 3, 8, 12)
