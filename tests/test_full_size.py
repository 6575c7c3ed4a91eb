"""Random twins at the official models' full size: logits at 2e-4 in float32, greedy and beam ids identical."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from tests.twins import Twin, make_oracle, oracle_generate
from trocr_jax.checkpoints import names, store
from trocr_jax.models import VisionEncoderDecoderModel
from trocr_jax.registry import OFFICIAL

pytestmark = pytest.mark.usefixtures("optimized")

# One official model of each distinct shape.
SHAPES = {
    "small": "trocr-small-printed",
    "base learned": "trocr-base-handwritten",
    "base sinusoidal": "trocr-base-stage1",
    "large learned": "trocr-large-handwritten",
    "large sinusoidal": "trocr-large-printed",
}


# The others are compared in checkpoints/test_full_size_formats.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["large learned", "large sinusoidal"])
def test_official_configuration_equals_the_oracle(name):
    config = OFFICIAL[SHAPES[name]]
    # Wider weights than at the start of a training, so that the best tokens are clearly the best.
    config = config.replace(decoder=config.decoder.replace(init_std=0.05, dropout=0.0))
    oracle = make_oracle(config.to_dict(), seed=7)
    params = store.from_torch({k: v.numpy() for k, v in oracle.state_dict().items()}, names.table(config), name)
    twin = Twin(oracle, config, params)
    model = VisionEncoderDecoderModel(config, params=params)
    pixels = twin.pixels(1, seed=1)
    ids = np.random.default_rng(2).integers(3, config.decoder.vocab_size, (1, 6))
    with torch.inference_mode():
        theirs = oracle(torch.from_numpy(pixels), torch.from_numpy(ids))
    found = model(pixels, ids)
    np.testing.assert_allclose(found.logits, theirs.logits.numpy(), rtol=0, atol=2e-4)
    for options in ({"max_new_tokens": 10}, {"max_new_tokens": 10, "num_beams": 4}):
        sequences, scores = oracle_generate(oracle, pixels, **options)
        output = model.generate(
            pixels, return_dict_in_generate=True, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, **options
        )
        np.testing.assert_array_equal(output.sequences, sequences)
        if scores is not None:
            np.testing.assert_allclose(output.sequences_scores, scores, rtol=0, atol=1e-4)
    del oracle, twin, model, params
    gc.collect()
