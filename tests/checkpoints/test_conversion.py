"""Whole checkpoints in every format they exist in: in, out, and compared in both frameworks."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import shutil
import sys

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
from tests.processing.test_tokenizer import train_sentencepiece
from tests.twins import config_dict, make_oracle, make_twin, torch_tensors
from trocr_jax import TrOCR, TrOCRProcessor
from trocr_jax.checkpoints import names, store
from trocr_jax.checkpoints.conversion import convert as convert_checkpoint
from trocr_jax.checkpoints.conversion import load_checkpoint
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.fairseq import original_name
from trocr_jax.checkpoints.inspection import inspect
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.registry import OFFICIAL, matching_models
from trocr_jax.registry import architecture as registry_architecture

FORMATS = ("safetensors", "bin", "legacy bin", "sharded bin", "fairseq")


def reduced(name):
    """An official configuration with every switch as it is, narrow and shallow; large is wider and deeper than base."""
    config = OFFICIAL[name]
    is_large = "large" in name
    encoder = config.encoder.replace(
        hidden_size=128 if is_large else 64,
        num_hidden_layers=3 if is_large else 2,
        num_attention_heads=2 if is_large else 1,
        intermediate_size=48,
        image_size=48,
        pooler_output_size=128 if is_large else 64,
    )
    decoder = config.decoder.replace(
        vocab_size=240,
        d_model=128 if is_large else 32,  # as in large, where the widths of both sides are the same
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=40,
        cross_attention_hidden_size=encoder.hidden_size,
        init_std=0.2,
        dropout=0.0,
    )
    return config.replace(encoder=encoder, decoder=decoder)


@pytest.fixture(scope="module")
def oracles():
    """A twin of each distinct official architecture, made once: (oracle, tensors under v4's names, our config)."""
    made = {}

    def get(name):
        config = reduced(name)
        key = json.dumps(config.to_dict(), sort_keys=True)
        if key not in made:
            oracle = make_oracle(config.to_dict(), seed=3)
            state = {key: tensor.numpy() for key, tensor in oracle.state_dict().items()}
            params = store.from_torch(state, names.table(config), name)
            made[key] = oracle, torch_tensors(params, config), config
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


# The eleven have five architectures; each is compared in another of the formats it exists in.
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("trocr-small-printed", "fairseq"),
        ("trocr-base-handwritten", "safetensors"),
        ("trocr-base-stage1", "legacy bin"),
        ("trocr-large-str", "sharded bin"),
        ("trocr-large-printed", "fairseq"),
    ],
)
def test_verify_finds_both_frameworks_equal(name, form, oracles, tmp_path):
    _, tensors, config = oracles(name)
    report = verify(write(tmp_path / "source", form, tensors, config), max_new_tokens=8)
    assert report.is_equal, str(report)
    assert max(report.differences.values()) < 1e-10
    layers = config.encoder.num_hidden_layers + config.decoder.decoder_layers
    assert len(report.differences) == layers + 4


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


