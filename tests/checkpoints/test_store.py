"""Safetensors in both dialects, whole and sharded; the native file; every way in which a checkpoint can be wrong."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.twins import SWITCHES, config_dict, default_twin, make_twin, switched
from trocr_jax import TrOCR
from trocr_jax.checkpoints import names, store
from trocr_jax.checkpoints.names import flatten
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.models import VisionEncoderDecoderModel


def assert_same(left, right):
    """Two trees have the same names, dtypes and bits."""
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].dtype == right[path].dtype, path
        assert np.asarray(left[path]).tobytes() == np.asarray(right[path]).tobytes(), path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as transformers writes it."""
    path = tmp_path_factory.mktemp("checkpoint")
    default_twin().oracle.save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """A checkpoint to spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(folder, change):
    """Applies a change to the tensors of a folder."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("encoder", SWITCHES["encoder"])
@pytest.mark.parametrize("cross", SWITCHES["cross"])
@pytest.mark.parametrize("tied", SWITCHES["tied"])
def test_table_enumerates_the_abstract_tree_and_the_oracles_names(encoder, cross, tied):
    twin = make_twin(switched(encoder=encoder, cross=cross, tied=tied, qkv_bias=False))
    table = names.table(twin.config)
    assert {entry.path for entry in table} == set(flatten(abstract_params(VisionEncoderDecoder(twin.config))))
    assert len({entry.path for entry in table}) == len(table)
    stored = twin.oracle.state_dict().keys()
    listed = {name for entry in table for name in entry.names}
    assert {name for name in stored - listed if names.ignored_reason(name) is None} <= {names.TIED_HEAD}


def test_reads_what_transformers_writes(folder):
    # transformers writes v4's names; the twin's tree was read from the names it uses in memory.
    stored = store.read_tensors(folder / "model.safetensors")
    assert any(name.startswith("encoder.encoder.layer.") for name in stored)
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    assert_same(model.params, default_twin().params)
    assert model.config == default_twin().config.replace(decoder=model.config.decoder)


def test_reads_v5_names_from_a_file(folder, copy):
    tensors = {name: tensor.numpy() for name, tensor in default_twin().oracle.state_dict().items()}
    assert any(name.startswith("encoder.layers.") for name in tensors)
    safetensors.numpy.save_file(tensors, copy / "model.safetensors")
    assert_same(VisionEncoderDecoderModel.from_pretrained(copy).params, default_twin().params)


def test_reads_shards(copy):
    (copy / "model.safetensors").unlink()
    default_twin().oracle.save_pretrained(copy, max_shard_size="20KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert_same(VisionEncoderDecoderModel.from_pretrained(copy).params, default_twin().params)

    index = json.loads((copy / "model.safetensors.index.json").read_text())
    shutil.copy(shards[0], copy / "again.safetensors")
    first = next(iter(index["weight_map"]))
    for weight_map, message in (
        ({**index["weight_map"], "more": "again.safetensors"}, "more than one shard"),
        ({**index["weight_map"], "more": shards[0].name}, "which no shard holds"),
        ({**index["weight_map"], first: "gone.safetensors"}, "which is missing"),
        ({**index["weight_map"], first: "../up.safetensors"}, "not a weights file beside it"),
        ({**index["weight_map"], first: 3}, "no weight_map"),
        (None, "no weight_map"),
    ):
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(store.CheckpointError, match=message):
            VisionEncoderDecoderModel.from_pretrained(copy)


def test_native_file_gives_the_same_bits_back(folder, tmp_path):
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    halves = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params)
    for params in (model.params, halves):
        model.params = params
        model.save_pretrained(tmp_path / "saved")
        loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved")
        assert_same(loaded.params, params)
        assert loaded.config == model.config
        assert loaded.generation_config == model.generation_config
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_native_file_is_preferred(copy):
    model = VisionEncoderDecoderModel.from_pretrained(copy)
    model.params = jax.tree.map(lambda leaf: leaf + 1, model.params)
    model.save_pretrained(copy)
    assert_same(VisionEncoderDecoderModel.from_pretrained(copy).params, model.params)


@pytest.mark.parametrize("tied", [True, False])
def test_back_to_torch_is_bitwise(tied):
    twin = make_twin(switched(tied=tied, encoder="deit", cross="bridge"))
    table = names.table(twin.config)
    tensors = store.to_torch(twin.params, table)
    assert_same(store.from_torch(tensors, table, "there and back"), twin.params)


@pytest.mark.parametrize("dropped", [names.TIED_HEAD, names.EMBEDDING])
def test_a_tied_file_may_hold_either_matrix(copy, dropped):
    def change(tensors):
        matrix = tensors.pop(names.EMBEDDING)
        tensors.update({names.TIED_HEAD: matrix, names.EMBEDDING: matrix.copy()})
        del tensors[dropped]

    rewrite(copy, change)
    assert_same(VisionEncoderDecoderModel.from_pretrained(copy).params, default_twin().params)


