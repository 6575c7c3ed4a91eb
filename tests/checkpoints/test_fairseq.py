"""Original fairseq checkpoints: the same trees and configurations as through transformers, and every refusal.

No original file is at hand; twins' weights are written under the original names, and the published sizes are made of
arrays without memory. The names and the order within attn.qkv were also tried against timm's own blocks.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from tests.processing.test_tokenizer import train_sentencepiece
from tests.twins import config_dict, make_reader, make_twin, oracle_generate
from trocr_jax.checkpoints import fairseq, fairseq_tokenizer, names, store, torch_reader
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.torch_objects import Stub
from trocr_jax.config import VisionEncoderDecoderConfig, write_json
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.models import VisionEncoderDecoderModel
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.registry import OFFICIAL

# What fairseq's base_architecture of the transformer leaves in the saved arguments of every TrOCR.
BASE_ARGUMENTS = {
    "activation_fn": "relu",
    "ape": False,
    "decoder_learned_pos": False,
    "decoder_normalize_before": False,
    "input_size": None,
    "layernorm_embedding": False,
    "max_target_positions": 1024,
    "no_scale_embedding": False,
    "no_token_positional_embeddings": False,
    "share_decoder_input_output_embed": False,
}
UNILM = {"decoder_pretrained": "unilm", "decoder_learned_pos": True, "layernorm_embedding": True}
ROBERTA = {"decoder_pretrained": "roberta"}
LEARNED = {"use_learned_position_embeddings": True, "layernorm_embedding": True}
SINUSOIDAL = {"use_learned_position_embeddings": False, "layernorm_embedding": False}
RELU_SCALED_UNTIED = {"activation_function": "relu", "scale_embedding": True, "tie_word_embeddings": False}
SQUARE = {"image_size": 32, "patch_size": 8}
NARROW_HEADS = {"encoder_num_attention_heads": 3}
# Small kin of the published kinds: changes of the encoder and the decoder, saved arguments, what must be told.
KINDS = {
    "small": (
        {**SQUARE, "model_type": "deit", "qkv_bias": True, "hidden_size": 128, "num_attention_heads": 2},
        {**LEARNED, **RELU_SCALED_UNTIED, "cross_attention_hidden_size": 128},
        {**UNILM, "decoder_attention_heads": 4, "input_size": [32]},
        {},
    ),
    "base": (
        {**SQUARE, "qkv_bias": False},
        {**LEARNED, "activation_function": "gelu"},
        {"decoder_pretrained": "roberta2"},
        {**NARROW_HEADS, "decoder_attention_heads": 4},
    ),
    "stage1": (
        {"qkv_bias": False},  # 24 x 40 pixels
        {**SINUSOIDAL, **RELU_SCALED_UNTIED},
        {**ROBERTA, "decoder_attention_heads": 4, "input_size": [24, 40], "max_target_positions": 48},
        NARROW_HEADS,
    ),
    "large": (
        {**SQUARE, "qkv_bias": False, "hidden_size": 32, "num_attention_heads": 4},
        {**SINUSOIDAL, **RELU_SCALED_UNTIED, "cross_attention_hidden_size": 32},
        {**ROBERTA, "decoder_attention_heads": 4, "max_target_positions": 48},
        {"encoder_num_attention_heads": 4},
    ),
}


def kind_dict(kind):
    encoder, decoder, _, _ = KINDS[kind]
    return config_dict(encoder, decoder)


def original_state(oracle):
    """The weights of a transformers model (version 5's names) as fairseq names and fuses them, leftovers included."""
    theirs = {name: tensor.numpy().copy() for name, tensor in oracle.state_dict().items()}
    ours = {"encoder.deit.cls_token": theirs.pop("encoder.embeddings.cls_token")}
    if "encoder.embeddings.distillation_token" in theirs:
        ours["encoder.deit.dist_token"] = theirs.pop("encoder.embeddings.distillation_token")
    ours["encoder.deit.pos_embed"] = theirs.pop("encoder.embeddings.position_embeddings")
    pairs = {"encoder.embeddings.patch_embeddings.projection": "encoder.deit.patch_embed.proj"}
    pairs["encoder.layernorm"] = "encoder.deit.norm"
    for i in range(oracle.config.encoder.num_hidden_layers):
        old, new = f"encoder.deit.blocks.{i}", f"encoder.layers.{i}"
        pairs |= {f"{new}.layernorm_before": f"{old}.norm1", f"{new}.layernorm_after": f"{old}.norm2"}
        pairs |= {f"{new}.attention.o_proj": f"{old}.attn.proj"}
        pairs |= {f"{new}.mlp.fc1": f"{old}.mlp.fc1", f"{new}.mlp.fc2": f"{old}.mlp.fc2"}
        for kind in ("weight", "bias") if oracle.config.encoder.qkv_bias else ("weight",):
            thirds = [theirs.pop(f"{new}.attention.{letter}_proj.{kind}") for letter in "qkv"]
            ours[f"{old}.attn.qkv.{kind}"] = np.concatenate(thirds)
    for new, old in pairs.items():
        ours |= {f"{old}.{kind}": theirs.pop(f"{new}.{kind}") for kind in ("weight", "bias")}
    for name in [name for name in theirs if name.startswith("decoder.model.decoder.")]:
        ours[name.replace("decoder.model.decoder.", "decoder.")] = theirs.pop(name)
    ours["decoder.output_projection.weight"] = theirs.pop("decoder.output_projection.weight")
    assert not [name for name in theirs if "pooler" not in name]
    for head in ("head", "head_dist"):
        ours |= {f"encoder.deit.{head}.weight": np.ones((5, 2), "f"), f"encoder.deit.{head}.bias": np.ones(5, "f")}
    ours["decoder.version"] = np.array([3], "f")
    if not oracle.config.decoder.use_learned_position_embeddings:
        ours["decoder.embed_positions._float_tensor"] = np.zeros(1, "f")
    return ours


def converted(twin, kind, **changes):
    _, _, arguments, overrides = KINDS[kind]
    return fairseq.convert(original_state(twin.oracle), {**BASE_ARGUMENTS, **arguments}, **{**overrides, **changes})


def decided(conversion):
    return {decision.field: (decision.value, decision.source) for decision in conversion.decisions}


def without_training(config):
    """The decoder's configuration without what only training uses."""
    return config.replace(dropout=0.1, init_std=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_and_the_configuration_are_those_of_transformers(kind):
    twin = make_twin(kind_dict(kind))
    conversion = converted(twin, kind)
    tree = store.from_torch(conversion.tensors, names.table(conversion.config), kind)
    ours, theirs = names.flatten(tree), names.flatten(twin.params)
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert ours[path].dtype == leaf.dtype, path
        assert np.ascontiguousarray(ours[path]).tobytes() == np.ascontiguousarray(leaf).tobytes(), path
    store.check_tree(tree, abstract_params(VisionEncoderDecoder(conversion.config)), kind)
    assert conversion.config.encoder.replace(initializer_range=0.3) == twin.config.encoder
    assert without_training(conversion.config.decoder) == without_training(twin.config.decoder)
    assert type(conversion.config.encoder) is type(twin.config.encoder)
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        assert getattr(conversion.config, name) == getattr(twin.config, name)


def test_transformers_generates_the_same_ids_from_the_same_weights():
    twin = make_reader(kind_dict("small"))
    conversion = converted(twin, "small")
    params = store.from_torch(conversion.tensors, names.table(conversion.config), "small")
    model = VisionEncoderDecoderModel(conversion.config, params=params, generation_config=conversion.generation_config)
    pixels = twin.pixels(3)
    theirs, _ = oracle_generate(twin.oracle, pixels, num_beams=2, max_new_tokens=10)
    ours = np.asarray(model.generate(pixels, num_beams=2, max_new_tokens=10))
    assert ours.tolist() == theirs.tolist()
    assert len({tuple(row) for row in ours.tolist()}) == 3


def test_the_written_configuration_is_read_by_transformers(tmp_path):
    conversion = converted(make_twin(kind_dict("small")), "small")
    write_json(tmp_path / "config.json", conversion.config.to_dict())
    theirs = transformers.VisionEncoderDecoderConfig.from_pretrained(tmp_path)
    assert (theirs.encoder.model_type, theirs.decoder.model_type) == ("deit", "trocr")
    assert theirs.decoder.scale_embedding is True
    assert theirs.encoder.layer_norm_eps == transformers.ViTConfig().layer_norm_eps
    assert VisionEncoderDecoderConfig.from_pretrained(tmp_path) == conversion.config


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_numbers_keep_the_dtype_of_the_file(dtype):
    state = {name: array.astype(dtype) for name, array in original_state(make_twin(kind_dict("base")).oracle).items()}
    conversion = fairseq.convert(state, {"decoder_pretrained": "roberta2"}, **KINDS["base"][3])
    assert {tensor.dtype.name for tensor in conversion.tensors.values()} == {dtype}


def test_a_tied_head_may_be_left_out_and_another_head_is_kept():
    state = original_state(make_twin(kind_dict("base")).oracle)
    arguments, overrides = KINDS["base"][2:]
    assert fairseq.convert(state, arguments, **overrides).config.decoder.tie_word_embeddings
    state["decoder.output_projection.weight"][-1, -1] += 1
    conversion = fairseq.convert(state, arguments, **overrides)
    assert not conversion.config.decoder.tie_word_embeddings
    assert "decoder.output_projection.weight" not in conversion.dropped
    head = conversion.tensors["decoder.output_projection.weight"]
    assert head is state.pop("decoder.output_projection.weight")
    assert fairseq.convert(state, arguments, **overrides).config.decoder.tie_word_embeddings


def test_what_is_dropped_is_listed_with_its_reason():
    twin = make_twin(kind_dict("base"))
    state = {**original_state(twin.oracle), "decoder.embed_positions._float_tensor": np.zeros(1, "f")}
    dropped = fairseq.convert(state, **KINDS["base"][3], activation_function="gelu", scale_embedding=False).dropped
    tied = "decoder.output_projection.weight"
    assert dropped == {**fairseq.dropped_names(state), tied: dropped[tied]}
    assert set(dropped) - {tied} == {
        "encoder.deit.head.weight",
        "encoder.deit.head.bias",
        "encoder.deit.head_dist.weight",
        "encoder.deit.head_dist.bias",
        "decoder.version",
        "decoder.embed_positions._float_tensor",
    }
    assert all(dropped.values())
    assert len(fairseq.DROPPED) == len(set(fairseq.DROPPED.values()))


def test_original_names_are_told_from_the_ports():
    twin = make_twin(kind_dict("base"))
    assert fairseq.is_fairseq(original_state(twin.oracle))
    assert not fairseq.is_fairseq(twin.oracle.state_dict())
    with pytest.raises(CheckpointError, match=r"x\.pt is no original TrOCR checkpoint"):
        fairseq.convert({name: tensor.numpy() for name, tensor in twin.oracle.state_dict().items()}, source="x.pt")


# The published sizes.


def official_state(name):
    """An official checkpoint's names and shapes, written down from unilm's and fairseq's modules; no memory is used."""
    size = name.split("-")[1]
    width, depth, prefix = {"small": (384, 12, 2), "base": (768, 12, 1), "large": (1024, 24, 1)}[size]
    is_sinusoidal = name in ("trocr-large-printed", "trocr-base-stage1", "trocr-large-stage1")
    layers, model, hidden, vocab = (6, 256, 1024, 64044) if size == "small" else (12, 1024, 4096, 50265)
    shapes = {"encoder.deit.cls_token": (1, 1, width), "encoder.deit.pos_embed": (1, 576 + prefix, width)}
    shapes |= {
        "encoder.deit.patch_embed.proj.weight": (width, 3, 16, 16),
        "encoder.deit.patch_embed.proj.bias": (width,),
    }

    def linear(module, rows, columns, bias=True):
        return {f"{module}.weight": (rows, columns)} | ({f"{module}.bias": (rows,)} if bias else {})

    def norm(module, rows):
        return {f"{module}.weight": (rows,), f"{module}.bias": (rows,)}

    for i in range(depth):
        block = f"encoder.deit.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width, bias=size == "small")
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    shapes |= norm("encoder.deit.norm", width) | linear("encoder.deit.head", 1000, width)
    if size == "small":
        shapes |= {"encoder.deit.dist_token": (1, 1, width)} | linear("encoder.deit.head_dist", 1000, width)
    shapes |= {"decoder.version": (1,), "decoder.embed_tokens.weight": (vocab, model)}
    shapes |= {"decoder.embed_positions._float_tensor": (1,)} if is_sinusoidal else {}
    if not is_sinusoidal:
        shapes |= {"decoder.embed_positions.weight": (514, model)} | norm("decoder.layernorm_embedding", model)
    for i in range(layers):
        layer = f"decoder.layers.{i}"
        for attention, source in (("self_attn", model), ("encoder_attn", width)):
            for projection, columns in (("k", source), ("v", source), ("q", model), ("out", model)):
                shapes |= linear(f"{layer}.{attention}.{projection}_proj", model, columns)
            shapes |= norm(f"{layer}.{attention}_layer_norm", model)
        shapes |= linear(f"{layer}.fc1", hidden, model) | linear(f"{layer}.fc2", model, hidden)
        shapes |= norm(f"{layer}.final_layer_norm", model)
    shapes["decoder.output_projection.weight"] = (vocab, model)
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    if size == "small" or is_sinusoidal:
        state["decoder.output_projection.weight"] = np.broadcast_to(np.float32(1), (vocab, model))
    return state


def official_arguments(name):
    """The saved arguments that unilm's code gives a checkpoint; for roberta2 they do not describe the decoder."""
    if "small" in name:
        sizes = {"decoder_attention_heads": 8, "decoder_embed_dim": 256, "decoder_ffn_embed_dim": 1024}
        return {**BASE_ARGUMENTS, **UNILM, **sizes, "decoder_layers": 6, "max_target_positions": 512, "input_size": 384}
    is_old = name in ("trocr-large-printed", "trocr-base-stage1", "trocr-large-stage1")
    sizes = {"decoder_attention_heads": 16, "decoder_embed_dim": 1024, "decoder_ffn_embed_dim": 4096}
    pretrained = "roberta" if is_old else "roberta2"
    return {**BASE_ARGUMENTS, **sizes, "decoder_layers": 12, "decoder_pretrained": pretrained, "input_size": [384]}


@pytest.mark.parametrize("with_arguments", [True, False])
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_architecture_is_recognised(name, with_arguments):
    conversion = fairseq.convert(official_state(name), official_arguments(name) if with_arguments else None)
    official = OFFICIAL[name]
    assert conversion.config.encoder == official.encoder
    assert type(conversion.config.encoder) is type(official.encoder)
    assert conversion.config.decoder == official.decoder
    processor = conversion.image_processor
    kind = "DeiTImageProcessor" if "small" in name else "ViTImageProcessor"
    assert (processor.image_processor_type, processor.size, processor.resample) == (kind, (384, 384), 3)
    assert (processor.do_center_crop, processor.image_mean, processor.image_std) == (False, (0.5,) * 3, (0.5,) * 3)
    generation = conversion.generation_config
    assert (generation.decoder_start_token_id, generation.bos_token_id) == (2, 0)
    assert (generation.eos_token_id, generation.pad_token_id) == (2, 1)


@pytest.mark.parametrize("name", ["trocr-small-printed", "trocr-large-printed"])
def test_official_shapes_are_those_of_the_model(name):
    conversion = fairseq.convert(official_state(name))
    tree = store.from_torch(conversion.tensors, names.table(conversion.config), name)
    store.check_tree(tree, abstract_params(VisionEncoderDecoder(conversion.config)), name)


@pytest.mark.parametrize("pretrained", ["roberta2", "roberta"])
def test_roberta_decoders_do_not_follow_the_saved_arguments(pretrained):
    # Older code called today's roberta2 "roberta"; the tensors tell.
    arguments = {**official_arguments("trocr-base-handwritten"), "decoder_pretrained": pretrained}
    arguments |= {"decoder_attention_heads": 8, "decoder_ffn_embed_dim": 2048, "decoder_normalize_before": True}
    conversion = fairseq.convert(official_state("trocr-base-handwritten"), arguments)
    assert conversion.config.decoder == OFFICIAL["trocr-base-handwritten"].decoder
    facts = decided(conversion)
    for field, value in (("activation_function", "gelu"), ("scale_embedding", False), ("decoder_attention_heads", 16)):
        assert facts[f"decoder.{field}"][0] == value
        assert "from RoBERTa, whose own settings" in facts[f"decoder.{field}"][1]


# Where each decision comes from.


def test_every_field_that_decides_the_arithmetic_has_a_source():
    conversion = fairseq.convert(official_state("trocr-small-printed"), official_arguments("trocr-small-printed"))
    config = {"encoder": conversion.config.encoder.to_dict(), "decoder": conversion.config.decoder.to_dict()}
    listed = [decision for decision in conversion.decisions if "." in decision.field]
    for decision in listed:
        part, field = decision.field.split(".")
        assert config[part][field] == decision.value
    # What is left only matters in training, restates a field, or is not used by TrOCR.
    others = {f"{part}.{field}" for part in config for field in config[part]} - {item.field for item in listed}
    assert others == {
        *(f"encoder.{name}" for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")),
        *(f"encoder.{name}" for name in ("encoder_stride", "pooler_output_size", "pooler_act")),
        *(f"decoder.{name}" for name in ("dropout", "attention_dropout", "activation_dropout", "decoder_layerdrop")),
        *(f"decoder.{name}" for name in ("init_std", "use_cache", "is_decoder", "add_cross_attention", "model_type")),
        *(f"decoder.{name}_token_id" for name in ("decoder_start", "bos", "pad", "eos")),
    }
    assert all(decision.source.startswith("from ") for decision in conversion.decisions)
    assert len({decision.field for decision in conversion.decisions}) == len(conversion.decisions)


def test_sources_say_where_a_value_comes_from():
    state, arguments = official_state("trocr-large-printed"), official_arguments("trocr-large-printed")
    by_arguments, by_table = decided(fairseq.convert(state, arguments)), decided(fairseq.convert(state))
    by_caller = decided(fairseq.convert(state, arguments, activation_function="gelu", encoder_num_attention_heads=8))
    table = "from the published table of variants: trocr-large-printed, trocr-base-stage1 and trocr-large-stage1"
    assert by_arguments["decoder.activation_function"] == ("relu", "from the saved arguments (activation_fn 'relu')")
    assert by_arguments["decoder.scale_embedding"] == (True, "from the saved arguments (no_scale_embedding False)")
    assert by_table["decoder.activation_function"] == ("relu", table)
    assert by_table["decoder.scale_embedding"] == (True, table)
    assert by_table["decoder.decoder_attention_heads"] == (16, table)
    assert by_caller["decoder.activation_function"] == ("gelu", "given by the caller")
    assert by_caller["encoder.num_attention_heads"] == (8, "given by the caller")
    saved = "from the saved arguments (max_target_positions)"
    assert by_arguments["decoder.max_position_embeddings"] == (1024, saved)
    assert by_table["decoder.max_position_embeddings"] == (1024, "from unilm's default")
    assert "taken as a square" in by_table["encoder.image_size"][1]
    assert "saved arguments (input_size)" in by_arguments["encoder.image_size"][1]
    assert by_table["decoder.vocab_size"] == (50265, "from the shape of decoder.embed_tokens.weight")
    assert by_table["encoder.layer_norm_eps"][0] == 1e-12
    absent = "from the absence of decoder.embed_positions.weight"
    assert by_table["decoder.use_learned_position_embeddings"] == (False, absent)
    assert by_table["decoder.tie_word_embeddings"][1].endswith("other than decoder.embed_tokens.weight")
    assert by_table["resample"][0] == 3


# Refusals.


@pytest.fixture
def small():
    """The state, arguments and needed options of a small kin of trocr-base."""
    twin = make_twin(kind_dict("base"))
    return original_state(twin.oracle), {**BASE_ARGUMENTS, **KINDS["base"][2]}, KINDS["base"][3]


def refusal(state, arguments=None, **options):
    with pytest.raises(CheckpointError) as caught:
        fairseq.convert(state, arguments, source="some.pt", **options)
    assert str(caught.value).startswith("some.pt ")
    return str(caught.value)


def test_all_names_that_do_not_fit_are_reported_at_once(small):
    state, arguments, options = small
    for i in range(2):  # as in BEiT: separate biases, and relative positions
        state |= {f"encoder.deit.blocks.{i}.attn.{name}_bias": np.zeros(24, "f") for name in "qv"}
    state["encoder.deit.rel_pos_bias.relative_position_bias_table"] = np.zeros((7, 3), "f")
    state["decoder.layer_norm.weight"] = np.zeros(32, "f")
    del state["encoder.deit.norm.bias"], state["decoder.layers.1.fc2.weight"]
    message = refusal(state, arguments, **options)
    assert [line.strip() for line in message.splitlines()[1:]] == [
        "- decoder.layers.1.fc2.weight",
        "- encoder.deit.norm.bias",
        "+ decoder.layer_norm.weight",
        *(f"+ encoder.deit.blocks.{i}.attn.{name}_bias" for i in range(2) for name in "qv"),
        "+ encoder.deit.rel_pos_bias.relative_position_bias_table",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "encoder.deit.pos_embed",
        "encoder.deit.patch_embed.proj.weight",
        "encoder.deit.blocks.0.mlp.fc1.weight",
        "decoder.embed_tokens.weight",
        "decoder.layers.0.fc1.weight",
        "decoder.layers.0.encoder_attn.k_proj.weight",
        "decoder.layernorm_embedding.bias",
        "encoder.deit.blocks.1.attn.qkv.weight",
    ],
)
def test_what_sizes_are_read_from_may_be_missing(small, name):
    state, arguments, options = small
    del state[name]
    assert refusal(state, arguments, **options).splitlines()[1:] == [f"  - {name}"]


def test_a_checkpoint_of_the_encoder_alone_lacks_the_decoder(small):
    state, arguments, options = small
    state = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    message = refusal(state, arguments, **options)
    assert "- decoder.embed_tokens.weight" in message
    assert "- decoder.layers.0.fc1.weight" in message
    assert "+" not in message.split("):", 1)[1]


def test_a_gap_in_the_blocks_shows_on_both_sides(small):
    state, arguments, options = small
    state = {name.replace("blocks.1.", "blocks.7000000000."): tensor for name, tensor in state.items()}
    message = refusal(state, arguments, **options)
    assert "- encoder.deit.blocks.1.attn.qkv.weight" in message
    assert "+ encoder.deit.blocks.7000000000.attn.qkv.weight" in message


def test_a_long_list_is_cut_off(small):
    state, arguments, options = small
    state |= {f"decoder.unknown_{i}": np.zeros(1, "f") for i in range(50)}
    message = refusal(state, arguments, **options)
    assert len(message.splitlines()) == 42
    assert message.endswith("... and 10 more")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("encoder.deit.blocks.0.attn.qkv.weight", (70, 24), "72 rows were expected"),
        ("encoder.deit.patch_embed.proj.weight", (24, 192), "4 axes, none of them empty, were expected"),
        ("encoder.deit.pos_embed", (17, 24), "3 axes, none of them empty, were expected"),
        ("decoder.embed_tokens.weight", (32,), "2 axes, none of them empty, were expected"),
        ("decoder.layers.0.fc1.weight", (), "2 axes, none of them empty, were expected"),
        ("decoder.embed_positions.weight", (0, 32), "2 axes, none of them empty, were expected"),
    ],
)
def test_tensors_that_cannot_be_used_are_reported_with_their_shapes(small, name, shape, expected):
    state, arguments, options = small
    state[name] = np.zeros(shape, "f")
    assert f"! {name} has shape {shape}; {expected}" in refusal(state, arguments, **options)


