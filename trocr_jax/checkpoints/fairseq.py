"""Original fairseq TrOCR checkpoints (microsoft/unilm, trocr) -> transformers' tensor names and configurations.

The files say little about themselves: what tensors show is read from them, what they do not show (heads, activation,
embedding scale) from the arguments saved beside them, else from the table of published variants. Each of these
decisions is recorded with its source. Facts are from unilm's trocr_models.py, deit.py and task.py, from fairseq, and
from transformers' convert_trocr_unilm_to_pytorch.py; dropout rates stay the configuration's defaults, as there.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from trocr_jax.checkpoints import names
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.config import DeiTConfig, TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.processing.image import ImageProcessor

# Names that are dropped, with the reason; everything else that is not enumerated is an error.
DROPPED: Mapping[str, str] = {
    r"encoder\.deit\.head\.(weight|bias)": "the classifier of the encoder's pre-training, which TrOCR never calls",
    r"encoder\.deit\.head_dist\.(weight|bias)": "the distillation token's classifier, which TrOCR never calls",
    r"decoder\.version": "the number of fairseq's checkpoint format",
    r"decoder\.embed_positions\._float_tensor": "an empty buffer that follows the model's dtype and device",
    r"decoder\.embed_positions\.weights": "sinusoidal positions are computed, not stored",
}
_TIED_REASON = "equal to the embeddings, which the head is tied to"

_PATCHES, _POSITIONS = "encoder.deit.patch_embed.proj.weight", "encoder.deit.pos_embed"
_ENCODER_FC1, _DECODER_FC1 = "encoder.deit.blocks.0.mlp.fc1.weight", "decoder.layers.0.fc1.weight"
_EMBEDDING, _HEAD = "decoder.embed_tokens.weight", "decoder.output_projection.weight"
_LEARNED, _CROSS_KEY = "decoder.embed_positions.weight", "decoder.layers.0.encoder_attn.k_proj.weight"
# The tensors whose shapes tell sizes, and how many axes they have.
_NUM_AXES = {_PATCHES: 4, _POSITIONS: 3, _ENCODER_FC1: 2, _EMBEDDING: 2, _DECODER_FC1: 2, _CROSS_KEY: 2, _LEARNED: 2}

_ENCODER_NAMES = {
    "encoder.embeddings.cls_token": "encoder.deit.cls_token",
    "encoder.embeddings.distillation_token": "encoder.deit.dist_token",
    "encoder.embeddings.position_embeddings": _POSITIONS,
    "encoder.embeddings.patch_embeddings.projection": "encoder.deit.patch_embed.proj",
    "encoder.layernorm": "encoder.deit.norm",
}
_BLOCK_NAMES = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_FUSED = ("query", "key", "value")  # the thirds of attn.qkv's rows, in order

_HEAD_SIZE = 64  # of every published encoder: deit_tiny to deit_base, beit_base, beit_large
_SINUSOIDAL_POSITIONS = 1024  # unilm's DEFAULT_MAX_TARGET_POSITIONS, and transformers' converter's value
_TOKEN_IDS: Mapping[str, Any] = {"decoder_start_token_id": 2, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_BICUBIC = 3

# What tensors do not show: our field, the saved argument that tells it, and that argument's type.
_SWITCHES: tuple[tuple[str, str, type], ...] = (
    ("decoder_attention_heads", "decoder_attention_heads", int),
    ("activation_function", "activation_fn", str),
    ("scale_embedding", "no_scale_embedding", bool),
)
_KINDS = {int: "a whole number above 0", str: "a text", bool: "True or False"}
# Arguments that change the arithmetic and leave no trace in the tensors' names.
_UNSUPPORTED = {
    "ape": "the encoder's positions are interpolated for each image",
    "no_token_positional_embeddings": "the decoder has no positions",
    "decoder_normalize_before": "the decoder's norms come before its blocks",
}


class Decision(NamedTuple):
    """A field of a configuration (with its part: "encoder.", "decoder."), its value, and where that comes from."""

    field: str
    value: Any
    source: str


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A fairseq checkpoint under transformers' names (v4's), with everything that belongs beside the weights.

    tensors: in the dtypes of the file, as views where the file's tensor was split; all and only what
    `names.table(config)` lists. dropped: the names that were not read, each with the reason.
    """

    tensors: dict[str, np.ndarray]
    config: VisionEncoderDecoderConfig
    generation_config: GenerationConfig
    image_processor: ImageProcessor
    decisions: tuple[Decision, ...]
    dropped: dict[str, str]


