"""Configurations with the reference's names and defaults (transformers 5.23.0), from every dialect of config.json.

Three dialects exist and all are read: the legacy one (transformers 4.x, with retired names such as
`encoder_hidden_size`), the full one (every field written out) and the diff-only one (defaults left out). A missing
key means the class's default; a key that the network does not use is kept in `extra` and written back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from trocr_jax.replacing import replacing

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"

ACTIVATIONS = ("gelu", "relu")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file; ValueError names the file if it holds anything else."""
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # an int of thousands of digits is a ValueError of its own
        raise ValueError(f"{path} is not valid JSON ({error}); download or export it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__} where an object was expected")
    return content


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes an object as JSON, to a temporary name first, so that a reader never meets half a file."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class _Config:
    """What all configurations share: reading, writing and changing."""

    model_type: ClassVar[str] = ""

    def replace(self, **changes: Any) -> Self:
        """A copy with the given fields changed; unknown names go to `extra`, as the reference lets them be set."""
        names = {field.name for field in dataclasses.fields(self)}
        known = {name: value for name, value in changes.items() if name in names}
        unknown = {name: value for name, value in changes.items() if name not in names}
        if unknown:
            known["extra"] = {**known.get("extra", getattr(self, "extra", {})), **unknown}
        return dataclasses.replace(self, **known)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The configuration in a JSON object: known keys as fields, all others in `extra`."""
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        known = {key: value for key, value in content.items() if key in names}
        extra = {key: value for key, value in content.items() if key not in names and key != "model_type"}
        return cls(**known, extra=extra)  # type: ignore[call-arg]  # every subclass has the field

    def to_dict(self) -> dict[str, Any]:
        """All fields and the extra keys, ready for JSON."""
        content = dict(getattr(self, "extra", {}))
        for field in dataclasses.fields(self):
            if field.name == "extra":
                continue
            value = getattr(self, field.name)
            content[field.name] = list(value) if isinstance(value, tuple) else value
        return {**content, "model_type": self.model_type} if self.model_type else content


def _extra() -> Any:
    # Neither hashed nor compared: a configuration is a static argument of jit, and keys that the network does not
    # use must not cause a recompilation.
    return dataclasses.field(default_factory=dict, compare=False, hash=False, repr=False)


def _as_pair(value: Any, name: str) -> int | tuple[int, int]:
    """One int for a square, a pair (height, width) otherwise."""
    if isinstance(value, int):
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return (value[0], value[1])
    raise ValueError(f"{name} is {value!r}; it must be an int or a pair [height, width]")


@dataclasses.dataclass(frozen=True)
class ViTConfig(_Config):
    """The ViT encoder's configuration; fields and defaults of the reference's `ViTConfig`.

    `image_size` and `patch_size` are in pixels: an int for a square, or a pair (height, width).
    """

    model_type: ClassVar[str] = "vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            object.__setattr__(self, name, _as_pair(getattr(self, name), f"encoder.{name}"))
        if self.pooler_output_size is None:
            object.__setattr__(self, "pooler_output_size", self.hidden_size)
        _check_heads("encoder", self.hidden_size, self.num_attention_heads)
        _check_activation("encoder.hidden_act", self.hidden_act)
        for side, patch in zip(self.image_shape, self.patch_shape, strict=True):
            if patch < 1:
                raise ValueError(f"encoder.patch_size is {self.patch_size}; it must be at least 1")
            if side < patch:
                raise ValueError(f"encoder.image_size {self.image_size} is smaller than patch_size {self.patch_size}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the input image in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of one patch in pixels."""
        return self.patch_size if isinstance(self.patch_size, tuple) else (self.patch_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        rows, columns = self.patch_grid
        return rows * columns

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches; a rest that fills no patch is dropped, as by a convolution."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, and DeiT's distillation token."""
        return 1

    @property
    def num_tokens(self) -> int:
        """S, the length of the encoder's output."""
        return self.num_prefix_tokens + self.num_patches


@dataclasses.dataclass(frozen=True)
class DeiTConfig(ViTConfig):
    """The DeiT encoder's configuration: ViT's with a distillation token behind the class token."""

    model_type: ClassVar[str] = "deit"

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the distillation token."""
        return 2


@dataclasses.dataclass(frozen=True)
class TrOCRConfig(_Config):
    """The text decoder's configuration; fields and defaults of the reference's `TrOCRConfig`.

    The switches are independent of each other: never infer one from another (trocr-small, for one, combines learned
    positions with relu, scaled embeddings and an untied head).
    """

    model_type: ClassVar[str] = "trocr"

    vocab_size: int = 50265
    d_model: int = 1024
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    activation_function: str = "gelu"
    max_position_embeddings: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    decoder_start_token_id: int | None = 2
    init_std: float = 0.02
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    scale_embedding: bool = False
    use_learned_position_embeddings: bool = True
    layernorm_embedding: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    cross_attention_hidden_size: int | None = None
    is_decoder: bool = False
    tie_word_embeddings: bool = True
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        _check_heads("decoder", self.d_model, self.decoder_attention_heads)
        _check_activation("decoder.activation_function", self.activation_function)
        if not self.use_learned_position_embeddings and self.pad_token_id is None:
            raise ValueError("sinusoidal positions count from pad_token_id + 1, but decoder.pad_token_id is null")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The configuration in a JSON object; the oldest files call the cross width `encoder_hidden_size`."""
        content = dict(content)
        legacy = content.pop("encoder_hidden_size", None)
        if content.get("cross_attention_hidden_size") is None and legacy is not None:
            content["cross_attention_hidden_size"] = legacy
        return super().from_dict(content)

    @property
    def hidden_size(self) -> int:
        """The reference's alias of `d_model`."""
        return self.d_model

    @property
    def num_attention_heads(self) -> int:
        """The reference's alias of `decoder_attention_heads`."""
        return self.decoder_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """The reference's alias of `decoder_layers`."""
        return self.decoder_layers


@dataclasses.dataclass(frozen=True)
class VisionEncoderDecoderConfig(_Config):
    """Encoder and decoder configurations and the ids they share, as in a TrOCR checkpoint's config.json."""

    model_type: ClassVar[str] = "vision-encoder-decoder"

    encoder: ViTConfig
    decoder: TrOCRConfig
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        cross = self.decoder.cross_attention_hidden_size
        if cross is not None and cross != self.encoder.hidden_size:
            raise ValueError(
                f"decoder.cross_attention_hidden_size is {cross} but encoder.hidden_size is {self.encoder.hidden_size}"
                "; they must be equal, or cross_attention_hidden_size null with a bridge projection"
            )

    @property
    def has_bridge(self) -> bool:
        """Whether `enc_to_dec_proj` stands between encoder and decoder: widths differ and no cross width is given."""
        decoder = self.decoder
        return decoder.cross_attention_hidden_size is None and self.encoder.hidden_size != decoder.d_model

    @property
    def label_start_token_id(self) -> int:
        """The id that labels are shifted right from."""
        start = self.decoder_start_token_id
        start = self.decoder.decoder_start_token_id if start is None else start
        if start is None:
            raise ValueError("decoder_start_token_id is set neither at the top of the configuration nor in its decoder")
        return start

    @property
    def label_pad_token_id(self) -> int:
        """The id that -100 in labels is replaced by on the decoder's input."""
        pad = self.pad_token_id if self.pad_token_id is not None else self.decoder.pad_token_id
        if pad is None:
            raise ValueError("pad_token_id is set neither at the top of the configuration nor in its decoder")
        return pad

    @classmethod
    def from_encoder_decoder_configs(
        cls, encoder_config: ViTConfig, decoder_config: TrOCRConfig, **kwargs: Any
    ) -> VisionEncoderDecoderConfig:
        """The configuration of the two joined; the decoder's `is_decoder` becomes True, as in the reference."""
        decoder_config = decoder_config.replace(is_decoder=True, add_cross_attention=True)
        return cls.from_dict({"encoder": encoder_config, "decoder": decoder_config, **kwargs})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The configuration in a JSON object; ValueError names an encoder or decoder that is not supported."""
        content = dict(content)
        model_type = content.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"model_type is {model_type!r}; a TrOCR checkpoint has {cls.model_type!r}")
        for part in ("encoder", "decoder"):
            if content.get(part) is None:
                raise ValueError(f"the configuration has no {part!r}; a TrOCR config.json holds one for each side")
        content["encoder"] = encoder_config_from_dict(content["encoder"])
        content["decoder"] = decoder_config_from_dict(content["decoder"])
        return super().from_dict(content)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> VisionEncoderDecoderConfig:
        """The configuration in a folder's config.json, or in the JSON file given."""
        path = pathlib.Path(folder)
        path = path / CONFIG_NAME if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; a checkpoint folder holds {CONFIG_NAME}")
        try:
            return cls.from_dict(read_json(path))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON object, readable by transformers."""
        content = super().to_dict()
        content |= {"encoder": self.encoder.to_dict(), "decoder": self.decoder.to_dict()}
        for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            if content[name] is None:
                del content[name]
        return content


ENCODERS: Mapping[str, type[ViTConfig]] = {"vit": ViTConfig, "deit": DeiTConfig}


def encoder_config_from_dict(content: Mapping[str, Any] | ViTConfig) -> ViTConfig:
    """The encoder configuration that `model_type` names; ValueError for any but ViT and DeiT."""
    if isinstance(content, ViTConfig):
        return content
    _check_object("encoder", content)
    model_type = content.get("model_type", "vit")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise ValueError(f"the encoder is {model_type!r}, which is not supported; supported are {sorted(ENCODERS)}")
    _check_values("encoder", ENCODERS[model_type], content)
    return ENCODERS[model_type].from_dict(content)


def decoder_config_from_dict(content: Mapping[str, Any] | TrOCRConfig) -> TrOCRConfig:
    """The decoder configuration; ValueError for any decoder but TrOCR's, such as BERT's or GPT-2's."""
    if isinstance(content, TrOCRConfig):
        return content
    _check_object("decoder", content)
    # The reference's own default for a vision-encoder-decoder without a decoder type is BERT.
    model_type = content.get("model_type", "bert")
    if model_type != TrOCRConfig.model_type:
        raise ValueError(f"the decoder is {model_type!r}, which is not supported; supported is 'trocr'")
    _check_values("decoder", TrOCRConfig, content)
    return TrOCRConfig.from_dict(content)


# Beyond these a file is damaged or made to harm: names are enumerated by layer, and a table is computed by position.
_MOST = {"num_hidden_layers": 1000, "decoder_layers": 1000, "max_position_embeddings": 1_000_000}
_MOST_OF_OTHERS = 10_000_000
_SWITCHES = (
    "qkv_bias",
    "scale_embedding",
    "use_learned_position_embeddings",
    "layernorm_embedding",
    "tie_word_embeddings",
)


def _check_object(part: str, content: Any) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"the {part} is {content!r}, where an object with its settings was expected")


def _check_values(part: str, kind: type[_Config], content: Mapping[str, Any]) -> None:
    """Raises ValueError for a size, switch or epsilon in a file that is none, or is beyond all reason."""
    for field in dataclasses.fields(kind):
        if field.name not in content:
            continue
        value, name = content[field.name], f"{part}.{field.name}"
        if field.type == "int":
            most = _MOST.get(field.name, _MOST_OF_OTHERS)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
        elif field.name in _SWITCHES and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be true or false")
        elif field.name == "layer_norm_eps" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {value!r}; it must be a number")


def _check_heads(part: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"the {part}'s width {width} cannot be divided among {heads} attention heads")


def _check_activation(name: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{name} is {activation!r}, which is not supported; supported are {list(ACTIVATIONS)}")