@pytest.mark.parametrize("count", [11, 1])
def test_positions_that_make_no_square_ask_for_the_images_size(small, count):
    state, arguments, options = small
    state["encoder.deit.pos_embed"] = np.zeros((1, count, 24), "f")
    message = refusal(state, arguments, **options)
    assert f"has {count - 1} patches, which make no square; pass the images' size" in message
    arguments["input_size"] = [16, 40]
    if count == 11:
        assert fairseq.convert(state, arguments, **options).config.encoder.image_size == (16, 40)


@pytest.mark.parametrize("size", [40, [40], [32, 40], (16, 16)])
def test_a_saved_image_size_must_agree_with_the_positions(small, size):
    state, arguments, options = small
    message = refusal(state, {**arguments, "input_size": size}, **options)
    assert f"input_size is {size!r}, but encoder.deit.pos_embed has 16 patches" in message


@pytest.mark.parametrize("size", ["32", [32, 32, 3], [], True, [[32], [32]]])
def test_a_saved_image_size_must_be_one(small, size):
    state, arguments, options = small
    message = refusal(state, {**arguments, "input_size": size}, **options)
    assert f"input_size is {size!r}; one or two whole numbers were expected" in message


def test_what_shows_nowhere_is_asked_for_all_at_once(small):
    state, _, _ = small
    message = refusal(state)
    for option in ("decoder_attention_heads", "activation_function", "scale_embedding", "encoder_num_attention_heads"):
        assert f"pass {option}=" in message
    told = {"decoder_attention_heads": 4, "activation_function": "gelu", "scale_embedding": False}
    conversion = fairseq.convert(state, **told, encoder_num_attention_heads=3)
    assert {decided(conversion)[f"decoder.{field}"] for field in told} == {
        (value, "given by the caller") for value in told.values()
    }