@pytest.fixture
def heard():
    """Every line that transformers logs as a warning or worse during a test."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.extend(record.getMessage().splitlines())

    handler = Handler(logging.WARNING)
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def assert_only_the_pooler(lines):
    """Of the report on loading, every line about a tensor is about the pooler, which no TrOCR has."""
    reported = [line.split("|")[0].strip() for line in lines if "|" in line and "Key" not in line]
    assert sorted(reported) == ["encoder.pooler.dense.bias", "encoder.pooler.dense.weight"]
    others = [line for line in lines if "|" not in line and "---" not in line and line.strip()]
    assert len(others) == 3, others  # the report's title and two lines of notes
    assert "LOAD REPORT" in others[0]
    lines.clear()


def tokenizer_files(folder, name, vocab_size):
    """The tokenizer of a fairseq model as its files: SentencePiece for small, GPT-2's for the others."""
    if "small" in name:
        train_sentencepiece(folder / "unilm3-cased.model")
        return folder / "unilm3-cased.model"
    tokens = ["a", "b", "c", "Ġ", "ab", "Ġab", "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    lines = [f"{i} 1" for i in range(len(tokens))]
    lines += [f"madeupword{i:04} 0" for i in range(vocab_size - len(lines) - 5)]
    (folder / "gpt2_with_mask.dict.txt").write_text("\n".join([*lines, "<mask> 0"]) + "\n")
    return folder


@pytest.mark.parametrize("name", ["trocr-small-printed", "trocr-base-handwritten", "trocr-large-printed"])
def test_transformers_loads_a_converted_fairseq_file_without_a_warning(name, oracles, tmp_path, heard):
    oracle, tensors, config = oracles(name)
    source = write(tmp_path / "source", "fairseq", tensors, config)
    tokenizer = tokenizer_files(tmp_path, name, config.decoder.vocab_size)
    convert_checkpoint(source, tmp_path / "torch", to="torch", tokenizer=tokenizer)
    model = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "torch")
    assert_only_the_pooler(heard)
    for key, tensor in oracle.state_dict().items():
        if "pooler" not in key:
            assert torch.equal(model.state_dict()[key], tensor), key
    processor = transformers.TrOCRProcessor.from_pretrained(tmp_path / "torch")
    assert not heard
    ours = TrOCRProcessor.from_pretrained(tmp_path / "torch")
    for text in ("ab abc", "of the and", ""):
        assert processor.tokenizer(text).input_ids == ours.tokenizer(text).input_ids
    image = np.random.default_rng(0).integers(0, 256, (30, 100, 3), np.uint8)
    theirs = processor.image_processor(image, return_tensors="np").pixel_values
    np.testing.assert_array_equal(ours(image).pixel_values, theirs)
    assert processor.image_processor.resample == 3  # bicubic, as unilm evaluates


def test_transformers_loads_what_is_written_without_a_warning(tmp_path, heard):
    convert_checkpoint(EMBEDDED, tmp_path / "torch", to="torch", dtype="float32")
    model, info = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "torch", output_loading_info=True)
    assert_only_the_pooler(heard)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.decoder.output_projection.weight is model.decoder.model.decoder.embed_tokens.weight
    assert model.generation_config.max_length == 49
    processor = transformers.TrOCRProcessor.from_pretrained(tmp_path / "torch")
    assert not heard
    ours = TrOCR.from_pretrained().processor
    text = "Total : $8.20"
    assert processor.tokenizer(text).input_ids == ours.tokenizer(text).input_ids
    assert processor.image_processor.size == {"height": 32, "width": 512}


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