def test_different_matrices_under_a_tied_configuration_are_kept_apart(copy):
    import transformers

    rewrite(copy, lambda tensors: tensors.update({names.TIED_HEAD: tensors[names.EMBEDDING] + 1}))
    with pytest.warns(UserWarning, match="kept apart"):
        model = VisionEncoderDecoderModel.from_pretrained(copy)
    assert not model.config.decoder.tie_word_embeddings
    # The same as the reference does.
    oracle = transformers.VisionEncoderDecoderModel.from_pretrained(copy)
    theirs = oracle.decoder.output_projection.weight.detach().numpy()
    np.testing.assert_array_equal(model.params["decoder"]["output_projection"]["kernel"].T, theirs)


def test_ignored_names_have_a_reason(copy):
    extra = {
        "encoder.pooler.dense.weight": np.zeros((24, 24), np.float32),
        "encoder.embeddings.mask_token": np.zeros((1, 1, 24), np.float32),
        "decoder.model.decoder.embed_positions._float_tensor": np.zeros(1, np.float32),
        "encoder.embeddings.position_ids": np.arange(3),
    }
    rewrite(copy, lambda tensors: tensors.update(extra))
    assert_same(VisionEncoderDecoderModel.from_pretrained(copy).params, default_twin().params)
    assert all(names.ignored_reason(name) for name in extra)
    assert names.ignored_reason("decoder.lm_head.weight") is None


def test_every_mismatch_is_reported_at_once(copy):
    def change(tensors):
        del tensors["encoder.layernorm.weight"]
        del tensors["decoder.model.decoder.layers.1.fc1.bias"]
        tensors["decoder.lm_head.weight"] = np.zeros(3, np.float32)
        tensors["encoder.layers.0.attention.q_proj.weight"] = np.zeros((24, 24), np.float32)
        tensors["decoder.model.decoder.layers.0.fc1.weight"] = np.zeros(3, np.float32)

    rewrite(copy, change)
    with pytest.raises(store.CheckpointError) as error:
        VisionEncoderDecoderModel.from_pretrained(copy)
    message = str(error.value)
    for line in (
        "- encoder.layernorm.weight",
        "- decoder.model.decoder.layers.1.fc1.bias",
        "+ decoder.lm_head.weight",
        "! encoder.encoder.layer.0.attention.attention.query.weight is stored twice",
        "! decoder.model.decoder.layers.0.fc1.weight has shape (3,)",
    ):
        assert line in message
    assert "model.safetensors" in message


def test_shapes_and_dtypes_are_checked(copy):
    def change(tensors):
        tensors["encoder.layernorm.weight"] = np.zeros(25, np.float32)
        tensors["decoder.model.decoder.layernorm_embedding.bias"] = np.zeros(32, np.int32)

    rewrite(copy, change)
    with pytest.raises(store.CheckpointError) as error:
        VisionEncoderDecoderModel.from_pretrained(copy)
    assert "! encoder.layernorm.scale has shape (25,); the configuration asks for (24,)" in str(error.value)
    assert "! decoder.layernorm_embedding.bias holds int32" in str(error.value)


def test_a_native_file_of_another_configuration_is_refused(copy, tmp_path):
    VisionEncoderDecoderModel.from_pretrained(copy).save_pretrained(tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "config.json").read_text())
    content["encoder"]["num_hidden_layers"] = 3
    content["decoder"]["layernorm_embedding"] = False
    (tmp_path / "saved" / "config.json").write_text(json.dumps(content))
    with pytest.raises(store.CheckpointError) as error:
        VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved")
    assert "- encoder.layers_2.attention.q_proj.kernel" in str(error.value)
    assert "+ decoder.layernorm_embedding.scale" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_files_are_named(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(store.CheckpointError, match=r"model\.safetensors cannot be read"):
        VisionEncoderDecoderModel.from_pretrained(copy)


def test_folders_without_weights_or_configuration_are_named(copy):
    (copy / "model.safetensors").rename(copy / "tf_model.h5")
    with pytest.raises(FileNotFoundError, match=r"holds none of.*model\.safetensors"):
        VisionEncoderDecoderModel.from_pretrained(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        VisionEncoderDecoderModel.from_pretrained(copy)


def test_cross_width_left_out_by_an_old_file_is_the_encoders(copy):
    content = json.loads((copy / "config.json").read_text())
    content["decoder"]["cross_attention_hidden_size"] = None
    (copy / "config.json").write_text(json.dumps(content))
    model = VisionEncoderDecoderModel.from_pretrained(copy)
    assert model.config.decoder.cross_attention_hidden_size == 24
    assert_same(model.params, default_twin().params)


def test_config_of_a_twin_reads_as_written():
    assert VisionEncoderDecoderConfig.from_dict(config_dict()) == default_twin().config


def test_untrained_twins_have_no_tokenizer_but_generate(tmp_path):
    twin = default_twin()
    twin.oracle.save_pretrained(tmp_path / "twin")
    ocr = TrOCR.from_pretrained(tmp_path / "twin", dtype="float32")
    assert ocr.generate(twin.pixels(2), max_new_tokens=4).sequences.shape == (2, 5)
    with pytest.raises(ValueError, match="preprocessor_config"):
        ocr.processor(np.zeros((8, 8), np.uint8))