def test_a_roberta_of_another_width_is_asked_for_its_heads(small):
    state, arguments, _ = small
    message = refusal(state, {**arguments, "decoder_attention_heads": 4}, encoder_num_attention_heads=3)
    assert [line.split()[1] for line in message.splitlines()[1:]] == ["decoder.decoder_attention_heads"]


def test_saved_arguments_must_not_contradict_the_tensors():
    twin = make_twin(kind_dict("small"))
    wrong = {
        "decoder_embed_dim": 64,
        "decoder_layers": 3,
        "decoder_ffn_embed_dim": 49,
        "layernorm_embedding": False,
    }
    arguments = {**BASE_ARGUMENTS, **UNILM, **wrong, "decoder_attention_heads": 4}
    message = refusal(original_state(twin.oracle), arguments)
    assert len(message.splitlines()) == 1 + len(wrong)
    for name, value in wrong.items():
        assert f"the saved argument {name} is {value!r}, but the tensors say" in message
    stage1 = original_state(make_twin(kind_dict("stage1")).oracle)
    arguments = {**BASE_ARGUMENTS, **KINDS["stage1"][2], "decoder_attention_heads": 4, "decoder_learned_pos": True}
    assert "decoder_learned_pos is True, but the tensors say False" in refusal(stage1, arguments, **NARROW_HEADS)