def test_a_dry_run_finds_what_a_run_would(oracles, tmp_path):
    _, tensors, config = oracles("trocr-small-printed")
    name = "decoder.layernorm_embedding.bias"
    large = tensors | {name.replace("decoder.", "decoder.model.decoder.", 1): np.full(32, 1e6, np.float32)}
    source = write(tmp_path / "source", "fairseq", large, config)
    (tmp_path / "file").write_text("")
    for wrong in (
        {"max_shard_size": "5 elephants"},
        {"output": tmp_path / "file"},
        {"output": ""},
        {"dtype": "float16"},
        {"tokenizer": tmp_path / "nowhere.model"},
    ):
        arguments = {"output": tmp_path / "out", **wrong}
        with pytest.raises((ValueError, OSError)):
            convert_checkpoint(source, arguments.pop("output"), dry_run=True, **arguments)
    convert_checkpoint(source, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.pth", "last.ckpt", "model.safetensors"])
def test_a_fairseq_file_may_have_any_name(name, oracles, tmp_path):
    _, tensors, config = oracles("trocr-small-printed")
    source = write(tmp_path / "source", "fairseq", tensors, config)
    overrides = None
    if name.endswith(".safetensors"):  # which holds no arguments
        state = {key: tensor.numpy() for key, tensor in fairseq_state(tensors, config).items()}
        safetensors.numpy.save_file(state, tmp_path / name)
        with pytest.raises(CheckpointError, match="--set decoder_attention_heads=VALUE"):
            load_checkpoint(tmp_path / name)
        overrides = {"decoder_attention_heads": 4, "activation_function": "relu", "scale_embedding": True}
    else:
        shutil.move(source, tmp_path / name)
    checkpoint = load_checkpoint(tmp_path / name, overrides=overrides)
    assert_same(checkpoint.params, store.from_torch(tensors, names.table(config), "the twin"))
    assert registry_architecture(checkpoint.config) == registry_architecture(config)


def test_what_a_fairseq_file_does_not_say_can_be_said(oracles, tmp_path, capsys):
    _, tensors, config = oracles("trocr-small-printed")
    path = write(tmp_path / "source", "fairseq", tensors, config)
    torch.save({"model": fairseq_state(tensors, config)}, path)
    command = ["convert", str(path), str(tmp_path / "out")]
    assert trocr_jax.cli.main(command) == 2
    assert "--set activation_function=VALUE" in capsys.readouterr().err
    told = ["decoder_attention_heads=4", "activation_function=relu", "scale_embedding=true", "input_size=[48,48]"]
    assert trocr_jax.cli.main([*command, *(part for setting in told for part in ("--set", setting))]) == 0
    found = TrOCR.from_pretrained(tmp_path / "out").config
    assert registry_architecture(found) == registry_architecture(config)
    with pytest.raises(ValueError, match="nothing can be said of"):
        load_checkpoint(path, overrides={"heads": 4})
    with pytest.raises(ValueError, match="no original TrOCR checkpoint"):
        load_checkpoint(EMBEDDED, overrides={"decoder_attention_heads": 4})


def test_arguments_that_do_not_belong_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no original TrOCR checkpoint"):
        convert_checkpoint(EMBEDDED, tmp_path / "out", tokenizer=tmp_path)
    with pytest.raises(ValueError, match="dtyp"):
        convert_checkpoint(EMBEDDED / "flax_model.safetensors", tmp_path / "out", dtyp="float16")
    for missing in ("w/missing.pt", "missing.safetensors", "a.bin"):
        with pytest.raises(FileNotFoundError, match=f"{missing} does not exist"):
            load_checkpoint(missing)


def test_the_dtype_of_the_read_weights_is_not_told_of_the_written(oracles, tmp_path):
    _, tensors, config = oracles("trocr-base-printed")
    source = write(tmp_path / "source", "bin", tensors, config)
    content = json.loads((source / "config.json").read_text()) | {"torch_dtype": "float16", "dtype": "float16"}
    content["encoder"]["dtype"] = content["decoder"]["torch_dtype"] = "float16"
    (source / "config.json").write_text(json.dumps(content))
    convert_checkpoint(source, tmp_path / "out", to="torch")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["dtype"] == "float32"
    assert not {"dtype", "torch_dtype"} & (found["encoder"].keys() | found["decoder"].keys())
    assert "torch_dtype" not in found
    assert transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_the_card_of_converted_shards_tells_each_ones_hash(oracles, tmp_path):
    _, tensors, config = oracles("trocr-base-printed")
    convert_checkpoint(write(tmp_path / "source", "sharded bin", tensors, config), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for name in ("pytorch_model-1.bin", "pytorch_model-2.bin"):
        digest = hashlib.sha256((tmp_path / "source" / name).read_bytes()).hexdigest()
        assert f"| {name}, which this was converted from | {digest} |" in card


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_long_work_shows_its_progress_on_a_terminal_only(monkeypatch, tmp_path, capsys):
    import tqdm

    shown = {}

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **options):
            assert options.pop("delay") > 0  # what takes no time shows no bar
            super().__init__(*args, **options)

        def close(self):
            shown[self.desc.rstrip(": ")] = self.n, self.total
            super().close()

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    convert_checkpoint(EMBEDDED, tmp_path / "quiet", show_progress=True)
    assert shown == {}
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    convert_checkpoint(EMBEDDED, tmp_path / "shown", show_progress=True)
    size = sum(tensor.nbytes for tensor in store.read_tensors(EMBEDDED / "flax_model.safetensors").values())
    assert shown == {"checking": (size, size), "writing": (size, size)}
    convert_checkpoint(EMBEDDED, tmp_path / "wide", dtype="float32", show_progress=True)
    assert shown["writing"] == (2 * size, 2 * size)
    assert "writing" in terminal.getvalue()
    shown.clear()
    convert_checkpoint(EMBEDDED, tmp_path / "not asked for")
    assert shown == {}


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
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds the adapters.*merge_and_unload"):
        load_checkpoint(source)
    assert "merge_and_unload" in inspect(source).problem
    safetensors.numpy.save_file({name: np.zeros((2, 2), "f")}, tmp_path / "adapter_model.safetensors")
    assert "merge_and_unload" in inspect(tmp_path / "adapter_model.safetensors").problem
    # As peft saves them: a folder without a model.
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    safetensors.numpy.save_file({name: np.zeros((2, 2), "f")}, tmp_path / "adapters" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapters holds the adapters.*merge_and_unload"):
        TrOCR.from_pretrained(tmp_path / "adapters")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMATS)
def test_numbers_that_are_not_finite_are_refused(number, form, oracles, tmp_path):
    _, tensors, config = oracles("trocr-small-printed")
    name = "decoder.model.decoder.layers.1.fc1.weight"
    spoilt = tensors[name].copy()
    spoilt[3, 4:6] = number
    source = write(tmp_path / "source", form, tensors | {name: spoilt}, config)
    with pytest.raises(
        CheckpointError, match=r"decoder\.layers_1\.mlp\.fc1\.kernel holds 2 numbers that are not finite"
    ):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "not finite" in inspect(source).problem


def test_a_weights_file_may_be_named_itself(oracles, tmp_path):
    _, tensors, config = oracles("trocr-base-printed")
    source = write(tmp_path / "source", "bin", tensors, config)
    (source / "pytorch_model.bin").rename(source / "epoch3.bin")
    checkpoint = convert_checkpoint(source / "epoch3.bin", tmp_path / "out")
    assert_same(checkpoint.params, store.from_torch(tensors, names.table(config), "the twin"))
    (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"epoch3\.bin .* lacks config\.json beside it"):
        load_checkpoint(source / "epoch3.bin")
    found = inspect(source / "epoch3.bin")
    assert found.num_tensors == len(tensors)
    assert "config.json" in found.problem


@pytest.mark.parametrize("vocab_size", [150, 300])
def test_tokenizer_and_embeddings_may_differ_in_size(vocab_size, tmp_path):
    # A swapped tokenizer (SentencePiece under a base architecture), with more and with fewer tokens than embeddings.
    train_sentencepiece(tmp_path / "sentencepiece.bpe.model")
    twin = make_twin(config_dict(decoder={"vocab_size": vocab_size}))
    twin.oracle.save_pretrained(tmp_path / "source")
    shutil.copy(tmp_path / "sentencepiece.bpe.model", tmp_path / "source")
    shutil.copy(EMBEDDED / "preprocessor_config.json", tmp_path / "source")
    convert_checkpoint(tmp_path / "source", tmp_path / "out")
    ocr = TrOCR.from_pretrained(tmp_path / "out")
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path / "out")
    assert 150 < len(ocr.processor.tokenizer) == len(theirs) < 300
    assert ocr.config.decoder.vocab_size == vocab_size
    ids = ocr.generate(twin.pixels(2), max_new_tokens=6).sequences
    assert ids.max() < vocab_size
    known = [[token for token in row if token < len(theirs)] for row in ids.tolist()]
    texts = ocr.processor.batch_decode(ids, skip_special_tokens=True)
    assert texts == theirs.batch_decode(known, skip_special_tokens=True)


def test_a_dtype_that_is_too_narrow_is_refused(oracles, tmp_path):
    _, tensors, config = oracles("trocr-small-printed")
    name = "encoder.layernorm.weight"
    source = write(tmp_path / "source", "bin", tensors | {name: tensors[name] + 1e5}, config)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        convert_checkpoint(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    convert_checkpoint(source, tmp_path / "out", dtype="bfloat16")


def test_community_fine_tunes_load(tmp_path):
    # Start token 0, more tokens than the base vocabulary, half precision, a bridge, leftovers of other classes.
    content = config_dict(decoder={"vocab_size": 60, "cross_attention_hidden_size": None})
    content |= {"decoder_start_token_id": 0, "num_beams": 4, "no_repeat_ngram_size": 3, "max_length": 40}
    twin = make_twin(content)
    tensors = {name: tensor.astype(np.float16) for name, tensor in torch_tensors(twin.params, twin.config).items()}
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
    assert found.num_parameters == 3683328
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


def test_verify_without_transformers_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert convert.__main__.main(["verify", str(EMBEDDED)]) == 2
    assert 'verify compares with torch: pip install -e ".[convert]"' in capsys.readouterr().err
