"""Folders appear whole or not at all, keep what is not theirs, and hold a card that says where weights come from."""

from __future__ import annotations

import hashlib
import json
import os
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

from tests.checkpoints.test_store import assert_same
from tests.conftest import SAMPLES
from tests.twins import default_twin
from trocr_jax import TrOCR, TrOCRForCausalLM, TrOCRProcessor, VisionEncoderDecoderModel
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.checkpoints.folder import Source, whole_folder
from trocr_jax.recognizer import EMBEDDED

COMPLETE = {
    "README.md", "config.json", "flax_model.safetensors", "generation_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained()


def names(folder):
    return {path.name for path in folder.iterdir()}


def hashes(card):
    return dict(re.findall(r"^\| ([^|]*\.\S+?)(?:, [^|]*)? \| ([0-9a-f]{64}) \|$", card, re.MULTILINE))


def test_a_saved_folder_is_complete_and_reads_the_same(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "saved")
    assert names(tmp_path) == {"saved"}
    assert names(tmp_path / "saved") == COMPLETE
    again = TrOCR.from_pretrained(tmp_path / "saved")
    assert_same(again.params, ocr.params)
    assert again.config == ocr.config
    assert again.generation_config == ocr.generation_config
    assert again(SAMPLES / "date.png") == ocr(SAMPLES / "date.png")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o777 & ~umask
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask for path in (tmp_path / "saved").iterdir())


def test_the_card_tells_source_and_hashes(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "first")
    TrOCR.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: trocr_jax\n")
    assert "# second\n" in card
    assert "from first." in card
    assert str(tmp_path) not in card  # a card is made to be published
    weights = (tmp_path / "second" / "flax_model.safetensors").read_bytes()
    assert hashes(card) == {"flax_model.safetensors": hashlib.sha256(weights).hexdigest()}

    convert(tmp_path / "second", tmp_path / "torch", to="torch")
    card = (tmp_path / "torch" / "README.md").read_text()
    assert "library_name: transformers\n" in card
    assert "VisionEncoderDecoderModel.from_pretrained" in card
    found = hashes(card)
    assert found.keys() == {"model.safetensors", "flax_model.safetensors"}
    assert found["flax_model.safetensors"] == hashlib.sha256(weights).hexdigest()

    params = jax.tree.map(np.asarray, default_twin().params)
    VisionEncoderDecoderModel(default_twin().config, params=params).save_pretrained(tmp_path / "third")
    assert "from weights in memory" in (tmp_path / "third" / "README.md").read_text()


def test_a_hub_id_is_the_base_model(ocr, tmp_path):
    folder = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    assert Source.of("org/name", folder) == Source("org/name", "0123abc")
    assert Source.of(EMBEDDED, EMBEDDED) == Source("trocr-nano-printed")
    model = VisionEncoderDecoderModel.from_pretrained(EMBEDDED)
    model.source = Source("org/name", "0123abc")
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "\nbase_model: org/name\n" in card
    assert "from org/name, revision 0123abc." in card
    # A folder whose name looks like one is none.
    model.save_pretrained(tmp_path / "org@name")
    VisionEncoderDecoderModel.from_pretrained(tmp_path / "org@name").save_pretrained(tmp_path / "again")
    assert "base_model" not in (tmp_path / "again" / "README.md").read_text()


def test_weights_beyond_the_limit_are_split_and_read_back(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "saved", max_shard_size="2MB")
    shards = sorted((tmp_path / "saved").glob("flax_model-*.safetensors"))
    assert len(shards) == 5
    assert names(tmp_path / "saved") == COMPLETE - {"flax_model.safetensors"} | {
        "flax_model.safetensors.index.json", *(shard.name for shard in shards)
    }  # fmt: skip
    assert_same(TrOCR.from_pretrained(tmp_path / "saved").params, ocr.params)
    assert hashes((tmp_path / "saved" / "README.md").read_text()).keys() == {shard.name for shard in shards}

    # Saving whole again leaves no shard of the earlier save behind, and the other way round.
    ocr.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == COMPLETE
    ocr.save_pretrained(tmp_path / "saved", max_shard_size=4_000_000)
    assert len(sorted((tmp_path / "saved").glob("flax_model*.safetensors"))) == 2
    assert not (tmp_path / "saved" / "flax_model.safetensors").exists()
    assert_same(TrOCR.from_pretrained(tmp_path / "saved").params, ocr.params)


