"""The official weights themselves: `HF_HUB_OFFLINE=0 pytest -m network tests/test_official_models.py`.

They have to be downloaded (12 GB in all); no machine that this project was written on could. The tests of the registry
at the end need no network.
"""

from __future__ import annotations

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from trocr_jax import TrOCR
from trocr_jax.checkpoints.inspection import inspect
from trocr_jax.registry import GOLDEN_LOGITS, OFFICIAL, architecture


@pytest.mark.network
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_weights_are_the_registered_models(name):
    found = inspect(f"microsoft/{name}")
    assert found.problem is None
    assert name in found.official
    ocr = TrOCR.from_pretrained(f"microsoft/{name}", dtype="float32")
    assert architecture(ocr.config) == architecture(OFFICIAL[name])
    assert ocr.config.decoder.vocab_size == OFFICIAL[name].decoder.vocab_size
    assert ocr.generation_config.start_token_id == 2
    for text in ("industry, Mr. Brown", "TOTAL 12.50"):
        assert ocr.processor.decode(ocr.processor.tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.network
@pytest.mark.parametrize("name", GOLDEN_LOGITS)
def test_official_weights_give_the_published_logits(name):
    golden = GOLDEN_LOGITS[name]
    path = huggingface_hub.hf_hub_download("hf-internal-testing/fixtures_ocr", golden.image, repo_type="dataset")
    ocr = TrOCR.from_pretrained(f"microsoft/{name}", dtype="float32")
    with Image.open(path) as image:
        pixels = ocr.processor(image.convert("RGB")).pixel_values
    logits = np.asarray(ocr.logits(pixels, [[2]]))
    assert logits.shape == (1, 1, 50265)
    np.testing.assert_allclose(logits[0, 0, : len(golden.logits)], golden.logits, rtol=0, atol=golden.tolerance)


def test_golden_logits_are_of_official_models():
    assert GOLDEN_LOGITS.keys() <= OFFICIAL.keys()
    for golden in GOLDEN_LOGITS.values():
        assert len(golden.logits) == 10
    assert len({golden.logits for golden in GOLDEN_LOGITS.values()}) == len(GOLDEN_LOGITS)
