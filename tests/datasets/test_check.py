"""`trocr-jax data check`: each thing that can be wrong is found, and nothing else."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

import trocr_jax
from tests.conftest import SAMPLES
from tests.datasets.files import grey, pack, write
from trocr_jax import cli

ASSETS = pathlib.Path(trocr_jax.__file__).parent / "assets" / "trocr-nano-printed"
MOST_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model without weights whose tokenizer has ASCII letters alone, one a token, and whose texts have 12 tokens."""
    folder = tmp_path_factory.mktemp("model")
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>", *letters)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    backend.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.save(str(folder / "tokenizer.json"))
    config = json.loads((ASSETS / "config.json").read_text())
    config["decoder"]["max_position_embeddings"] = MOST_TOKENS
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def check(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    status = cli.main(["data", "check", *map(str, arguments)])
    return status, *capsys.readouterr()


def split(folder, texts, first_level=0):
    """A split of that many images, all different: image i is of grey level first_level + i."""
    labels = "".join(f"{i}.png\t{text}\n" for i, text in enumerate(texts))
    return write(folder, {"labels.tsv": labels, **{f"{i}.png": grey(first_level + i) for i in range(len(texts))}})


def test_nothing_is_found_where_nothing_is_wrong(tmp_path, model, capsys):
    train, test = split(tmp_path / "train", ["abc def", "x"]), split(tmp_path / "test", ["abcdefghij"], 100)
    status, out, err = check(capsys, "--model", model, train, test)
    assert (status, err) == (0, "")
    expected = f"{train}: 2 lines\n  nothing found\n{test}: 1 lines\n  nothing found\nbetween them\n  nothing found\n"
    assert out == expected
    status, out, err = check(capsys, "--model", model, train, test, train)
    assert (status, out) == (2, "")
    assert f"{train} is named twice" in err


WRONG = {
    "images cannot be read: 2": (
        {"0.png": b"broken", "1.png": None},
        ["0.png is not an image", "1.png does not exist"],
    ),
    "images look rotated: much higher than wide: 1": ({"1.png": grey(99, (10, 40))}, ["1.png"]),
    "images come again with another text: 1": ({"1.png": grey(0)}, ["1.png is ", "'efgh', 'abcd'"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_images_that_are_wrong_are_found(tmp_path, model, capsys, what):
    changed, named = WRONG[what]
    folder = split(tmp_path / "s", ["abcd", "efgh", "ijkl"])
    for name, content in changed.items():
        (folder / name).unlink()
        if content is not None:
            write(folder, {name: content})
    status, out, _ = check(capsys, "--model", model, folder)
    assert status == 1
    assert f"  wrong: {what}\n" in out
    assert all(name in out for name in named)
    assert out.count("wrong:") == 1
    assert "note:" not in out


def test_an_image_that_comes_again_with_the_same_text(tmp_path, model, capsys):
    folder = split(tmp_path / "s", ["abcd", "abcd", "abcd"])
    write(folder, {"2.png": grey(0)})
    status, out, _ = check(capsys, "--model", model, folder)
    assert status == 1
    assert f"wrong: images come again with the same text: 1\n    {folder}/2.png is {folder}/0.png\n" in out


def test_high_images_of_short_texts_are_not_called_rotated(tmp_path, model, capsys):
    folder = write(split(tmp_path / "s", ["ab"]), {"0.png": grey(9, (10, 40))})
    assert check(capsys, "--model", model, folder)[0] == 0


def test_texts_that_the_model_cannot_write_are_found(tmp_path, model, capsys):
    # The longest text that fits has 11 letters and spaces, the one before the first counted, and the end.
    folder = split(tmp_path / "s", ["abcdefghij", "abcdefghijk", "naïve É", "ïï", "two  s"])
    status, out, _ = check(capsys, "--model", model, folder, "--show", 1)
    assert status == 1
    assert "texts have characters that the tokenizer cannot spell: 'ï' U+00EF (2), 'É' U+00C9 (1): 2\n" in out
    unchanged = "texts are not what the tokenizer makes of them, though it can spell their characters: 1"
    assert f"{unchanged}\n    {folder}/4.png: 'two  s'\n" in out
    assert f"    {folder}/2.png: 'naïve É'\n    and 1 more (--show)\n" in out
    assert (
        f"longer than the model can write, {MOST_TOKENS} tokens with special ones: 1\n    {folder}/1.png: 13 tokens\n"
        in out
    )


def test_the_token_before_a_text_counts_where_labels_have_one(tmp_path, model, capsys):
    # The text of 11 tokens, the end, and <s> in front, as transformers' recipes train models that start from it.
    hf = shutil.copytree(model, tmp_path / "hf")
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": 0}))
    folder = split(tmp_path / "s", ["abcdefghij", "abcdefghi"])
    assert check(capsys, "--model", model, folder)[0] == 0
    status, out, _ = check(capsys, "--model", hf, folder)
    assert status == 1
    assert f"tokens with special ones: 1\n    {folder}/0.png: {MOST_TOKENS + 1} tokens\n" in out


def test_what_is_only_worth_knowing_gives_status_0(tmp_path, capsys):
    folder = split(tmp_path / "s", ["", "cafe\u0301"])
    status, out, _ = check(capsys, folder)
    assert status == 0
    assert "note: texts are empty: 1\n" in out
    assert "note: texts are not in Unicode's NFC, so that equal letters may differ: 1\n" in out


def test_leaks_between_splits_are_found_in_archives_too(tmp_path, model, capsys):
    split(tmp_path / "set/train", ["abcd", "efgh"])
    split(tmp_path / "set/test", ["xyz", "efgh"], 100)
    archive = pack(tmp_path / "set", tmp_path / "set.zip")
    status, out, _ = check(capsys, "--model", model, f"{archive}/train", f"{archive}/test")
    assert status == 0
    assert f"note: texts of {archive}/test are in {archive}/train too: 1\n    {archive}/set/test/1.png: 'efgh'\n" in out
    write(tmp_path / "set/test", {"0.png": grey(1)})
    status, out, _ = check(capsys, "--model", model, tmp_path / "set/train", tmp_path / "set/test")
    assert status == 1
    assert "set/test/0.png is " in out.split("wrong: images of ")[1]


def test_histograms_are_drawn_of_every_split(tmp_path, model, capsys):
    splits = split(tmp_path / "a", ["abcd", "efgh"]), split(tmp_path / "b", ["abcdefghijklmnop"], 9)
    for name in ("h.png", "h.svg"):
        assert check(capsys, "--model", model, *splits, "--plot", tmp_path / name)[0] == 1
    picture = np.asarray(Image.open(tmp_path / "h.png").convert("L"))
    assert picture.shape == (840, 1320)
    assert (picture < 128).sum() > 5000
    svg = (tmp_path / "h.svg").read_text()
    assert "the model's limit" in svg
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "h.png", "h.svg"}


def test_mistakes_are_told_and_give_status_2(tmp_path, capsys):
    for arguments, message in (
        ((tmp_path / "none",), "does not exist"),
        ((SAMPLES, "--model", tmp_path), "holds no config.json"),
        ((SAMPLES, "--plot", tmp_path / "h.txt"), "let it end in .png"),
        ((SAMPLES, "--plot", tmp_path / "none" / "h.png"), "there is no folder to write"),
    ):
        status, out, err = check(capsys, *arguments)
        assert (status, out) == (2, "")
        assert message in err


def test_the_samples_are_sound(capsys):
    assert check(capsys, SAMPLES)[0] == 0