def test_learned_positions_without_a_norm_are_no_robertas(small):
    state, arguments, options = small
    state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.layernorm_embedding")}
    assert "decoder_learned_pos is False, but the tensors say True" in refusal(state, arguments, **options)


@pytest.mark.parametrize("name", ["ape", "no_token_positional_embeddings", "decoder_normalize_before"])
def test_arithmetic_that_is_not_built_is_refused(name):
    twin = make_twin(kind_dict("small"))
    arguments = {**BASE_ARGUMENTS, **UNILM, "decoder_attention_heads": 4, name: True}
    assert f"the saved argument {name} is set: " in refusal(original_state(twin.oracle), arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"decoder_attention_heads": "4"}, "decoder_attention_heads is '4'; a whole number above 0 was expected"),
        ({"decoder_attention_heads": True}, "decoder_attention_heads is True; a whole number above 0 was expected"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads is 0; a whole number above 0 was expected"),
        ({"decoder_attention_heads": 5}, "the decoder's width 32 cannot be divided among 5 attention heads"),
        ({"activation_fn": "tanh"}, "activation_function is 'tanh', which is not supported"),
        ({"activation_fn": 3}, "activation_fn is 3; a text was expected"),
        ({"no_scale_embedding": None, "activation_fn": None}, "pass scale_embedding="),
        ({"no_scale_embedding": "False"}, "no_scale_embedding is 'False'; True or False was expected"),
        ({"max_target_positions": -1}, "max_target_positions is -1; a whole number above 0 was expected"),
    ],
)
def test_saved_arguments_must_be_of_their_kind(arguments, expected):
    twin = make_twin(kind_dict("stage1"))
    arguments = {**BASE_ARGUMENTS, **KINDS["stage1"][2], "decoder_attention_heads": 4, **arguments}
    assert expected in refusal(original_state(twin.oracle), arguments, **NARROW_HEADS)


