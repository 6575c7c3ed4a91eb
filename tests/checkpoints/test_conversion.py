"""Whole checkpoints in every format they exist in: in, out, and compared in both frameworks."""

from __future__ import annotations

import argparse
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import convert.__main__
import trocr_jax.cli
from convert.verify import verify
from tests.checkpoints.test_store import assert_same
from tests.conftest import SAMPLES
from tests.twins import config_dict, make_oracle, make_twin
from trocr_jax import TrOCR
from trocr_jax.checkpoints import names, store
from trocr_jax.checkpoints.conversion import convert as convert_checkpoint
from trocr_jax.checkpoints.conversion import load_checkpoint
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.fairseq import original_name
from trocr_jax.checkpoints.inspection import inspect
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.registry import OFFICIAL, matching_models

FORMATS = ("safetensors", "bin", "legacy bin", "sharded bin", "fairseq")


def reduced(config):
    """An official configuration with every switch as it is, narrow and shallow."""
    encoder = config.encoder.replace(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=48,
        image_size=48,
        pooler_output_size=64,
    )
    decoder = config.decoder.replace(
        vocab_size=240,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=40,
        cross_attention_hidden_size=64,
        init_std=0.2,
        dropout=0.0,
    )
    return config.replace(encoder=encoder, decoder=decoder)


@pytest.fixture(scope="module")
def oracles():
    """A twin of each distinct official architecture, made once: (oracle, tensors under v4's names, our config)."""
    made = {}

    def get(name):
        config = reduced(OFFICIAL[name])
        key = json.dumps(config.to_dict(), sort_keys=True)
        if key not in made:
            oracle = make_oracle(config.to_dict(), seed=3)
            state = {key: tensor.numpy() for key, tensor in oracle.state_dict().items()}
            params = store.from_torch(state, names.table(config), name)
            made[key] = oracle, store.to_torch(params, names.table(config)), config
        return made[key]

    return get


