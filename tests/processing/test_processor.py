from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import trocr_jax
from trocr_jax.processing.image import ImageError, ImageProcessor
from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.processing.tokenizer import TrOCRTokenizer

EMBEDDED = pathlib.Path(trocr_jax.__file__).parent / "assets" / "trocr-nano-printed"
NAMES = ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
TEXTS = ["industry , Mr. Brown", "a", ""]


def line(seed=0, width=90):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """The embedded model's processor files, that a test may change."""
    for name in NAMES:
        shutil.copy(EMBEDDED / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def processor():
    return TrOCRProcessor.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def oracle():
    return transformers.TrOCRProcessor(
        image_processor=ViTImageProcessorPil.from_pretrained(EMBEDDED),
        tokenizer=transformers.RobertaTokenizer.from_pretrained(EMBEDDED),
    )


def test_images_give_pixel_values_and_text_gives_labels(processor, oracle):
    images = [line(seed) for seed in range(3)]
    ours = processor(images=images, text=TEXTS)
    theirs = oracle(images=images, text=TEXTS, padding=True, return_tensors="np")
    assert set(ours) == {"pixel_values", "labels"}
    np.testing.assert_array_equal(ours.pixel_values, theirs["pixel_values"])
    np.testing.assert_array_equal(ours.labels, theirs["labels"])
    assert ours["pixel_values"].dtype == np.float32


def test_images_alone_give_pixel_values(processor, oracle):
    found = processor(line())
    assert set(found) == {"pixel_values"}
    assert found.pixel_values.shape == (1, 3, 32, 512)
    np.testing.assert_array_equal(found.pixel_values, oracle(images=line(), return_tensors="np")["pixel_values"])
    np.testing.assert_array_equal(processor(images=[line()]).pixel_values, found.pixel_values)


def test_text_alone_gives_ids(processor, oracle):
    found, expected = processor(text=TEXTS), oracle(text=TEXTS, padding=True, return_tensors="np")
    assert set(found) == {"input_ids", "attention_mask"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    assert processor(text="a").input_ids.shape == (1, 3)


def test_options_go_to_the_tokenizer(processor, oracle):
    options = {"padding": "max_length", "truncation": True, "max_length": 12}
    found = processor(images=[line()] * 3, text=TEXTS, **options)
    expected = oracle(images=[line()] * 3, text=TEXTS, return_tensors="np", **options)
    assert found.labels.shape == (3, 12)
    np.testing.assert_array_equal(found.labels, expected["labels"])
    with_ends, plain = processor(text="abc"), processor(text="abc", add_special_tokens=False)
    np.testing.assert_array_equal(plain.input_ids, with_ends.input_ids[:, 1:-1])


@pytest.mark.parametrize(("kind", "array_type"), [("np", np.ndarray), ("jax", jax.Array)])
def test_arrays_come_in_the_kind_asked_for(processor, kind, array_type):
    found = processor(images=line(), text=TEXTS, return_tensors=kind)
    assert isinstance(found.pixel_values, array_type)
    assert isinstance(found.labels, array_type)
    np.testing.assert_array_equal(found.pixel_values, processor(line()).pixel_values)
    assert found.pixel_values.dtype == np.float32
    assert isinstance(processor(text=TEXTS, return_tensors=kind).input_ids, array_type)


def test_calls_that_cannot_be_followed_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="pass images=, text= or both"):
        processor()
    with pytest.raises(ValueError, match="return_tensors is 'pt'"):
        processor(line(), return_tensors="pt")
    with pytest.raises(ImageError, match=r"absent\.png does not exist"):
        processor([line(), tmp_path / "absent.png"])
    with pytest.raises(TypeError, match=r"\['do_rescale', 'do_resize'\] are no options of a call"):
        processor(line(), do_resize=False, do_rescale=False, padding=True)


def test_as_target_processor_takes_text_and_warns(processor):
    with pytest.warns(FutureWarning, match="pass text=") as warned, processor.as_target_processor():
        found, by_name = processor(TEXTS), processor(text="a")
    assert warned[0].filename == __file__
    np.testing.assert_array_equal(found.input_ids, processor(text=TEXTS).input_ids)
    assert by_name.input_ids.shape == (1, 3)
    # Outside, images again.
    assert set(processor(line())) == {"pixel_values"}


def test_as_target_processor_ends_with_an_error_too(processor):
    with pytest.warns(FutureWarning), pytest.raises(RuntimeError), processor.as_target_processor():
        raise RuntimeError
    assert set(processor(line())) == {"pixel_values"}


def test_decoding_is_the_references(processor, oracle):
    ids = processor(text=TEXTS).input_ids
    for is_skipped in (False, True):
        assert processor.batch_decode(ids, skip_special_tokens=is_skipped) == oracle.batch_decode(
            ids, skip_special_tokens=is_skipped
        )
        assert processor.decode(ids[0], skip_special_tokens=is_skipped) == oracle.decode(
            ids[0], skip_special_tokens=is_skipped
        )
    assert processor.batch_decode(ids, skip_special_tokens=True) == TEXTS
    assert processor.decode(ids[0]).startswith("<s>industry ,")


def test_parts_can_be_used_alone(processor):
    image_processor, tokenizer = ImageProcessor.from_pretrained(EMBEDDED), TrOCRTokenizer.from_pretrained(EMBEDDED)
    assert processor.image_processor == image_processor
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    made = TrOCRProcessor(image_processor, tokenizer)
    np.testing.assert_array_equal(made(line()).pixel_values, processor(line()).pixel_values)


def test_parts_that_were_not_given_are_named():
    processor = TrOCRProcessor(ImageProcessor(size=(8, 8)))
    assert processor(line()).pixel_values.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="without tokenizer"):
        processor(text="a")
    with pytest.raises(ValueError, match="without image_processor"):
        TrOCRProcessor(tokenizer=TrOCRTokenizer.from_pretrained(EMBEDDED))(line())