def test_the_decoder_must_take_the_encoders_states(small):
    state, arguments, options = small
    state["decoder.layers.0.encoder_attn.k_proj.weight"] = np.zeros((32, 30), "f")
    message = refusal(state, arguments, **options)
    assert "decoder.cross_attention_hidden_size is 30 but encoder.hidden_size is 24" in message


# The arguments in a file.


def stub(state, module="argparse", name="Namespace"):
    return Stub(module, name, (), state=state)


def node(value):
    return stub({"_metadata": None, "_parent": None, "_val": value}, "omegaconf.nodes", "AnyNode")


def container(content, name="DictConfig"):
    return stub({"_metadata": None, "_parent": None, "_content": content}, "omegaconf", name)


SAVED = {"decoder_layers": 6, "input_size": [384], "data": None}


@pytest.mark.parametrize(
    "content",
    [
        {"args": SAVED},
        {"args": stub(SAVED), "cfg": {"model": {"decoder_layers": 7}}},
        {"args": None, "cfg": {"model": SAVED}},
        {"args": None, "cfg": {"model": stub(SAVED)}},
        {"cfg": container({"common": node(1), "model": node(stub(SAVED))})},
        {
            "cfg": container(
                {
                    "model": container(
                        {
                            "decoder_layers": node(6),
                            "input_size": container([node(384)], "ListConfig"),
                            "data": node(None),
                        }
                    )
                }
            )
        },
    ],
    ids=["dict", "namespace", "plain cfg", "namespace in plain cfg", "namespace in omegaconf", "omegaconf"],
)
def test_arguments_are_found_however_they_were_saved(content):
    assert fairseq.saved_arguments({"model": {}, **content}) == SAVED


