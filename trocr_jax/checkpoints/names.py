"""The enumerated table of parameters: torch name <-> Flax path <-> how the numbers lie, in both directions.

Every name is listed for a given configuration; nothing is matched by pattern and no transform is guessed from a shape.
Torch files come in two dialects: v4's names, which the hub's files have and which transformers still writes, and the
names that transformers 5 uses in memory.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from trocr_jax.config import TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig

Path = tuple[str, ...]
# linear: [out, in] <-> [in, out]; conv: [O, I, h, w] <-> [h, w, I, O]; same: as it is.
Transform = Literal["same", "linear", "conv"]

_TO_FLAX: Mapping[str, tuple[int, ...]] = {"linear": (1, 0), "conv": (2, 3, 1, 0)}
_TO_TORCH: Mapping[str, tuple[int, ...]] = {"linear": (1, 0), "conv": (3, 2, 0, 1)}

TIED_HEAD = "decoder.output_projection.weight"
EMBEDDING = "decoder.model.decoder.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: its place in the Flax tree, its names in torch files (v4's first), and the transform between."""

    path: Path
    names: tuple[str, ...]
    transform: Transform = "same"

    def to_flax(self, tensor: np.ndarray) -> np.ndarray:
        """The torch tensor as Flax keeps it."""
        return tensor.transpose(_TO_FLAX[self.transform]) if self.transform in _TO_FLAX else tensor

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """The Flax leaf as torch keeps it."""
        return leaf.transpose(_TO_TORCH[self.transform]) if self.transform in _TO_TORCH else leaf


# Names that torch files carry and no parameter needs, with the reason; parts saved on their own have no first word.
IGNORED: Mapping[str, str] = {
    r"(encoder\.)?pooler\..*": "the pooler is never used by TrOCR",
    r"(encoder\.)?embeddings\.mask_token": "the mask token belongs to pre-training by masked images",
    r".*\._float_tensor": "a dummy buffer of old sinusoidal positions",
    r"(decoder\.)?model\.decoder\.embed_positions\.weights": "sinusoidal positions are computed, not stored",
    r".*\.position_ids": "a buffer of consecutive numbers",
}


def ignored_reason(name: str) -> str | None:
    """Why a torch tensor of this name is not read; None if it has to be."""
    return next((reason for pattern, reason in IGNORED.items() if re.fullmatch(pattern, name)), None)


def table(config: VisionEncoderDecoderConfig) -> list[Entry]:
    """Every parameter of the configuration."""
    entries = [*_encoder(config.encoder), *_decoder(config.decoder, has_cross_attention=True)]
    if config.has_bridge:
        entries += _linear(("enc_to_dec_proj",), "enc_to_dec_proj")
    return entries


def decoder_table(config: TrOCRConfig) -> list[Entry]:
    """Every parameter of a decoder on its own, with the names that a `TrOCRForCausalLM` file has."""
    strip = len("decoder.")
    return [
        Entry(entry.path[1:], tuple(name[strip:] for name in entry.names), entry.transform)
        for entry in _decoder(config, has_cross_attention=config.is_decoder)
    ]


def encoder_table(config: ViTConfig) -> list[Entry]:
    """Every parameter of an encoder on its own, with the names that a `ViTModel` or `DeiTModel` file has."""
    strip = len("encoder.")
    return [
        Entry(entry.path[1:], tuple(name[strip:] for name in entry.names), entry.transform)
        for entry in _encoder(config)
    ]


def _linear(path: Path, *names: str, bias: bool = True) -> Iterator[Entry]:
    yield Entry((*path, "kernel"), tuple(f"{name}.weight" for name in names), "linear")
    if bias:
        yield Entry((*path, "bias"), tuple(f"{name}.bias" for name in names))


def _norm(path: Path, name: str) -> Iterator[Entry]:
    yield Entry((*path, "scale"), (f"{name}.weight",))
    yield Entry((*path, "bias"), (f"{name}.bias",))


def _encoder(config: ViTConfig) -> Iterator[Entry]:
    tokens = ["cls_token", "position_embeddings"]
    tokens += ["distillation_token"] if config.num_prefix_tokens == 2 else []
    for token in tokens:
        yield Entry(("encoder", "embeddings", token), (f"encoder.embeddings.{token}",))
    patches, name = ("encoder", "embeddings", "patch_embeddings"), "encoder.embeddings.patch_embeddings.projection"
    yield Entry((*patches, "kernel"), (f"{name}.weight",), "conv")
    yield Entry((*patches, "bias"), (f"{name}.bias",))
    for i in range(config.num_hidden_layers):
        path = ("encoder", f"layers_{i}")
        v4, v5 = f"encoder.encoder.layer.{i}", f"encoder.layers.{i}"
        for norm in ("layernorm_before", "layernorm_after"):
            yield Entry((*path, norm, "scale"), (f"{v4}.{norm}.weight", f"{v5}.{norm}.weight"))
            yield Entry((*path, norm, "bias"), (f"{v4}.{norm}.bias", f"{v5}.{norm}.bias"))
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            names = f"{v4}.attention.attention.{old}", f"{v5}.attention.{new}"
            yield from _linear((*path, "attention", new), *names, bias=config.qkv_bias)
        yield from _linear((*path, "attention", "out_proj"), f"{v4}.attention.output.dense", f"{v5}.attention.o_proj")
        yield from _linear((*path, "mlp", "fc1"), f"{v4}.intermediate.dense", f"{v5}.mlp.fc1")
        yield from _linear((*path, "mlp", "fc2"), f"{v4}.output.dense", f"{v5}.mlp.fc2")
    yield from _norm(("encoder", "layernorm"), "encoder.layernorm")


def _decoder(config: TrOCRConfig, *, has_cross_attention: bool) -> Iterator[Entry]:
    prefix = "decoder.model.decoder"
    yield Entry(("decoder", "embed_tokens", "embedding"), (EMBEDDING,))
    if config.use_learned_position_embeddings:
        yield Entry(("decoder", "embed_positions", "embedding"), (f"{prefix}.embed_positions.weight",))
    if config.layernorm_embedding:
        yield from _norm(("decoder", "layernorm_embedding"), f"{prefix}.layernorm_embedding")
    for i in range(config.decoder_layers):
        path, name = ("decoder", f"layers_{i}"), f"{prefix}.layers.{i}"
        for attention in ("self_attn", "encoder_attn") if has_cross_attention else ("self_attn",):
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from _linear((*path, attention, projection), f"{name}.{attention}.{projection}")
            yield from _norm((*path, f"{attention}_layer_norm"), f"{name}.{attention}_layer_norm")
        for linear in ("fc1", "fc2"):
            yield from _linear((*path, "mlp", linear), f"{name}.{linear}")
        yield from _norm((*path, "final_layer_norm"), f"{name}.final_layer_norm")
    if not config.tie_word_embeddings:
        yield Entry(("decoder", "output_projection", "kernel"), (TIED_HEAD,), "linear")


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """A nested tree as {path: leaf}."""
    leaves: dict[Path, Any] = {}
    for name, branch in tree.items():
        leaves |= flatten(branch, (*prefix, name)) if isinstance(branch, Mapping) else {(*prefix, name): branch}
    return leaves


def unflatten(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """{path: leaf} as a nested tree."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return tree