class _Variant(NamedTuple):
    """One kind of published decoder: the first four fields tell it by its tensors, the others are its settings."""

    is_learned: bool
    has_norm: bool
    width: int
    layers: int
    settings: Mapping[str, Any]
    members: str


_PUBLISHED = (
    _Variant(
        *(True, True, 1024, 12),
        {"decoder_attention_heads": 16, "activation_function": "gelu", "scale_embedding": False},
        "trocr-base-handwritten, -printed and -str, trocr-large-handwritten and -str",
    ),
    _Variant(
        *(False, False, 1024, 12),
        {"decoder_attention_heads": 16, "activation_function": "relu", "scale_embedding": True},
        "trocr-large-printed, trocr-base-stage1 and trocr-large-stage1",
    ),
    _Variant(
        *(True, True, 256, 6),
        {"decoder_attention_heads": 8, "activation_function": "relu", "scale_embedding": True},
        "trocr-small-stage1, -handwritten and -printed",
    ),
)
# RoBERTa's own settings (fairseq, models/roberta), base and large.
_ROBERTA = {"activation_function": "gelu", "scale_embedding": False}
_ROBERTA_HEADS = {768: 12, 1024: 16}


# What a caller may say of a checkpoint that does not say it itself: the keyword arguments of `convert`.
OVERRIDES = ("encoder_num_attention_heads", "decoder_attention_heads", "activation_function", "scale_embedding")


def is_fairseq(tensor_names: Iterable[str]) -> bool:
    """Whether these are the names of an original TrOCR checkpoint rather than of transformers' port."""
    return any(name.startswith("encoder.deit.") for name in tensor_names)


def dropped_names(tensor_names: Iterable[str]) -> dict[str, str]:
    """The names that a conversion does not read, with the reasons."""
    reasons = {name: _dropped_reason(name) for name in tensor_names}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _dropped_reason(name: str) -> str | None:
    return next((reason for pattern, reason in DROPPED.items() if re.fullmatch(pattern, name)), None)