def fairseq_state(tensors, config):
    """Tensors under fairseq's names, queries, keys and values fused, with what else such files hold."""
    state, fused = {}, {}
    for name, tensor in tensors.items():
        original, part = original_name(name)
        if part is None:
            state[original] = torch.from_numpy(tensor.copy())
        else:
            fused.setdefault(original, {})[part] = tensor
    for name, parts in fused.items():
        state[name] = torch.from_numpy(np.concatenate([parts[i] for i in range(3)]))
    width = config.encoder.hidden_size
    state |= {"encoder.deit.head.weight": torch.zeros(5, width), "encoder.deit.head.bias": torch.zeros(5)}
    state["decoder.version"] = torch.tensor([3.0])
    if config.decoder.tie_word_embeddings:
        state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
    if not config.decoder.use_learned_position_embeddings:
        state["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    return state


def write(folder, form, tensors, config):
    """A checkpoint in a format; returns what to convert."""
    folder.mkdir()
    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
    if form == "fairseq":
        decoder = config.decoder
        arguments = argparse.Namespace(
            decoder_attention_heads=decoder.decoder_attention_heads,
            activation_fn=decoder.activation_function,
            no_scale_embedding=not decoder.scale_embedding,
            max_target_positions=decoder.max_position_embeddings,
        )
        path = folder / "checkpoint.pt"
        torch.save({"model": fairseq_state(tensors, config), "args": arguments, "optimizer_history": [{}]}, path)
        return path
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    if form == "safetensors":
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    elif form == "sharded bin":
        half = len(state) // 2
        parts = {"pytorch_model-1.bin": list(state)[:half], "pytorch_model-2.bin": list(state)[half:]}
        for name, keys in parts.items():
            torch.save({key: state[key] for key in keys}, folder / name)
        weight_map = {key: name for name, keys in parts.items() for key in keys}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    return folder


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_models_read_bitwise_in_every_format(name, form, oracles, tmp_path):
    _, tensors, config = oracles(name)
    checkpoint = load_checkpoint(write(tmp_path / "source", form, tensors, config))
    table = names.table(config)
    assert_same(checkpoint.params, store.from_torch(tensors, table, name))
    assert checkpoint.config.decoder == config.decoder.replace(
        init_std=checkpoint.config.decoder.init_std, dropout=checkpoint.config.decoder.dropout
    )
    assert checkpoint.config.encoder == config.encoder
    if form == "fairseq":
        assert checkpoint.ignored["decoder.version"]
        assert checkpoint.ignored["encoder.deit.head.weight"]
        assert {decision.field for decision in checkpoint.decisions} >= {"decoder.activation_function"}
    # And back to torch, bitwise.
    convert_checkpoint(
        tmp_path / "source" / ("checkpoint.pt" if form == "fairseq" else ""), tmp_path / "back", to="torch"
    )
    written = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(written[key].tobytes() == tensors[key].tobytes() for key in tensors)


def test_flax_to_torch_to_flax_is_the_identity(oracles, tmp_path):
    for i, name in enumerate(OFFICIAL):
        _, tensors, config = oracles(name)
        source = write(tmp_path / f"{i}", "safetensors", tensors, config)
        first = convert_checkpoint(source, tmp_path / f"{i}-flax")
        convert_checkpoint(tmp_path / f"{i}-flax", tmp_path / f"{i}-torch", to="torch")
        again = convert_checkpoint(tmp_path / f"{i}-torch", tmp_path / f"{i}-again")
        assert_same(again.params, first.params)
        assert again.config == first.config
        assert again.generation_config == first.generation_config


@pytest.mark.parametrize("name", ["trocr-small-printed", "trocr-base-handwritten", "trocr-large-printed"])
def test_verify_finds_both_frameworks_equal(name, oracles, tmp_path):
    _, tensors, config = oracles(name)
    report = verify(write(tmp_path / "source", "fairseq", tensors, config), max_new_tokens=8)
    assert report.is_equal, str(report)
    assert max(report.differences.values()) < 1e-10
    assert len(report.differences) == 2 * 3 + 2


def test_verify_reads_images_and_says_what_differs(monkeypatch):
    report = verify(EMBEDDED, [SAMPLES / "date.png"])
    assert report.is_equal
    assert report.texts[0] == ("Date: 09.10.93 07:53:40",) * 2
    assert "ids, 4 beams: equal" in str(report)
    monkeypatch.setattr("trocr_jax.modeling.decoder.LAYER_NORM_EPS", 1e-4)
    report = verify(EMBEDDED)
    assert not report.is_equal
    assert report.differences["encoder output"] < 1e-10
    assert "decoder block 1" in str(report)
    assert "NOT EQUAL" in str(report)


def test_transformers_loads_what_is_written_without_a_warning(tmp_path, caplog):
    convert_checkpoint(EMBEDDED, tmp_path / "torch", to="torch", dtype="float32")
    model, info = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "torch", output_loading_info=True)
    assert set(info["missing_keys"]) <= {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.decoder.output_projection.weight is model.decoder.model.decoder.embed_tokens.weight
    assert model.generation_config.max_length == 48
    processor = transformers.TrOCRProcessor.from_pretrained(tmp_path / "torch")
    ours = TrOCR.from_pretrained().processor
    text = "Total : $8.20"
    assert processor.tokenizer(text).input_ids == ours.tokenizer(text).input_ids
    assert processor.image_processor.size == {"height": 32, "width": 320}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_can_be_rounded_on_the_way(dtype, tmp_path):
    convert_checkpoint(EMBEDDED, tmp_path / "half", dtype=dtype)
    stored = safetensors.numpy.load_file(tmp_path / "half" / "flax_model.safetensors")
    assert {tensor.dtype.name for tensor in stored.values()} == {dtype}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype
    line = TrOCR.from_pretrained(tmp_path / "half")(SAMPLES / "date.png")
    assert line.text == "Date: 09.10.93 07:53:40"
    with pytest.raises(ValueError, match="float8"):
        convert_checkpoint(EMBEDDED, tmp_path / "eighth", dtype="float8")


def test_a_dry_run_writes_nothing(tmp_path):
    convert_checkpoint(EMBEDDED, tmp_path / "out", dry_run=True)
    assert not list(tmp_path.iterdir())


def test_a_failed_conversion_leaves_the_old_folder_alone(tmp_path, oracles, monkeypatch):
    convert_checkpoint(EMBEDDED, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("trocr_jax.checkpoints.conversion.save_weights", fail)
    _, tensors, config = oracles("trocr-base-printed")
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(write(tmp_path / "source", "bin", tensors, config), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "source"}


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_a_trainers_prefix_and_optimizer_are_no_obstacle(prefix, oracles, tmp_path):
    _, tensors, config = oracles("trocr-small-printed")
    source = write(tmp_path / "source", "bin", tensors, config)
    state = {f"{prefix}{name}": torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
    torch.save(
        {"state_dict": state, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 3}, source / "pytorch_model.bin"
    )
    assert_same(load_checkpoint(source).params, store.from_torch(tensors, names.table(config), "the twin"))


def test_adapters_are_refused_clearly(oracles, tmp_path):
    _, tensors, config = oracles("trocr-small-printed")
    name = "base_model.model.decoder.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
    source = write(tmp_path / "source", "safetensors", tensors | {name: np.zeros((2, 2), np.float32)}, config)
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        load_checkpoint(source)


def test_community_fine_tunes_load(tmp_path):
    # Start token 0, more tokens than the base vocabulary, half precision, a bridge, leftovers of other classes.
    content = config_dict(decoder={"vocab_size": 60, "cross_attention_hidden_size": None})
    content |= {"decoder_start_token_id": 0, "num_beams": 4, "no_repeat_ngram_size": 3, "max_length": 40}
    twin = make_twin(content)
    tensors = {
        name: tensor.astype(np.float16)
        for name, tensor in store.to_torch(twin.params, names.table(twin.config)).items()
    }
    tensors["encoder.pooler.dense.weight"] = np.zeros((24, 24), np.float16)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(content))
    safetensors.numpy.save_file(tensors, tmp_path / "source" / "model.safetensors")
    ocr = TrOCR.from_pretrained(tmp_path / "source")
    assert ocr.config.has_bridge
    assert ocr.generation_config.num_beams == 4
    output = ocr.generate(twin.pixels(2))
    assert output.sequences[:, 0].tolist() == [0, 0]
    assert output.sequences_scores is not None


def test_inspect_names_the_official_architecture(oracles, tmp_path):
    assert matching_models(OFFICIAL["trocr-base-printed"]) == [
        "trocr-base-handwritten",
        "trocr-base-printed",
        "trocr-base-str",
    ]
    assert matching_models(OFFICIAL["trocr-large-printed"]) == ["trocr-large-stage1", "trocr-large-printed"]
    assert all(name in matching_models(config) for name, config in OFFICIAL.items())
    found = inspect(EMBEDDED)
    assert found.official == ()
    assert found.num_parameters == 3678720
    assert found.dtypes == {"float16": 142}
    _, tensors, config = oracles("trocr-small-printed")
    found = inspect(write(tmp_path / "source", "fairseq", tensors, config))
    assert found.kind == "fairseq"
    assert found.problem is None
    assert "decoder.version" in str(found)
    assert "from the saved arguments" in str(found)


def test_inspect_works_on_what_it_refuses(oracles, tmp_path):
    _, tensors, config = oracles("trocr-base-printed")
    source = write(tmp_path / "source", "bin", {**tensors, "decoder.lm_head": np.zeros(3, np.float32)}, config)
    found = inspect(source)
    assert "+ decoder.lm_head" in found.problem
    assert found.num_tensors == len(tensors) + 1
    content = json.loads((source / "config.json").read_text())
    content["decoder"] = {"model_type": "gpt2"}
    (source / "config.json").write_text(json.dumps(content))
    assert "gpt2" in inspect(source).problem


def test_commands(tmp_path, capsys):
    main = trocr_jax.cli.main
    assert main(["convert", str(EMBEDDED), str(tmp_path / "torch"), "--to", "torch"]) == 0
    assert "written to" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "torch"), str(tmp_path / "flax"), "--dry-run"]) == 0
    assert not (tmp_path / "flax").exists()
    assert main(["inspect", str(tmp_path / "torch")]) == 0
    assert "transformers, safetensors" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "flax")]) == 2
    assert "nowhere" in capsys.readouterr().err
    shutil.copy(tmp_path / "torch" / "model.safetensors", tmp_path / "alone.safetensors")
    assert main(["convert", str(tmp_path / "alone.safetensors"), str(tmp_path / "flax")]) == 2
    assert "alone.safetensors" in capsys.readouterr().err

    script = convert.__main__.main
    assert script(["to-flax", str(tmp_path / "torch"), str(tmp_path / "flax")]) == 0
    assert script(["to-torch", str(tmp_path / "flax"), str(tmp_path / "again")]) == 0
    assert script(["inspect", str(tmp_path / "flax")]) == 0
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("torch", "again")]
    assert same[0] == same[1]
    assert script(["verify", str(tmp_path / "again"), str(SAMPLES / "price.png")]) == 0
    assert "text: 'RM3.01'" in capsys.readouterr().out
    assert script(["verify", str(tmp_path / "nowhere")]) == 2