@pytest.mark.parametrize("content", [{}, {"args": None, "cfg": None}, {"cfg": {}}, {"cfg": container(None)}])
def test_a_checkpoint_may_have_no_arguments(content):
    assert fairseq.saved_arguments(content) is None


def test_arguments_that_are_none_are_refused():
    circle = node(None)
    circle.state["_val"] = circle
    for content in ({"args": 5}, {"cfg": "text"}, {"args": Stub("a", "b", ())}, {"args": circle}):
        with pytest.raises(CheckpointError, match="names and values were expected"):
            fairseq.saved_arguments(content)


@pytest.mark.parametrize("place", ["args", "cfg"])
@pytest.mark.parametrize("kind", ["small", "base"])
def test_a_file_of_fairseq_is_read_and_converted(tmp_path, kind, place):
    twin = make_twin(kind_dict(kind))
    weights = collections.OrderedDict(
        (name, torch.from_numpy(array)) for name, array in original_state(twin.oracle).items()
    )
    if kind == "base":
        weights["decoder.output_projection.weight"] = weights["decoder.embed_tokens.weight"]  # one storage, as there
    arguments = argparse.Namespace(**BASE_ARGUMENTS | KINDS[kind][2] | {"decoder_attention_heads": 4})
    content = {
        "args": arguments if place == "args" else None,
        "cfg": {"_name": None, "model": arguments} if place == "cfg" else None,
        "model": weights,
        "optimizer_history": [{"criterion_name": "CrossEntropyCriterion", "num_updates": 7, "optimizer_state": {}}],
        "last_optimizer_state": {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}},
        "extra_state": {"epoch": 1, "val_loss": None, "metrics": [("default", "loss", argparse.Namespace(n=1))]},
    }
    torch.save(content, tmp_path / "checkpoint_best.pt")
    path = tmp_path / "checkpoint_best.pt"
    found = torch_reader.read_torch(path).content
    state = torch_reader.tensors(found, path)
    conversion = fairseq.convert(state, fairseq.saved_arguments(found), source=path, **KINDS[kind][3])
    assert without_training(conversion.config.decoder) == without_training(twin.config.decoder)
    tree = store.from_torch(conversion.tensors, names.table(conversion.config), path)
    ours, theirs = names.flatten(tree), names.flatten(twin.params)
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf)


