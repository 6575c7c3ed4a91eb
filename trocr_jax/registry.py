"""The eleven official models and their architectures.

Facts from the hub's files and from transformers' converter (models/trocr/convert_trocr_unilm_to_pytorch.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trocr_jax.config import DeiTConfig, TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig

_VIT: dict[str, Any] = {"image_size": 384, "patch_size": 16, "qkv_bias": False}
_ENCODERS: Mapping[str, ViTConfig] = {
    "small": DeiTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, image_size=384
    ),
    "base": ViTConfig(**_VIT),
    "large": ViTConfig(**_VIT, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
_ROBERTA = TrOCRConfig(is_decoder=True)
_SINUSOIDAL = TrOCRConfig(
    is_decoder=True,
    max_position_embeddings=1024,
    activation_function="relu",
    layernorm_embedding=False,
    scale_embedding=True,
    use_learned_position_embeddings=False,
    tie_word_embeddings=False,
)
_UNILM = TrOCRConfig(
    is_decoder=True,
    vocab_size=64044,
    d_model=256,
    decoder_layers=6,
    decoder_attention_heads=8,
    decoder_ffn_dim=1024,
    activation_function="relu",
    scale_embedding=True,
    tie_word_embeddings=False,
)
_TOKENS: dict[str, Any] = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2}


def _official(name: str, decoder: TrOCRConfig) -> VisionEncoderDecoderConfig:
    encoder = _ENCODERS[name.split("-")[1]]
    decoder = decoder.replace(cross_attention_hidden_size=encoder.hidden_size)
    return VisionEncoderDecoderConfig(encoder=encoder, decoder=decoder, **_TOKENS)


_DECODERS: Mapping[str, TrOCRConfig] = {
    "trocr-small-stage1": _UNILM,
    "trocr-small-handwritten": _UNILM,
    "trocr-small-printed": _UNILM,
    "trocr-base-stage1": _SINUSOIDAL,
    "trocr-base-handwritten": _ROBERTA,
    "trocr-base-printed": _ROBERTA,
    "trocr-base-str": _ROBERTA,
    "trocr-large-stage1": _SINUSOIDAL,
    "trocr-large-handwritten": _ROBERTA,
    "trocr-large-printed": _SINUSOIDAL,
    "trocr-large-str": _ROBERTA,
}
# By their ids on the hub without "microsoft/".
OFFICIAL: Mapping[str, VisionEncoderDecoderConfig] = {
    name: _official(name, decoder) for name, decoder in _DECODERS.items()
}


def matching_models(config: VisionEncoderDecoderConfig) -> list[str]:
    """Names of the official models with this architecture; several share one, and fine-tunes keep theirs.

    Ids, dropout and initialisation say nothing about an architecture and are not compared; nor is the size of the
    vocabulary, which fine-tunes extend.
    """
    wanted = architecture(config)
    return [name for name, official in OFFICIAL.items() if architecture(official) == wanted]


def architecture(config: VisionEncoderDecoderConfig) -> dict[str, Any]:
    """The switches and sizes that decide which arithmetic a model does."""
    encoder, decoder = config.encoder, config.decoder
    return {
        "encoder": encoder.model_type,
        "encoder width": encoder.hidden_size,
        "encoder layers": encoder.num_hidden_layers,
        "encoder heads": encoder.num_attention_heads,
        "encoder feed-forward": encoder.intermediate_size,
        "image": encoder.image_shape,
        "patch": encoder.patch_shape,
        "qkv bias": encoder.qkv_bias,
        "decoder width": decoder.d_model,
        "decoder layers": decoder.decoder_layers,
        "decoder heads": decoder.decoder_attention_heads,
        "decoder feed-forward": decoder.decoder_ffn_dim,
        "activation": decoder.activation_function,
        "positions": "learned" if decoder.use_learned_position_embeddings else "sinusoidal",
        "position table": decoder.max_position_embeddings,
        "embedding norm": decoder.layernorm_embedding,
        "scaled embeddings": decoder.scale_embedding,
        "tied head": decoder.tie_word_embeddings,
        "cross width": decoder.cross_attention_hidden_size,
        "bridge": config.has_bridge,
    }


def summary(config: VisionEncoderDecoderConfig) -> str:
    """The architecture in a few words: which official models share it, else its sizes."""
    names = matching_models(config)
    if names:
        return f"the architecture of {', '.join(names)}"
    encoder, decoder = config.encoder, config.decoder
    return (
        f"an encoder of {encoder.num_hidden_layers} layers of width {encoder.hidden_size}, "
        f"a decoder of {decoder.decoder_layers} layers of width {decoder.d_model}"
    )


@dataclasses.dataclass(frozen=True)
class GoldenLogits:
    """What an official model answers to one image: the first logits behind the start token alone.

    `image` is a file of the hub's dataset hf-internal-testing/fixtures_ocr, in RGB through the model's own processor.
    """

    image: str
    logits: tuple[float, ...]
    tolerance: float = 2e-3


_IAM, _SROIE = "iam_picture.jpeg", "SROIE-receipt.jpeg"
# From transformers' tests (models/vision_encoder_decoder) and converter; those of other models were not published. The
# receipt is made smaller, which Pillow 9 began to do otherwise: with it base-printed's changed by up to 0.012, and
# large-printed's are from before.
GOLDEN_LOGITS: Mapping[str, GoldenLogits] = {
    "trocr-base-handwritten": GoldenLogits(
        _IAM, (-1.4502, -4.6683, -0.5347, -2.9291, 9.1435, -3.0571, 8.9764, 1.7560, 8.7358, -1.5311)
    ),
    "trocr-large-handwritten": GoldenLogits(
        _IAM, (-2.6437, -1.3129, -2.2596, -5.3455, 6.3539, 1.7604, 5.4991, 1.4702, 5.6113, 2.0170)
    ),
    "trocr-base-printed": GoldenLogits(
        _SROIE, (-5.6844, -5.8372, 1.1518, -6.8984, 6.8587, -2.4453, 1.2347, -1.0241, -1.9649, -3.9109)
    ),
    "trocr-large-printed": GoldenLogits(
        _SROIE, (-6.0162, -7.0959, 4.4155, -5.1063, 7.0468, -3.1631, 2.6466, -0.3081, -0.8106, -1.7535), tolerance=0.03
    ),
}
