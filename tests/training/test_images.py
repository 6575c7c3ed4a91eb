"""Models for images of another size."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.conftest import SAMPLES
from tests.training.small import small_ocr
from tests.twins import config_dict
from trocr_jax import TrOCR, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, cli
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.training import with_image_size


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained(dtype="float32")


def grid_model(model_type: str) -> TrOCR:
    """A model with 3 x 5 patches."""
    config = VisionEncoderDecoderConfig.from_dict(
        config_dict({"model_type": model_type, "image_size": [24, 40], "patch_size": 8, "initializer_range": 0.1})
    )
    return TrOCR(VisionEncoderDecoderModel(config), small_ocr().processor)


def test_the_same_size_changes_nothing(ocr):
    same = with_image_size(ocr, ocr.config.encoder.image_shape)
    pixels, ids = ocr.processor(SAMPLES / "date.png")["pixel_values"], np.array([[2, 5, 6]])
    np.testing.assert_allclose(same.logits(pixels, ids), ocr.logits(pixels, ids), atol=1e-5)


@pytest.mark.parametrize(("model_type", "prefix"), [("vit", 1), ("deit", 2)])
def test_positions_are_interpolated_over_rows_and_columns(model_type, prefix):
    ocr = grid_model(model_type)
    wider = with_image_size(ocr, (48, 80))
    assert wider.config.encoder.image_shape == wider.processor.image_processor.size == (48, 80)
    old, new = (np.asarray(one.params["encoder"]["embeddings"]["position_embeddings"])[0] for one in (ocr, wider))
    np.testing.assert_array_equal(new[:prefix], old[:prefix])
    old, new = old[prefix:].reshape(3, 5, -1), new[prefix:].reshape(6, 10, -1)
    # Twice as many in each direction: where four new ones meet is the middle of an old one.
    middle = (new[2:4, 4:6]).mean((0, 1))
    assert np.corrcoef(middle, old[1, 2])[0, 1] > 0.9
    jax.tree.map(np.testing.assert_array_equal, wider.params["decoder"], ocr.params["decoder"])


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_transformers_reads_the_result_alike(model_type, tmp_path):
    wider = with_image_size(grid_model(model_type), (16, 80))
    wider.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")
    theirs = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "torch").eval()
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "torch", use_fast=False)
    assert (images.size["height"], images.size["width"]) == (16, 80)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 80)).astype(np.float32)
    ids = np.array([[2, 5, 6], [2, 7, 8]])
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(pixels), decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(wider.logits(pixels, ids), expected, atol=2e-5)


def test_what_else_the_recogniser_has_stays(ocr):
    height, width = ocr.config.encoder.image_shape
    wider = with_image_size(ocr, (height, width + 64))
    assert wider.processor.tokenizer is ocr.processor.tokenizer
    assert (wider.generation_config, wider.source) == (ocr.generation_config, ocr.source)
    kinds = [{leaf.dtype for leaf in jax.tree.leaves(dict(one.params))} for one in (ocr, wider)]
    assert kinds[0] == kinds[1] == {np.dtype("float16")}


def test_images_are_resized_whole_and_no_text_is_needed(tmp_path):
    ocr = grid_model("deit")
    images = dataclasses.replace(
        ocr.processor.image_processor, size=(30, 50), crop_size=(24, 40), do_center_crop=True, do_resize=False
    )
    images.save_pretrained(tmp_path)
    ocr.processor = TrOCRProcessor.from_pretrained(tmp_path)
    wider = with_image_size(ocr, (24, 80))
    assert wider.processor(Image.effect_noise((100, 30), 60))["pixel_values"].shape == (1, 3, 24, 80)
    with pytest.raises(ValueError, match=str(tmp_path)):  # as before, when it is asked for
        _ = wider.processor.tokenizer
    assert with_image_size(ocr, (24, 24)).config.encoder.image_size == 24


@pytest.mark.parametrize("size", [(32, 100), (30, 512), (0, 512), (32, -8)])
def test_sizes_that_patches_do_not_divide_are_refused(ocr, size):
    with pytest.raises(ValueError, match="patches of 32 x 8; choose multiples"):
        with_image_size(ocr, size)


def test_the_command_trains_on_images_of_another_size(tmp_path, capsys):
    lines = ["--train", str(SAMPLES), "--val", str(SAMPLES)]
    arguments = ["finetune", *lines, "--output", str(tmp_path / "wide"), "--image-size", "32x640", "--max-steps", "1"]
    assert cli.main(arguments) == 0
    assert TrOCR.from_pretrained(tmp_path / "wide").config.encoder.image_shape == (32, 640)
    assert "images are made 32 pixels high and 640 wide" in capsys.readouterr().err
    without = [argument for argument in arguments if argument not in ("--image-size", "32x640")]
    assert cli.main([*without, "--resume"]) == 2
    told = capsys.readouterr().err
    assert "max_steps" not in told
    assert all(f"{name} (was " in told for name in ("image processor's size", "model and labels"))
    with pytest.raises(SystemExit):
        cli.main(["finetune", *lines, "--output", "x", "--image-size", "640"])
    assert "'640' is not HEIGHTxWIDTH" in capsys.readouterr().err