# Tokenizers.


@pytest.fixture
def byte_level(tmp_path):
    """A folder of a tiny tokenizer in fairseq's files; its model has 14 tokens."""
    folder = tmp_path / "fairseq"
    folder.mkdir()
    tokens = ["a", "b", "c", "Ġ", "ab", "Ġab", "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    lines = ["5 900", "0 800", "1 700", "2 600", "3 500", "4 400", "6 0", "madeupword0000 0", "madeupword0001 0"]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n")
    return folder


SPECIAL, MADE_UP = ["<s>", "<pad>", "</s>", "<unk>"], ["madeupword0000", "madeupword0001"]
LISTED = ["Ġab", "a", "b", "c", "Ġ", "ab", "<|endoftext|>"]
VOCAB = {token: i for i, token in enumerate([*SPECIAL, *LISTED, *MADE_UP, "<mask>"])}


def test_a_byte_level_tokenizer_becomes_robertas(byte_level, tmp_path):
    out = tmp_path / "out"
    assert fairseq_tokenizer.write_tokenizer(out, byte_level, 14) == "RobertaTokenizer"
    assert json.loads((out / "vocab.json").read_text(encoding="utf-8")) == VOCAB
    assert (out / "merges.txt").read_bytes() == (byte_level / "vocab.bpe").read_bytes()
    ours, theirs = TrOCRTokenizer.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    assert type(theirs).__name__ == "RobertaTokenizer"
    assert (ours("ab abc")["input_ids"], len(ours)) == ([0, 9, 4, 7, 2], 14)
    assert theirs("ab abc")["input_ids"] == [0, 9, 4, 7, 2]
    assert ours.decode([0, 9, 4, 7, 2], skip_special_tokens=True) == "ab abc"
    assert theirs.model_max_length == 512