@pytest.mark.parametrize("source", ["", "preprocessor_config.json"])
def test_from_pretrained_takes_a_folder_or_a_settings_file(folder, source):
    for given in (folder / source, str(folder / source)):
        processor = TrOCRProcessor.from_pretrained(given)
        assert processor(images=line(), text="a").labels.shape == (1, 3)


def test_a_settings_file_may_have_any_name(folder):
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "wide.json").write_text(json.dumps({**settings, "size": {"height": 16, "width": 640}}))
    assert TrOCRProcessor.from_pretrained(folder / "wide.json")(line()).pixel_values.shape == (1, 3, 16, 640)


def test_without_tokenizer_files_only_text_fails(folder):
    (folder / "tokenizer.json").unlink()
    processor = TrOCRProcessor.from_pretrained(folder)
    assert processor(line()).pixel_values.shape == (1, 3, 32, 512)
    for call in (
        lambda: processor(text="a"),
        lambda: processor(images=line(), text="a"),
        lambda: processor.decode([0]),
        lambda: processor.batch_decode([[0]]),
    ):
        with pytest.raises(ValueError, match=r"tokenizer\.json, vocab\.json with merges\.txt") as caught:
            call()
        assert str(folder) in str(caught.value)


def test_without_image_settings_only_images_fail(folder):
    (folder / "preprocessor_config.json").unlink()
    processor = TrOCRProcessor.from_pretrained(folder)
    assert processor.decode(processor(text="a").input_ids[0], skip_special_tokens=True) == "a"
    with pytest.raises(ValueError, match=r"holds no preprocessor_config\.json"):
        processor(line())


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named_at_once(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        TrOCRProcessor.from_pretrained(folder)


@pytest.mark.parametrize("source", ["absent", "absent/preprocessor_config.json/x", "./absent"])
def test_what_is_neither_folder_nor_hub_id_is_refused(source):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        TrOCRProcessor.from_pretrained(source)


def test_saving_and_loading_changes_nothing(processor, oracle, tmp_path):
    saved = tmp_path / "new" / "folder"
    processor.save_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == NAMES
    again = TrOCRProcessor.from_pretrained(saved)
    assert again.image_processor == processor.image_processor
    found, expected = again(images=line(), text=TEXTS), processor(images=line(), text=TEXTS)
    np.testing.assert_array_equal(found.pixel_values, expected.pixel_values)
    np.testing.assert_array_equal(found.labels, expected.labels)
    again.save_pretrained(saved)
    for name in NAMES:
        assert json.loads((saved / name).read_text()) == json.loads((EMBEDDED / name).read_text())


def test_the_reference_reads_what_is_saved(processor, oracle, tmp_path):
    processor.save_pretrained(tmp_path)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXTS)["input_ids"] == oracle.tokenizer(TEXTS)["input_ids"]
    pixels = ViTImageProcessorPil.from_pretrained(tmp_path)(line(), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels, processor(line()).pixel_values)


def test_only_the_parts_that_there_are_get_saved(tmp_path):
    TrOCRProcessor(ImageProcessor()).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]


def test_what_transformers_5_saves_is_read(oracle, processor, tmp_path):
    # It writes the image settings into processor_config.json and no preprocessor_config.json.
    oracle.save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").is_file()
    assert not (tmp_path / "preprocessor_config.json").is_file()
    for source in (tmp_path, tmp_path / "processor_config.json"):
        loaded = TrOCRProcessor.from_pretrained(source)
        assert loaded.image_processor == processor.image_processor
        assert loaded.tokenizer("a b").input_ids == processor.tokenizer("a b").input_ids


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"config\.json.*does not describe an image processor"):
        TrOCRProcessor.from_pretrained(tmp_path / "config.json")


def test_rows_are_never_joined(processor):
    rows = [processor.tokenizer(text).input_ids for text in ("one", "two words")]
    assert processor.decode(rows, skip_special_tokens=True) == ["one", "two words"]
    array = processor.tokenizer(["one", "two words"], padding=True, return_tensors="np").input_ids
    assert processor.decode(array, skip_special_tokens=True) == ["one", "two words"]
