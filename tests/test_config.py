"""Every dialect of config.json and generation_config.json, against the reference's own reading where it has one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import transformers

from trocr_jax.config import (
    DeiTConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    ViTConfig,
    read_json,
    write_json,
)
from trocr_jax.generation_config import DEFAULT_MAX_NEW_TOKENS, GenerationConfig

ENCODER = {"model_type": "vit"}
DECODER = {"model_type": "trocr", "cross_attention_hidden_size": 768}


def whole(encoder=None, decoder=None, **top):
    """A config.json with the given parts."""
    return {"model_type": "vision-encoder-decoder", "encoder": encoder or ENCODER, "decoder": decoder or DECODER, **top}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (TrOCRConfig, transformers.TrOCRConfig),
        (ViTConfig, transformers.ViTConfig),
        (DeiTConfig, transformers.DeiTConfig),
    ],
)
def test_fields_and_defaults_are_the_references(ours, theirs):
    reference = theirs()
    for field in dataclasses.fields(ours):
        if field.name != "extra":
            assert getattr(ours(), field.name) == getattr(reference, field.name), field.name
    own = set(theirs.__annotations__) - {"model_type", "keys_to_ignore_at_inference", "attribute_map"}
    assert own <= {field.name for field in dataclasses.fields(ours)}
    assert ours.model_type == theirs.model_type


def test_aliases_of_the_reference():
    config = TrOCRConfig(d_model=64, decoder_attention_heads=4, decoder_layers=3)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (64, 4, 3)


def test_diff_only_dialect_takes_class_defaults():
    config = VisionEncoderDecoderConfig.from_dict(whole())
    assert config.decoder == TrOCRConfig(cross_attention_hidden_size=768)
    assert config.encoder == ViTConfig()
    assert config.label_start_token_id == 2
    assert config.label_pad_token_id == 1


def test_full_dialect_round_trips_with_the_keys_we_do_not_use():
    content = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.DeiTConfig(image_size=[32, 64]), transformers.TrOCRConfig(cross_attention_hidden_size=768)
    ).to_dict()
    config = VisionEncoderDecoderConfig.from_dict(content)
    assert isinstance(config.encoder, DeiTConfig)
    assert config.encoder.image_shape == (32, 64)
    written = json.loads(json.dumps(config.to_dict()))
    assert VisionEncoderDecoderConfig.from_dict(written) == config
    # Nothing of the reference's file is lost.
    for part in ("encoder", "decoder"):
        for name, value in content[part].items():
            if value is not None and name != "id2label":  # JSON makes its number keys strings
                assert written[part][name] == (list(value) if isinstance(value, tuple) else value), name


def test_legacy_dialect_names_the_cross_width_otherwise():
    decoder = {"model_type": "trocr", "encoder_hidden_size": 384, "cross_attention_hidden_size": None}
    encoder = {"model_type": "deit", "hidden_size": 384, "num_attention_heads": 6}
    config = VisionEncoderDecoderConfig.from_dict(whole(encoder, decoder))
    assert config.decoder.cross_attention_hidden_size == 384
    assert not config.has_bridge


def test_bridge_is_there_only_without_a_cross_width():
    without = {"model_type": "trocr"}
    assert VisionEncoderDecoderConfig.from_dict(whole(decoder=without)).has_bridge
    assert not VisionEncoderDecoderConfig.from_dict(whole()).has_bridge
    assert not VisionEncoderDecoderConfig.from_dict(whole(decoder={**without, "d_model": 768})).has_bridge


def test_top_level_tying_is_ignored():
    config = VisionEncoderDecoderConfig.from_dict(whole(tie_word_embeddings=False))
    assert config.decoder.tie_word_embeddings
    untied = VisionEncoderDecoderConfig.from_dict(whole(decoder={**DECODER, "tie_word_embeddings": False}))
    assert not untied.decoder.tie_word_embeddings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (whole(decoder={"model_type": "bert"}), "decoder is 'bert'.*supported is 'trocr'"),
        (whole(decoder={"model_type": "gpt2"}), "decoder is 'gpt2'"),
        (whole(decoder={"d_model": 768}), "decoder is 'bert'"),
        (whole(encoder={"model_type": "swin"}), "encoder is 'swin'.*'deit', 'vit'"),
        (whole(encoder={"model_type": "beit"}), "encoder is 'beit'"),
        ({"model_type": "trocr"}, "model_type is 'trocr'"),
        ({"model_type": "vision-encoder-decoder", "encoder": ENCODER}, "no 'decoder'"),
        (whole(encoder={"model_type": "vit", "hidden_act": "quick_gelu"}), "quick_gelu"),
        (whole(decoder={**DECODER, "activation_function": "gelu_new"}), "gelu_new"),
        (whole(decoder={**DECODER, "cross_attention_hidden_size": 512}), "is 512 but encoder.hidden_size is 768"),
        (whole(decoder={**DECODER, "decoder_attention_heads": 5}), "1024 cannot be divided among 5"),
        (whole(encoder={"model_type": "vit", "image_size": [8, 8, 8]}), "image_size"),
        (whole(encoder={"model_type": "vit", "image_size": 8}), "smaller than patch_size"),
        (whole(decoder={**DECODER, "use_learned_position_embeddings": False, "pad_token_id": None}), "sinusoidal"),
    ],
)
def test_unsupported_configurations_say_what_is_wrong(content, message, tmp_path):
    write_json(tmp_path / "config.json", content)
    with pytest.raises(ValueError, match=message) as error:
        VisionEncoderDecoderConfig.from_pretrained(tmp_path)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff"])
def test_files_that_are_not_json_objects_are_named(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_configurations_are_hashable_and_replaceable():
    config = VisionEncoderDecoderConfig.from_dict(whole(architectures=["x"]))
    changed = config.replace(decoder_start_token_id=0, vocab_size=7)
    assert hash(config) != hash(changed)
    assert changed.extra["vocab_size"] == 7
    assert changed.to_dict()["architectures"] == ["x"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.pad_token_id = 3


COMMUNITY = {
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_length": 64,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "length_penalty": 2.0,
    "num_beams": 4,
}


def test_generation_config_json_is_used_alone_where_it_exists(tmp_path):
    write_json(tmp_path / "config.json", whole(**COMMUNITY))
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(**COMMUNITY, bos_token_id=0)
    write_json(tmp_path / "generation_config.json", {"decoder_start_token_id": 2, "eos_token_id": 2, "max_length": 40})
    expected = GenerationConfig(decoder_start_token_id=2, eos_token_id=2, max_length=40)
    assert GenerationConfig.from_pretrained(tmp_path) == expected


@pytest.mark.parametrize(
    "content",
    [
        whole(**COMMUNITY),
        whole(decoder={**DECODER, **COMMUNITY}),
        whole(decoder={**DECODER, "num_beams": 5, "length_penalty": 0.5}, num_beams=3, decoder_start_token_id=2),
        whole(decoder={**DECODER, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}),
        whole(decoder={**DECODER, "max_length": 20, "num_beams": 1}, max_length=20, early_stopping=False),
    ],
)
def test_settings_inside_a_config_are_read_as_the_reference_reads_them(content, tmp_path):
    write_json(tmp_path / "config.json", content)
    ours = GenerationConfig.from_pretrained(tmp_path)
    # What transformers does on loading a model without generation_config.json.
    reference = transformers.GenerationConfig.from_pretrained(
        tmp_path, config_file_name="config.json", _from_model_config=True
    )
    for name in ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size", "decoder_start_token_id"):
        theirs = getattr(reference, name)
        # Where the reference finds no id it goes on without; the decoder's own default serves better.
        default = 2 if name.endswith("_id") else GenerationConfig.__dataclass_fields__[name].default
        assert getattr(ours, name) == (default if theirs is None else theirs), name
    if content.get("max_length") == 64:
        assert ours.max_length == reference.max_length == 64


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("encoder", None, "vit"),
        ("encoder", None, [1]),
        ("decoder", None, 3),
        ("encoder", "model_type", ["vit"]),
        ("encoder", "num_hidden_layers", "2"),
        ("encoder", "num_hidden_layers", None),
        ("encoder", "num_hidden_layers", 10**9),
        ("encoder", "hidden_size", 24.0),
        ("encoder", "patch_size", 0),
        ("encoder", "num_channels", 0),
        ("encoder", "layer_norm_eps", "1e-12"),
        ("encoder", "qkv_bias", "false"),
        ("decoder", "vocab_size", "41"),
        ("decoder", "vocab_size", True),
        ("decoder", "d_model", 0),
        ("decoder", "decoder_layers", -1),
        ("decoder", "decoder_ffn_dim", None),
        ("decoder", "max_position_embeddings", 10**11),
        ("decoder", "tie_word_embeddings", None),
    ],
)
def test_values_beyond_all_reason_are_refused_by_name(part, name, value, tmp_path):
    content = whole({**ENCODER}, {**DECODER})
    if name is None:
        content[part] = value
    else:
        content[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"config\.json: .*{name or part}|config\.json: the {part} is"):
        VisionEncoderDecoderConfig.from_pretrained(tmp_path)


def test_brackets_without_end_are_no_json(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        VisionEncoderDecoderConfig.from_pretrained(tmp_path)


def test_a_length_of_20_in_a_file_means_not_set():
    # Every full config.json of transformers 4 carries it; it is the reference's trap.
    settings = GenerationConfig.from_model_config(whole(max_length=20)).replace(eos_token_id=2)
    assert settings.resolve({}, prompt_length=1, max_positions=512).max_length == 1 + DEFAULT_MAX_NEW_TOKENS
    asked = settings.resolve({"max_length": 20}, prompt_length=1, max_positions=512)
    assert asked.max_length == 20


def test_a_calls_length_wins_over_the_files():
    settings = GenerationConfig(max_new_tokens=10, eos_token_id=2)
    assert settings.resolve({"max_length": 30}, prompt_length=1, max_positions=512).max_length == 30
    assert settings.resolve({}, prompt_length=3, max_positions=512).max_length == 13
    both = settings.resolve({"max_length": 30, "max_new_tokens": 5}, prompt_length=1, max_positions=512)
    assert both.max_length == 6


def test_a_files_length_beyond_the_table_is_clipped():
    settings = GenerationConfig(max_length=1024, eos_token_id=2)
    assert settings.resolve({}, prompt_length=1, max_positions=512).max_length == 513


def test_a_files_unsupported_setting_is_an_error_that_can_be_switched_off():
    settings = GenerationConfig.from_dict({"penalty_alpha": 0.6, "eos_token_id": 2})
    with pytest.raises(ValueError, match="penalty_alpha=None"):
        settings.resolve({}, prompt_length=1, max_positions=512)
    assert settings.resolve({"penalty_alpha": None}, prompt_length=1, max_positions=512).max_length
    # Some count in sampling only.
    settings = GenerationConfig.from_dict({"eta_cutoff": 0.1, "eos_token_id": 2})
    assert settings.resolve({}, prompt_length=1, max_positions=512).max_length
    with pytest.raises(ValueError, match=r"eta_cutoff=0\.0"):
        settings.resolve({"do_sample": True}, prompt_length=1, max_positions=512)
    # A full file's neutral values are no obstacle.
    neutral = transformers.GenerationConfig(eos_token_id=2).to_dict()
    assert GenerationConfig.from_dict(neutral).resolve({}, prompt_length=1, max_positions=512).num_beams == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": True}, "num_beams is True"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": "x"}, "length_penalty is 'x'"),
        ({"repetition_penalty": -1.0}, "above 0"),
        ({"top_k": -1}, "top_k is -1; it must be an int of at least 0"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be a finite number from 0 to 1, or None"),
        ({"typical_p": 0.0}, "typical_p is 0.0; it must be a finite number above 0"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; it must be True or False"),
        ({"remove_invalid_values": 1}, "remove_invalid_values is 1; it must be True or False"),
        ({"bad_words_ids": []}, r"bad_words_ids is \(\); it must be a list, not empty, of lists of token ids"),
        ({"bad_words_ids": [[5], []]}, "bad_words_ids is"),
        ({"bad_words_ids": [[5, -1]]}, "bad_words_ids is"),
        ({"bad_words_ids": [[5, 1.5]]}, r"such as \[\[5\], \[7, 8\]\]"),
        ({"sequence_bias": {}}, "sequence_bias is"),
        ({"sequence_bias": {(5,): float("inf")}}, "a number below inf"),
        ({"sequence_bias": {(5,): float("nan")}}, "a number below inf"),
        ({"sequence_bias": {5: 1.0}}, "sequence_bias is"),
        ({"sequence_bias": [[[5], 1.0, 2.0]]}, "sequence_bias is"),
        ({"begin_suppress_tokens": "5"}, "begin_suppress_tokens is '5'; it must be a list of token ids"),
        ({"suppress_tokens": [2.5]}, "suppress_tokens is"),
        ({"forced_bos_token_id": [5]}, "forced_bos_token_id is"),
        ({"forced_eos_token_id": []}, "not empty"),
        ({"forced_eos_token_id": [2, 3], "suppress_tokens": [2, 3, 4]}, "nothing is left"),
        ({"exponential_decay_length_penalty": 1.5}, "a pair of a whole number from 0"),
        ({"exponential_decay_length_penalty": (-1, 1.5)}, "a pair of a whole number from 0"),
        ({"exponential_decay_length_penalty": (3, 1.1), "eos_token_id": []}, "no token ends a text"),
        ({"num_return_sequences": 2}, "do_sample=True and num_beams=1"),
        ({"num_return_sequences": 5, "num_beams": 3, "do_sample": True}, "exceeds num_beams 3"),
        ({"typical_p": 0.5}, "count only where tokens are drawn"),
        ({"top_h": 0.5, "do_sample": True}, "switch them off with top_h=None"),
    ],
)
def test_values_of_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(eos_token_id=2).resolve(options, prompt_length=1, max_positions=64)


def test_none_means_the_default_and_numpys_numbers_are_numbers():
    settings = GenerationConfig(eos_token_id=np.int64(2), num_beams=4, repetition_penalty=1.5, suppress_tokens=5)
    assert settings.eos_token_ids == (2,)
    assert settings.suppress_tokens == (5,)
    options = {"num_beams": None, "repetition_penalty": None, "length_penalty": None, "min_length": None}
    found = settings.resolve({**options, "max_new_tokens": np.int64(7)}, prompt_length=1, max_positions=64)
    assert (found.num_beams, found.repetition_penalty, found.length_penalty) == (1, 1.0, 1.0)
    assert found.max_length == 8


def test_misspelt_settings_are_refused_when_set():
    with pytest.raises(ValueError, match="num_beam'"):
        GenerationConfig().replace(num_beam=4)


def test_a_length_of_20_survives_our_own_files():
    settings = GenerationConfig(max_length=20, eos_token_id=2)
    again = GenerationConfig.from_dict(settings.to_dict())
    assert again.resolve({}, prompt_length=1, max_positions=64).max_length == 20


def test_a_calls_min_length_wins_over_the_files():
    settings = GenerationConfig(min_new_tokens=4, eos_token_id=2)
    assert settings.resolve({"min_length": 9}, prompt_length=1, max_positions=64).min_length == 9


LISTS = {
    "sequence_bias": [[[5, 6], -1.5], [[7], 2.0]],
    "bad_words_ids": [[5], [6, 7]],
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5, 2],
    "forced_bos_token_id": 0,
    "forced_eos_token_id": [2, 3],
    "exponential_decay_length_penalty": [4, 1.2],
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 10,
    "remove_invalid_values": True,
}


def test_settings_that_are_lists_survive_both_libraries_files(tmp_path):
    transformers.GenerationConfig(eos_token_id=2, **LISTS).save_pretrained(tmp_path)
    settings = GenerationConfig.from_pretrained(tmp_path)
    found = json.loads(json.dumps(settings.to_dict()))
    assert {name: found[name] for name in LISTS} == LISTS
    assert GenerationConfig.from_dict(found) == settings
    assert hash(settings)
    theirs = transformers.GenerationConfig.from_dict(found)
    assert {name: getattr(theirs, name) for name in LISTS} == LISTS
    # A call's dictionary of tuples is the same.
    assert settings.replace(sequence_bias={(5, 6): -1.5, (7,): 2.0}) == settings


def test_a_list_that_is_none_is_an_error_when_it_is_used():
    settings = GenerationConfig.from_dict({"bad_words_ids": "x", "eos_token_id": 2})
    with pytest.raises(ValueError, match="bad_words_ids is 'x'"):
        settings.resolve({}, prompt_length=1, max_positions=64)


def test_top_k_of_a_call_may_be_none():
    settings = GenerationConfig(eos_token_id=2)
    options = {"do_sample": True}
    assert settings.resolve(options, prompt_length=1, max_positions=64).top_k == 50
    assert settings.resolve({**options, "top_k": None}, prompt_length=1, max_positions=64).top_k == 0


def test_a_preset_keeps_the_models_tokens_and_gives_way_to_a_calls_options():
    settings = GenerationConfig(num_beams=4, no_repeat_ngram_size=3, decoder_start_token_id=0, pad_token_id=1,
                                eos_token_id=2)  # fmt: skip
    found = settings.resolve({"preset": "fairseq", "num_beams": 5}, prompt_length=1, max_positions=512)
    assert (found.num_beams, found.early_stopping, found.max_length, found.min_length) == (5, True, 202, 2)
    assert (found.no_repeat_ngram_size, found.start_token_id, found.suppress_tokens) == (0, 0, (1,))
    assert settings.resolve({"preset": "fairseq"}, prompt_length=1, max_positions=64).max_length == 65


def test_min_new_tokens_wins_over_min_length():
    settings = GenerationConfig(min_length=9, eos_token_id=2)
    assert settings.resolve({"min_new_tokens": 4}, prompt_length=2, max_positions=64).min_length == 6