@pytest.mark.parametrize("name", fairseq_tokenizer.DICTIONARY_NAMES)
def test_the_dictionary_may_have_any_of_its_names_and_the_mask_in_it(byte_level, tmp_path, name):
    lines = (byte_level / "dict.txt").read_text()
    (byte_level / "dict.txt").unlink()
    (byte_level / name).write_text(lines + "<mask> 1")
    files = [byte_level / "encoder.json", str(byte_level / "vocab.bpe"), byte_level / name]
    fairseq_tokenizer.write_tokenizer(tmp_path / "out", files, 14)
    assert json.loads((tmp_path / "out" / "vocab.json").read_text(encoding="utf-8")) == VOCAB


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece") / "unilm3-cased.model"
    train_sentencepiece(path)
    return path


def test_a_sentencepiece_tokenizer_is_copied(sentencepiece_model, tmp_path):
    out = tmp_path / "out"
    assert fairseq_tokenizer.write_tokenizer(out, sentencepiece_model, 1000) == "XLMRobertaTokenizer"
    ours, theirs = TrOCRTokenizer.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    assert type(theirs).__name__ == "XLMRobertaTokenizer"
    text = "TOTAL RM 12.50 , he was it"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert (out / "sentencepiece.bpe.model").read_bytes() == sentencepiece_model.read_bytes()
    # The largest id there is, <mask>'s, needs a row of the embeddings.
    assert fairseq_tokenizer.write_tokenizer(out, sentencepiece_model.parent, len(ours)) == "XLMRobertaTokenizer"
    with pytest.raises(ValueError, match=f"makes {len(ours)} tokens, but the model has {len(ours) - 1}"):
        fairseq_tokenizer.write_tokenizer(out, sentencepiece_model, len(ours) - 1)


def test_missing_files_of_a_tokenizer_are_named(byte_level, tmp_path):
    (byte_level / "vocab.bpe").unlink()
    (byte_level / "dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.bpe, gpt2_with_mask\.dict\.txt or .* or dict\.txt not found"):
        fairseq_tokenizer.write_tokenizer(tmp_path / "out", byte_level, 14)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"encoder\.json, vocab\.bpe, .*or instead a SentencePiece model"):
        fairseq_tokenizer.write_tokenizer(tmp_path / "out", tmp_path / "empty", 14)
    for source in (tmp_path / "nowhere", [byte_level / "encoder.json", tmp_path / "nowhere"]):
        with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
            fairseq_tokenizer.write_tokenizer(tmp_path / "out", source, 14)
    assert not (tmp_path / "out").exists()


def test_two_tokenizers_at_once_are_refused(byte_level, sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model, byte_level)
    with pytest.raises(ValueError, match="hold more than one tokenizer"):
        fairseq_tokenizer.write_tokenizer(tmp_path / "out", byte_level, 14)


@pytest.mark.parametrize("vocab_size", [13, 15])
def test_a_byte_level_tokenizer_must_be_the_models_own(byte_level, tmp_path, vocab_size):
    with pytest.raises(ValueError, match=f"makes 14 tokens, the model has {vocab_size}"):
        fairseq_tokenizer.write_tokenizer(tmp_path / "out", byte_level, vocab_size)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("word", r"line 10: 'word' is not a token and its count"),
        ("word x", r"line 10: 'word x' is not a token and its count"),
        ("", r"line 10: '' is not a token and its count"),
        ("77 0", r"line 10: encoder\.json has no token 77"),
        ("5 1", r"lists \['Ġab'\] more than once"),
        ("<s> 1", r"lists \['<s>'\] more than once"),
    ],
)
def test_a_damaged_dictionary_is_refused(byte_level, tmp_path, line, expected):
    with (byte_level / "dict.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=expected):
        fairseq_tokenizer.write_tokenizer(tmp_path / "out", byte_level, 15)


@pytest.mark.parametrize("name", ["gpt2_with_mask.dict.txt", "dict.txt"])
def test_the_real_files_become_the_real_roberta(shared, tmp_path, name):
    source, roberta = shared / "data/tokenizers/fairseq-gpt2-bpe", shared / "data/tokenizers/roberta-base"
    fairseq_tokenizer.write_tokenizer(tmp_path, [source / "encoder.json", source / "vocab.bpe", source / name], 50265)
    ours, theirs = (json.loads((folder / "vocab.json").read_text("utf-8")) for folder in (tmp_path, roberta))
    assert ours == theirs
    assert (tmp_path / "merges.txt").read_bytes() == (roberta / "merges.txt").read_bytes()


def test_the_real_sentencepiece_model_is_smaller_than_the_model(shared, tmp_path):
    source = shared / "data/tokenizers/sentencepiece/unilm3-cased.model"
    fairseq_tokenizer.write_tokenizer(tmp_path, source, 64044)
    with pytest.raises(ValueError, match="makes 64002 tokens, but the model has 64001"):
        fairseq_tokenizer.write_tokenizer(tmp_path, source, 64001)