def test_torch_weights_beyond_the_limit_load_in_transformers(tmp_path):
    convert(EMBEDDED, tmp_path / "torch", to="torch", dtype="float32", max_shard_size="5MB")
    assert len(list((tmp_path / "torch").glob("model-*.safetensors"))) == 4
    _, info = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "torch", output_loading_info=True)
    assert set(info["missing_keys"]) <= {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    assert not info["unexpected_keys"]
    back = convert(tmp_path / "torch", tmp_path / "flax")
    assert_same(back.params, jax.tree.map(lambda leaf: leaf.astype(np.float32), TrOCR.from_pretrained().params))


def test_a_save_that_fails_changes_nothing(ocr, tmp_path, monkeypatch):
    ocr.save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(ocr.processor.tokenizer, "save_pretrained", fail)  # the last part to be written
    for folder in ("saved", "new"):
        with pytest.raises(OSError, match="no space"):
            ocr.save_pretrained(tmp_path / folder, max_shard_size="2MB")
    assert names(tmp_path) == {"saved"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


def test_other_files_and_a_persons_card_are_kept(ocr, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save({"other": np.zeros(1)}))
    (folder / "README.md").write_text("# My own words")
    ocr.save_pretrained(folder)
    assert names(folder) == COMPLETE | {"notes.txt", "model.safetensors"}
    assert (folder / "README.md").read_text() == "# My own words"
    (folder / "README.md").unlink()
    ocr.save_pretrained(folder)
    first = (folder / "README.md").read_text()
    VisionEncoderDecoderModel(default_twin().config, params=default_twin().params).save_pretrained(folder)
    assert (folder / "README.md").read_text() != first  # ours gives way to ours


def test_weights_that_would_be_hidden_are_not_written(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "saved")
    with pytest.raises(FileExistsError, match=r"flax_model\.safetensors, which this library would read instead"):
        convert(EMBEDDED, tmp_path / "saved", to="torch")
    assert names(tmp_path / "saved") == COMPLETE
    # The other way round is fine: one folder for both libraries.
    convert(EMBEDDED, tmp_path / "torch", to="torch")
    convert(tmp_path / "torch", tmp_path / "torch")
    convert(tmp_path / "torch" / "model.safetensors", tmp_path / "torch")
    assert {"model.safetensors", "flax_model.safetensors"} <= names(tmp_path / "torch")
    # But not two models in it.
    convert(EMBEDDED, tmp_path / "other", to="torch")
    with pytest.raises(FileExistsError, match=r"model\.safetensors, which transformers reads, beside another"):
        convert(EMBEDDED, tmp_path / "other")
    assert "flax_model.safetensors" not in names(tmp_path / "other")


def test_a_file_is_no_folder(ocr, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        ocr.save_pretrained(tmp_path / "file")
    with whole_folder(tmp_path / "a" / "b") as staged:  # parents are made
        (staged / "x").write_text("x")
    assert (tmp_path / "a" / "b" / "x").read_text() == "x"


def test_parts_are_saved_as_whole_folders_too(ocr, tmp_path):
    network = VisionEncoderDecoderModel.from_pretrained(EMBEDDED)
    decoder = TrOCRForCausalLM(network.config.decoder, network.params["decoder"])
    decoder.save_pretrained(tmp_path / "decoder", max_shard_size="2MB")
    assert names(tmp_path / "decoder") >= {"README.md", "config.json", "flax_model.safetensors.index.json"}
    assert_same(TrOCRForCausalLM.from_pretrained(tmp_path / "decoder").params, decoder.params)
    ocr.processor.save_pretrained(tmp_path / "processor")
    assert "trocr_jax.TrOCRForCausalLM.from_pretrained(" in (tmp_path / "decoder" / "README.md").read_text()
    ocr.processor.tokenizer.save_pretrained(tmp_path / "a" / "tokenizer")
    ocr.processor.image_processor.save_pretrained(tmp_path / "a" / "images")
    again = TrOCRProcessor.from_pretrained(tmp_path / "processor")
    assert again.tokenizer.get_vocab() == ocr.processor.tokenizer.get_vocab()
    assert json.loads((tmp_path / "processor" / "preprocessor_config.json").read_text())["size"]


def test_hub_options_need_a_push(ocr, tmp_path):
    for options, given in (({"repo_id": "org/name"}, "repo_id"), ({"token": "hf_x"}, "token")):
        with pytest.raises(ValueError, match=f"^{given} given without push_to_hub=True"):
            ocr.save_pretrained(tmp_path / "saved", **options)
    for misspelt in ({"max_shard_siz": 5}, {"push_to_hub": True, "tokn": "hf_x"}):
        with pytest.raises(TypeError, match="unknown options"):
            ocr.save_pretrained(tmp_path / "saved", **misspelt)
    assert names(tmp_path) == set()


def test_a_move_that_fails_leaves_whole_files(ocr, tmp_path, monkeypatch):
    ocr.save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    other = VisionEncoderDecoderModel(default_twin().config, params=default_twin().params)
    moved, replace = [], os.replace

    def fail_on_weights(source, target):
        if os.path.dirname(target) == str(tmp_path / "saved"):
            moved.append(os.path.basename(target))
            if "safetensors" in moved[-1]:
                raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr("trocr_jax.checkpoints.folder.os.replace", fail_on_weights)
    with pytest.raises(OSError, match="no space"):
        other.save_pretrained(tmp_path / "saved")
    assert moved[-1] == "flax_model.safetensors"  # weights come last
    assert names(tmp_path / "saved") == COMPLETE
    assert (tmp_path / "saved" / "flax_model.safetensors").read_bytes() == before["flax_model.safetensors"]


def test_nothing_of_an_output_changes_where_a_folder_is_in_the_way(ocr, tmp_path):
    (tmp_path / "saved" / "tokenizer.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"tokenizer\.json is a folder"):
        ocr.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == {"tokenizer.json"}


def test_tokenizer_and_preprocessing_of_an_earlier_save_go(ocr, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("vocab.json", "special_tokens_map.json", "added_tokens.json", "processor_config.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("")
    ocr.save_pretrained(folder)
    assert names(folder) == COMPLETE
    assert TrOCR.from_pretrained(folder)(SAMPLES / "date.png") == ocr(SAMPLES / "date.png")
    # A decoder alone has neither, and takes neither away.
    VisionEncoderDecoderModel.from_pretrained(EMBEDDED).save_pretrained(folder)
    assert names(folder) == COMPLETE


def test_outputs_are_what_their_names_mean(ocr, tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    ocr.save_pretrained("..")
    assert names(tmp_path / "here") == COMPLETE | {"below"}
    assert "# here\n" in (tmp_path / "here" / "README.md").read_text()
    ocr.save_pretrained(".")
    assert names(tmp_path / "here" / "below") == COMPLETE
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    ocr.save_pretrained(tmp_path / "link")
    assert names(tmp_path / "elsewhere") == COMPLETE
    with pytest.raises(ValueError, match="has no name"):
        ocr.save_pretrained("")


def test_a_folder_that_exists_needs_nothing_beside_it(ocr, tmp_path, monkeypatch):
    # Such as a mounted volume: nothing can be renamed into it from its parent.
    replace = os.replace

    def same_folder_only(source, target):
        if not str(source).startswith(f"{os.path.dirname(target)}/"):
            raise OSError("Invalid cross-device link")
        replace(source, target)

    (tmp_path / "volume").mkdir()
    monkeypatch.setattr("trocr_jax.checkpoints.folder.os.replace", same_folder_only)
    ocr.save_pretrained(tmp_path / "volume")
    assert names(tmp_path / "volume") == COMPLETE
    assert names(tmp_path) == {"volume"}


def test_what_would_not_be_read_again_is_not_saved(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    model = VisionEncoderDecoderModel.from_pretrained(EMBEDDED)
    good = model.params
    damaged = (
        {},
        {**good, "more": np.zeros(1, np.float32)},
        jax.tree.map(lambda leaf: leaf * np.float16(np.nan), good),
        jax.tree.map(lambda leaf: leaf.astype(np.int32), good),
    )
    for params, words in zip(damaged, ("- decoder", r"\+ more", "not finite", "holds int32"), strict=True):
        model.params = params
        with pytest.raises(ValueError, match=rf"(?s)the parameters of this VisionEncoderDecoderModel.*{words}"):
            model.save_pretrained(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
