"""Random twins at the official models' full size: logits at 2e-4 in float32, greedy and beam ids identical."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from tests.twins import Twin, config_dict, make_oracle, oracle_generate
from trocr_jax.checkpoints import names, store
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.models import VisionEncoderDecoderModel

BASE_ENCODER = {
    "model_type": "vit",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 384,
    "patch_size": 16,
    "qkv_bias": False,
    "initializer_range": 0.02,
}
LARGE_ENCODER = {
    **BASE_ENCODER,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
DECODER = {
    "vocab_size": 50265,
    "d_model": 1024,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 512,
    "cross_attention_hidden_size": 768,
    "init_std": 0.05,
}
SINUSOIDAL = {
    **DECODER,
    "max_position_embeddings": 1024,
    "activation_function": "relu",
    "layernorm_embedding": False,
    "scale_embedding": True,
    "use_learned_position_embeddings": False,
    "tie_word_embeddings": False,
}
SMALL_ENCODER = {
    **BASE_ENCODER,
    "model_type": "deit",
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "qkv_bias": True,
}
SMALL_DECODER = {
    **DECODER,
    "vocab_size": 64044,
    "d_model": 256,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 1024,
    "cross_attention_hidden_size": 384,
    "activation_function": "relu",
    "scale_embedding": True,
    "tie_word_embeddings": False,
}
OFFICIAL = {
    "small": (SMALL_ENCODER, SMALL_DECODER),
    "base learned": (BASE_ENCODER, DECODER),
    "base sinusoidal": (BASE_ENCODER, SINUSOIDAL),
    "large learned": (LARGE_ENCODER, {**DECODER, "cross_attention_hidden_size": 1024}),
    "large sinusoidal": (LARGE_ENCODER, {**SINUSOIDAL, "cross_attention_hidden_size": 1024}),
}


@pytest.mark.parametrize(
    "name",
    [
        "small",
        "base learned",
        "base sinusoidal",
        pytest.param("large learned", marks=pytest.mark.slow),
        pytest.param("large sinusoidal", marks=pytest.mark.slow),
    ],
)
def test_official_configuration_equals_the_oracle(name):
    content = config_dict(*OFFICIAL[name])
    oracle = make_oracle(content, seed=7)
    config = VisionEncoderDecoderConfig.from_dict(content)
    params = store.from_torch({k: v.numpy() for k, v in oracle.state_dict().items()}, names.table(config), name)
    twin = Twin(oracle, config, params)
    model = VisionEncoderDecoderModel(config, params=params)
    pixels = twin.pixels(2, seed=1)
    ids = np.random.default_rng(2).integers(3, config.decoder.vocab_size, (2, 6))
    with torch.inference_mode():
        theirs = oracle(torch.from_numpy(pixels), torch.from_numpy(ids))
    found = model(pixels, ids)
    np.testing.assert_allclose(found.logits, theirs.logits.numpy(), rtol=0, atol=2e-4)
    for options in ({"max_new_tokens": 12}, {"max_new_tokens": 12, "num_beams": 4}):
        sequences, scores = oracle_generate(oracle, pixels, **options)
        output = model.generate(
            pixels, return_dict_in_generate=True, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, **options
        )
        np.testing.assert_array_equal(output.sequences, sequences)
        if scores is not None:
            np.testing.assert_allclose(output.sequences_scores, scores, rtol=0, atol=1e-4)
    del oracle, twin, model, params
    gc.collect()