def saved_arguments(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The model's arguments in a checkpoint's content, as plain values: its "args", else its "cfg"'s "model".

    Both may be dicts or the stubs that `torch_reader` leaves for argparse's and omegaconf's objects. None if the
    checkpoint has neither, or is no file of torch.save (then `content` is None). Raises CheckpointError if they are
    something else.
    """
    if content is None:
        return None
    arguments = _unwrapped(content.get("args"))
    if arguments is None:
        settings = _unwrapped(content.get("cfg"))
        arguments = _unwrapped(settings.get("model")) if isinstance(settings, Mapping) else settings
    if arguments is None:
        return None
    if not isinstance(arguments, Mapping):
        raise CheckpointError(f"the checkpoint's arguments are {arguments!r}, where names and values were expected")
    return {str(name): _plain(value) for name, value in arguments.items()}


def _unwrapped(value: Any) -> Any:
    """The content of a stub: a Namespace's attributes, an omegaconf container's content or a node's value."""
    for _ in range(4):  # stubs may go round in circles
        state = getattr(value, "state", None)
        if not isinstance(state, Mapping):
            break
        value = state.get("_content", state.get("_val", state))
    return value


def _plain(value: Any) -> Any:
    value = _unwrapped(value)
    return [_unwrapped(part) for part in value] if isinstance(value, list | tuple) else value


def convert(
    state: Mapping[str, np.ndarray],
    arguments: Mapping[str, Any] | None = None,
    *,
    source: str | os.PathLike[str] = "the checkpoint",
    encoder_num_attention_heads: int | None = None,
    decoder_attention_heads: int | None = None,
    activation_function: str | None = None,
    scale_embedding: bool | None = None,
) -> Conversion:
    """The checkpoint whose "model" entry is `state` and whose saved arguments are `arguments`, converted.

    The keyword arguments win over what the checkpoint says. Raises CheckpointError that names `source` and lists every
    missing, unexpected or misshapen tensor, or else everything that contradicts or cannot be decided. Shapes that no
    size is read from are left to `store.check_tree`.
    """
    if not is_fairseq(state):
        raise CheckpointError(f"{source} is no original TrOCR checkpoint: no tensor's name starts with encoder.deit.")
    is_tied = _is_tied(state)
    skeleton = _skeleton(state.keys(), is_tied)
    origins = {entry.names[0]: original_name(entry.names[0]) for entry in names.table(skeleton)}
    _raise_if(_tensor_problems(state, {name for name, _ in origins.values()}, is_tied), source)
    chosen = {
        "decoder_attention_heads": decoder_attention_heads,
        "activation_function": activation_function,
        "scale_embedding": scale_embedding,
    }
    problems: list[str] = []
    encoder = tuple(_encoder(state, skeleton.encoder, arguments or {}, encoder_num_attention_heads, problems))
    decoder = tuple(_decoder(state, skeleton.decoder, arguments or {}, chosen, problems))
    _raise_if(problems, source)
    config = _config(skeleton, encoder, decoder, source)
    return Conversion(
        tensors={name: _part(state[origin], part) for name, (origin, part) in origins.items()},
        config=config,
        generation_config=GenerationConfig(**_TOKEN_IDS),
        image_processor=_image_processor(config.encoder),
        decisions=_decisions(encoder, decoder),
        dropped=dropped_names(state) | ({_HEAD: _TIED_REASON} if is_tied and _HEAD in state else {}),
    )


def _decisions(encoder: Iterable[Decision], decoder: Iterable[Decision]) -> tuple[Decision, ...]:
    return (
        *(decision._replace(field=f"encoder.{decision.field}") for decision in encoder),
        *(decision._replace(field=f"decoder.{decision.field}") for decision in decoder),
        *(Decision(name, value, "from fairseq's numbering of tokens") for name, value in _TOKEN_IDS.items()),
        Decision("resample", _BICUBIC, "from unilm's evaluation, which is bicubic for every size"),
    )


def original_name(name: str) -> tuple[str, int | None]:
    """(fairseq's name of a tensor that transformers calls `name`, which third of its rows it is or None for all)."""
    if name.startswith("decoder."):
        return name.replace("decoder.model.decoder.", "decoder.", 1), None
    if name in _ENCODER_NAMES:
        return _ENCODER_NAMES[name], None
    module, _, kind = name.rpartition(".")
    if module in _ENCODER_NAMES:
        return f"{_ENCODER_NAMES[module]}.{kind}", None
    number, _, module = module.removeprefix("encoder.encoder.layer.").partition(".")
    block = f"encoder.deit.blocks.{number}"
    if module.startswith("attention.attention."):
        return f"{block}.attn.qkv.{kind}", _FUSED.index(module.removeprefix("attention.attention."))
    return f"{block}.{_BLOCK_NAMES[module]}.{kind}", None


def _part(tensor: np.ndarray, part: int | None) -> np.ndarray:
    """One third of the rows, [3 * E, ...] -> [E, ...], or the tensor as it is."""
    rows = len(tensor) // 3
    return tensor if part is None else tensor[part * rows : (part + 1) * rows]


def _is_tied(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the head is the embedding table, which fairseq then stores under both names."""
    head, embedding = state.get(_HEAD), state.get(_EMBEDDING)
    if head is None or embedding is None:
        return head is None
    return np.array_equal(head, embedding)


def _skeleton(tensor_names: Collection[str], is_tied: bool) -> VisionEncoderDecoderConfig:
    """The configuration as far as names tell it, which is enough to enumerate all names; sizes are defaults."""

    def count(pattern: str) -> int:
        # Different numbers rather than the highest: of a gap, and of a forged number, the enumeration shows both sides.
        return len({match[1] for name in tensor_names if (match := re.match(pattern, name))})

    encoder_class = DeiTConfig if "encoder.deit.dist_token" in tensor_names else ViTConfig
    encoder = encoder_class(
        num_hidden_layers=count(r"encoder\.deit\.blocks\.(\d+)\."),
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in tensor_names),
    )
    decoder = TrOCRConfig(
        decoder_layers=count(r"decoder\.layers\.(\d+)\."),
        use_learned_position_embeddings=_LEARNED in tensor_names,
        layernorm_embedding=any(name.startswith("decoder.layernorm_embedding.") for name in tensor_names),
        tie_word_embeddings=is_tied,
        cross_attention_hidden_size=encoder.hidden_size,
    )
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def _tensor_problems(state: Mapping[str, np.ndarray], origins: set[str], is_tied: bool) -> list[str]:
    """Names that are missing or unexpected, and tensors that cannot be split or read sizes from."""
    wanted = origins | (_NUM_AXES.keys() - {_LEARNED})  # the table of a model without layers lacks some of these
    known = wanted | ({_HEAD} if is_tied else set())
    problems = [f"- {name}" for name in sorted(wanted - state.keys())]
    problems += [f"+ {name}" for name in sorted(state.keys() - known) if _dropped_reason(name) is None]
    for name in sorted(wanted & state.keys()):
        shape = state[name].shape
        num_axes = _NUM_AXES.get(name, len(shape))
        if len(shape) != num_axes or not all(shape):
            problems.append(f"! {name} has shape {shape}; {num_axes} axes, none of them empty, were expected")
        elif ".attn.qkv." in name and (_PATCHES in state and shape[0] != 3 * len(state[_PATCHES])):
            problems.append(f"! {name} has shape {shape}; {3 * len(state[_PATCHES])} rows were expected")
    return problems


def _raise_if(problems: list[str], source: str | os.PathLike[str]) -> None:
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise CheckpointError(
            f"{source} cannot be converted from fairseq (- missing, + unexpected, ! wrong):\n  " + "\n  ".join(shown)
        )


def _shape_of(name: str) -> str:
    return f"from the shape of {name}"


def _encoder(
    state: Mapping[str, np.ndarray],
    skeleton: ViTConfig,
    arguments: Mapping[str, Any],
    heads: int | None,
    problems: list[str],
) -> Iterator[Decision]:
    """The encoder's fields; what stands against them is added to `problems`."""
    is_distilled = isinstance(skeleton, DeiTConfig)
    width, channels, *patch = state[_PATCHES].shape
    yield Decision("model_type", skeleton.model_type, _presence_of("encoder.deit.dist_token", is_distilled))
    yield Decision("hidden_size", width, _shape_of(_PATCHES))
    yield Decision("num_channels", channels, _shape_of(_PATCHES))
    yield Decision("patch_size", patch[0] if patch[0] == patch[1] else tuple(patch), _shape_of(_PATCHES))
    yield from _image_size(state[_POSITIONS].shape[1] - skeleton.num_prefix_tokens, patch, arguments, problems)
    yield Decision("num_hidden_layers", skeleton.num_hidden_layers, "from the count of encoder.deit.blocks")
    yield Decision("intermediate_size", state[_ENCODER_FC1].shape[0], _shape_of(_ENCODER_FC1))
    yield Decision("qkv_bias", skeleton.qkv_bias, _presence_of("attn.qkv.bias", skeleton.qkv_bias))
    if heads is not None:
        yield Decision("num_attention_heads", heads, "given by the caller")
    elif width % _HEAD_SIZE == 0:
        source = f"from the width; every published encoder has heads of {_HEAD_SIZE}"
        yield Decision("num_attention_heads", width // _HEAD_SIZE, source)
    else:
        problems.append(f"! the encoder's width {width} is not a whole number of heads of {_HEAD_SIZE}, as in every "
                        "published encoder; pass encoder_num_attention_heads= "
                        "(in the shell --set encoder_num_attention_heads=N)")  # fmt: skip
    yield Decision("hidden_act", "gelu", "from timm's blocks, which have the exact (erf) GELU")
    # unilm's norms add 1e-6. transformers' converter leaves its 1e-12, which the hub's models and their golden logits
    # are made with, and so do we. In x / sqrt(variance + eps) that is 5e-7 of a value where the variance is 1.
    yield Decision("layer_norm_eps", 1e-12, "from transformers' converter; unilm's own is 1e-6")


def _presence_of(name: str, is_there: bool) -> str:
    return f"from the {'presence' if is_there else 'absence'} of {name}"


def _image_size(count: int, patch: list[int], arguments: Mapping[str, Any], problems: list[str]) -> Iterator[Decision]:
    """The image's size in pixels, an int for a square: the saved one where it fits the count of positions."""
    given = arguments.get("input_size")
    if given is None:
        side = math.isqrt(max(count, 0))
        size, source = [side * length for length in patch], f"from {_POSITIONS}: {count} patches, taken as a square"
        if count < 1 or side * side != count:
            problems.append(f"! {_POSITIONS} has {count} patches, which make no square; pass the images' size: "
                            "input_size=[height,width]")  # fmt: skip
    else:
        size = list(given) if isinstance(given, list | tuple) else [given]
        size = size * 2 if len(size) == 1 else size
        source = f"from the saved arguments (input_size), which fit {_POSITIONS}'s {count} patches"
        if len(size) != 2 or not all(type(length) is int for length in size):
            problems.append(f"! the saved argument input_size is {given!r}; one or two whole numbers were expected")
            return
        if (size[0] // patch[0]) * (size[1] // patch[1]) != count:
            problems.append(f"! the saved argument input_size is {given!r}, but {_POSITIONS} has {count} patches")
    yield Decision("image_size", size[0] if size[0] == size[1] else tuple(size), source)


def _decoder(
    state: Mapping[str, np.ndarray],
    skeleton: TrOCRConfig,
    arguments: Mapping[str, Any],
    chosen: Mapping[str, Any],
    problems: list[str],
) -> Iterator[Decision]:
    """The decoder's fields; what stands against them is added to `problems`."""
    vocab_size, width = state[_EMBEDDING].shape
    is_learned, has_norm = skeleton.use_learned_position_embeddings, skeleton.layernorm_embedding
    norm_source = _presence_of("decoder.layernorm_embedding", has_norm)
    is_tied = skeleton.tie_word_embeddings
    tie_source = f"from {_HEAD}, {'equal to' if is_tied else 'other than'} {_EMBEDDING}"
    tie_source = tie_source if _HEAD in state else _presence_of(_HEAD, False)
    sizes = [
        Decision("vocab_size", vocab_size, _shape_of(_EMBEDDING)),
        Decision("d_model", width, _shape_of(_EMBEDDING)),
        Decision("decoder_layers", skeleton.decoder_layers, "from the count of decoder.layers"),
        Decision("decoder_ffn_dim", state[_DECODER_FC1].shape[0], _shape_of(_DECODER_FC1)),
        Decision("cross_attention_hidden_size", state[_CROSS_KEY].shape[1], _shape_of(_CROSS_KEY)),
        Decision("use_learned_position_embeddings", is_learned, _presence_of(_LEARNED, is_learned)),
        Decision("layernorm_embedding", has_norm, norm_source),
        Decision("tie_word_embeddings", is_tied, tie_source),
    ]
    yield from sizes
    if is_learned:
        # The table starts with fairseq's two rows up to the pad token's, which no position uses.
        yield Decision("max_position_embeddings", state[_LEARNED].shape[0] - 2, _shape_of(_LEARNED))
    else:
        length = _argument(arguments, "max_target_positions", int, problems)
        source = "from unilm's default" if length is None else "from the saved arguments (max_target_positions)"
        yield Decision("max_position_embeddings", length or _SINUSOIDAL_POSITIONS, source)
    is_roberta = _is_built_from_roberta(is_learned, has_norm, arguments)
    _check_arguments({decision.field: decision.value for decision in sizes}, arguments, is_roberta, problems)
    key = (is_learned, has_norm, width, skeleton.decoder_layers)
    if not is_roberta:
        yield from _switches(key, arguments, chosen, problems)
        return
    roberta = _ROBERTA | ({"decoder_attention_heads": _ROBERTA_HEADS[width]} if width in _ROBERTA_HEADS else {})
    variant = _Variant(*key, roberta, "RoBERTa, whose own settings built this decoder, not the saved arguments")
    yield from _switches(key, {}, chosen, problems, (variant,))


def _is_built_from_roberta(is_learned: bool, has_norm: bool, arguments: Mapping[str, Any]) -> bool:
    """Whether the decoder was built from RoBERTa's arguments, so that the saved ones do not describe it.

    `--decoder-pretrained roberta2` does so (unilm's trocr_models.py) and leaves its own arguments at their defaults,
    which ask for relu, scaled embeddings and sinusoidal positions: nothing of that is true of base-handwritten. The
    option's value alone does not tell, since its meaning changed between versions (unilm's README). So the tensors
    must have RoBERTa's learned positions and norm, and the arguments either name roberta2 or deny those positions.
    """
    is_named = str(arguments.get("decoder_pretrained")).startswith("roberta2")
    return is_learned and has_norm and (is_named or arguments.get("decoder_learned_pos") is False)


def _check_arguments(
    sizes: Mapping[str, Any], arguments: Mapping[str, Any], is_roberta: bool, problems: list[str]
) -> None:
    """Adds what the saved arguments and the tensors contradict each other in, and what is not supported."""
    told = {"decoder_embed_dim": "d_model", "decoder_layers": "decoder_layers"}
    if not is_roberta:
        told |= {
            "decoder_ffn_embed_dim": "decoder_ffn_dim",
            "decoder_learned_pos": "use_learned_position_embeddings",
            "layernorm_embedding": "layernorm_embedding",
        }
    for name, field in told.items():
        if arguments.get(name) is not None and arguments[name] != sizes[field]:
            problems.append(f"! the saved argument {name} is {arguments[name]!r}, but the tensors say "
                            f"{sizes[field]!r}; one of the two was made for another model")  # fmt: skip
    for name, reason in _UNSUPPORTED.items():
        if arguments.get(name) and not (is_roberta and name.startswith("decoder_")):
            problems.append(f"! the saved argument {name} is set: {reason}, which is not supported")


def _argument(arguments: Mapping[str, Any], name: str, kind: type, problems: list[str]) -> Any:
    """The saved argument, checked; None where there is none."""
    value: Any = arguments.get(name)
    is_count = isinstance(value, int) and value > 0
    if value is not None and (type(value) is not kind or (kind is int and not is_count)):
        problems.append(f"! the saved argument {name} is {value!r}; {_KINDS[kind]} was expected")
        return None
    return value


def _switches(
    key: tuple[bool, bool, int, int],
    arguments: Mapping[str, Any],
    chosen: Mapping[str, Any],
    problems: list[str],
    variants: Iterable[_Variant] = _PUBLISHED,
) -> Iterator[Decision]:
    """What the tensors do not show: from the caller, else the saved arguments, else the variant that `key` tells."""
    variant = next((variant for variant in variants if variant[:4] == key), None)
    for field, name, kind in _SWITCHES:
        saved = _argument(arguments, name, kind, problems)
        if chosen[field] is not None:
            yield Decision(field, chosen[field], "given by the caller")
        elif saved is not None:
            value = not saved if field == "scale_embedding" else saved  # fairseq's argument says the opposite
            yield Decision(field, value, f"from the saved arguments ({name} {saved!r})")
        elif variant is not None and field in variant.settings:
            table = "" if variant not in _PUBLISHED else "the published table of variants: "
            yield Decision(field, variant.settings[field], f"from {table}{variant.members}")
        else:
            problems.append(f"! decoder.{field} shows neither in the tensors nor in saved arguments that describe this "
                            f"decoder ({name}), and no published variant is like it; pass {field}= "
                            f"(in the shell --set {field}=VALUE)")  # fmt: skip


def _config(
    skeleton: VisionEncoderDecoderConfig,
    encoder: Iterable[Decision],
    decoder: Iterable[Decision],
    source: str | os.PathLike[str],
) -> VisionEncoderDecoderConfig:
    try:
        fields = {decision.field: decision.value for decision in encoder if decision.field != "model_type"}
        encoder_config = type(skeleton.encoder)(**fields)
        decoder_config = TrOCRConfig(**{decision.field: decision.value for decision in decoder}, **_TOKEN_IDS)
        return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder_config, decoder_config, **_TOKEN_IDS)
    except ValueError as error:
        raise CheckpointError(f"{source} cannot be converted from fairseq: {error}") from error


def _image_processor(config: ViTConfig) -> ImageProcessor:
    """What unilm's evaluation does: bicubic to the whole size, mean and deviation 0.5; the class is the encoder's."""
    kind = "DeiTImageProcessor" if isinstance(config, DeiTConfig) else "ViTImageProcessor"
    return ImageProcessor(kind, size=config.image_shape, resample=_BICUBIC, do_center_crop=False)
