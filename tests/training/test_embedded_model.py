"""The recipe of the model inside the package, and the table of what it reads."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys
import types
import zipfile

import matplotlib
import numpy as np
import pytest
from PIL import Image

from benchmarks import embedded_model, embedded_typed, model_card
from benchmarks.embedded_model import (
    SHARES,
    SHORT_SHARE,
    TYPED_SHARE,
    cased,
    changed,
    family,
    in_case_of,
    some_faces,
)
from benchmarks.embedded_typed import type_line, typed_lines
from benchmarks.embedded_words import (
    CUT_WORDS,
    RECEIPT_WORDS,
    SHORT,
    short_words,
    with_cut_words,
    with_receipts,
    with_straight_quotes,
)
from tests.conftest import SAMPLES
from trocr_jax import TrOCR
from trocr_jax.datasets import open_dataset
from trocr_jax.datasets.example import Example
from trocr_jax.datasets.fonts import ASCII, Face
from trocr_jax.datasets.synthetic import SyntheticLines
from trocr_jax.evaluation.report import Compared
from trocr_jax.recognizer import EMBEDDED

FONTS = pathlib.Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained(dtype="float32")


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("Cash1er:", "CASHIER:", "Cashier:"),
        ("TAMAN DAVA", "TAMAN DAYA", "TAMAN DAYA"),
        ("Total Qty", "TOTAL QTY", "Total Qty"),
        ("Toal", "TOTAL", "Total"),
        ("Tota1", "TOTAL", "Total"),
        ("Amount N0", "AMOUNT NO", "Amount NO"),
        ("no idea", "AMOUNT", None),
        ("", "12.50", "12.50"),
    ],
)
def test_labels_of_capitals_get_the_case_that_was_read(text, label, expected):
    assert in_case_of(text, label) == expected


def test_lines_of_unknown_case_are_left_out(ocr):
    lines = [Example(line.name, line.text.upper(), line.open) for line in open_dataset(str(SAMPLES))]
    wrong = Example("wrong", "QUITE ANOTHER TEXT", lines[0].open)
    assert [line.text for line in cased(ocr, [*lines, wrong])] == [line.text for line in open_dataset(str(SAMPLES))]


def test_faces_held_out_are_in_no_training_line(monkeypatch):
    drawn = ASCII | {" "}
    names = ["Caladea-Bold.ttf", "DejaVuSans.ttf", *(f"Lato-{i}.ttf" for i in range(9))]
    lines = SyntheticLines(["a"], [Face(name, frozenset(drawn)) for name in names], 5)
    monkeypatch.setattr(embedded_model, "HELD_OUT", ("Caladea",))
    assert [face.path for face in some_faces(lines, held_out=True).faces] == ["Caladea-Bold.ttf"]
    trained = [family(face.path) for face in some_faces(lines, held_out=False).faces]
    assert sorted(trained) == ["DejaVuSans", *["Lato"] * embedded_model.FACES_OF_A_FAMILY]


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (300, 12), (400, 64)])
def test_changes_depend_on_the_generator_alone_and_leave_a_line(size):
    image = Image.effect_noise(size, 60).convert("RGB")
    for seed in range(40):
        first, again = (changed(image, np.random.default_rng(seed)) for _ in range(2))
        assert first.mode == "RGB"
        assert first.tobytes() == again.tobytes()
    assert any(changed(image, np.random.default_rng(seed)).tobytes() != image.tobytes() for seed in range(40))


def test_a_part_of_the_words_are_as_on_receipts_and_a_part_are_cut():
    words = ["word"] * 4000
    receipts = with_receipts(words, np.random.default_rng(0))[4000:]
    assert len(receipts) == pytest.approx(RECEIPT_WORDS * 4000, abs=8)
    assert any(re.fullmatch(r"[0-9]{2}:[0-9]{2}:[0-9]{2}", word) for word in receipts)
    assert set("".join(receipts)) <= ASCII
    cut = with_cut_words(words, np.random.default_rng(0))
    changed_words = [word for word in cut if word != "word"]
    assert len(cut) == 4000
    # A quarter of those chosen keep all four letters.
    assert len(changed_words) / 4000 == pytest.approx(0.75 * CUT_WORDS, abs=0.015)
    assert set(changed_words) == {"w", "wo", "wor", "ord", "rd", "d"}


def test_half_of_the_quotation_marks_are_straight():
    words = with_straight_quotes(["“it’s”"] * 1000, np.random.default_rng(0))
    assert set(words) == {"“it’s”", '"it\'s"'}
    assert words.count("“it’s”") == pytest.approx(500, abs=60)


def test_short_lines_have_short_words_numbers_and_signs():
    words = short_words(["of", "whales"] * 400, np.random.default_rng(0))
    assert max(map(len, words)) <= SHORT
    assert words.count("of") == 400
    assert sum(word.isdigit() for word in words) == 200
    assert "&" in words


def test_a_typed_line_depends_on_the_generator_alone_and_shows_its_text(ocr):
    font = str(FONTS / "DejaVuSansMono.ttf")
    images = [type_line("Yours sincerely,", font, np.random.default_rng(seed)) for seed in range(40)]
    assert images[3].tobytes() == type_line("Yours sincerely,", font, np.random.default_rng(3)).tobytes()
    assert len({image.tobytes() for image in images}) == 40
    contrasts = [np.ptp(np.asarray(image.convert("L"), np.float32)) for image in images]
    assert min(contrasts) > 60
    texts = [result.text for result in ocr.stream(images)]
    assert texts.count("Yours sincerely,") > 20


def test_a_typed_line_of_one_sign_is_drawn():
    for seed in range(40):
        for text in (".", "I", "A."):
            assert type_line(text, str(FONTS / "DejaVuSansMono.ttf"), np.random.default_rng(seed)).mode == "RGB"


def test_typed_lines_without_a_typewriters_face_are_refused():
    lines = SyntheticLines(["a"], [Face("Caladea.ttf", frozenset(ASCII))], 5)
    with pytest.raises(ValueError, match=r"no face is a typewriter's: install fonts-gnutypewriter"):
        typed_lines(lines)


@pytest.fixture
def dejavu_as_typewriter(monkeypatch):
    monkeypatch.setattr(embedded_typed, "TYPEWRITERS", re.compile(r"DejaVuSansMono\.ttf"))


@pytest.mark.usefixtures("dejavu_as_typewriter")
def test_kinds_of_lines_have_their_shares(ocr, data):
    faces = [Face(str(FONTS / name), frozenset(ASCII | {" "})) for name in ("DejaVuSans.ttf", "DejaVuSansMono.ttf")]
    lines = embedded_model.training_lines(ocr, data, SyntheticLines(["a"], faces, 1000))
    assert len(lines) == 1000
    scans = [line for line in lines if not line.name.startswith(("synthetic", "typed"))]
    assert len(scans) == pytest.approx(1000 * sum(SHARES.values()), abs=2)
    assert sum(line.name.startswith("typed") for line in lines) == 1000 * TYPED_SHARE
    assert sum(len(line.text) <= SHORT for line in lines[-round(1000 * SHORT_SHARE) :]) == 1000 * SHORT_SHARE
    assert {line.name for line in scans} == {
        line.name for name in SHARES for line in open_dataset(f"{data}/{name}.zip/train")
    }


@pytest.fixture
def data(tmp_path):
    """Archives of the samples in the places of the scanned lines, and a text."""
    for name in SHARES:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for split in ("train", "val", "test"):
                for path in SAMPLES.iterdir():
                    archive.write(path, f"{name}/{split}/{path.name}")
    (tmp_path / "words.txt").write_text("Some words to draw, in lines. " * 20)
    return tmp_path


def test_the_first_model_comes_out_of_the_history(tmp_path):
    root, commit = pathlib.Path(__file__).parents[2], embedded_model.START.split(":")[0]
    if not (root / ".git").exists() or subprocess.run(["git", "-C", root, "cat-file", "-e", commit]).returncode:
        pytest.skip("needs a clone with its history")
    folder = embedded_model.model_to_start_from(tmp_path)
    assert TrOCR.from_pretrained(folder).config.encoder.image_shape == (32, 320)


def test_a_history_without_the_first_model_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_model, "START", "0000000:nothing")
    with pytest.raises(SystemExit, match=r"0000000:nothing cannot be .* in a full clone .* or name a model .* --start"):
        embedded_model.model_to_start_from(tmp_path)


def test_the_second_training_alone_draws_receipts_words(data):
    options = types.SimpleNamespace(texts=[data / "words.txt"], fonts=[FONTS])
    first, second = (embedded_model.lines_to_draw(stage, options) for stage in embedded_model.STAGES)
    assert set(first.words) == {"Some", "words", "to", "draw,", "in", "lines."}
    assert len(second.words) > len(first.words)
    assert (len(first), len(second)) == (9000 * 32, 1500 * 32)


@pytest.mark.slow
@pytest.mark.usefixtures("dejavu_as_typewriter")
def test_one_command_trains_it_and_another_reads_with_it(data, monkeypatch, capsys):
    monkeypatch.setattr(embedded_model, "HELD_OUT", ("DejaVuSerif",))
    monkeypatch.setattr(model_card, "NUM_DRAWN", 5)
    common = ["--data", str(data), "--texts", str(data / "words.txt"), "--fonts", str(FONTS)]
    command = ["embedded_model", *common, "--steps", "2", "2", "--start", str(EMBEDDED), "--output", str(data / "out")]
    monkeypatch.setattr(sys, "argv", command)
    embedded_model.main()
    first, second = (data / "out" / stage.name for stage in embedded_model.STAGES)
    log = (first / "training" / "log.csv").read_bytes()
    assert len(log.splitlines()) == 4
    # As if it had been interrupted between the trainings: the same command trains the second alone.
    shutil.rmtree(second)
    shutil.rmtree(data / "out" / "float16")
    embedded_model.main()
    assert (first / "training" / "log.csv").read_bytes() == log
    assert len((second / "training" / "log.csv").read_text().splitlines()) == 4
    shutil.rmtree(first)
    shutil.rmtree(second)
    trained = data / "out" / "float16"
    assert TrOCR.from_pretrained(trained).config.encoder.image_shape == embedded_model.IMAGE_SIZE
    monkeypatch.setattr(sys, "argv", ["model_card", *common, "--models", str(trained), "--output", str(data / "card")])
    model_card.main()
    assert capsys.readouterr().out.endswith((data / "card" / "results.md").read_text())
    rows = json.loads((data / "card" / "results.json").read_text())["rows"]
    assert [row["lines"] for row in rows] == [*model_card.SCANS, model_card.DRAWN] * 2  # all texts are trained on
    assert rows[4]["cer"] == [0, 0, 0]  # the samples, by the model inside the package


def test_the_picture_has_the_lines_that_were_misread():
    def report(*texts):
        lines = [Compared(Example("a", "ab", lambda: Image.new("RGB", (90, 20))), text, text != "ab", 1.0, False)
                 for text in texts]  # fmt: skip
        return types.SimpleNamespace(worst=lambda count: [line for line in lines if line.edits][:count])

    picture = model_card.misread({"one": report("ab", "ac"), "another": report("b")})
    assert picture.size == (model_card.WIDTH, 2 * (model_card.HEIGHT + model_card.STRIP))


def test_texts_that_were_trained_on_are_told_apart():
    lines = [Compared(Example("a", text, Image.new), text[:-1], 1, 1.0, False) for text in ("rm3.01", "UNSEEN")]
    name = model_card.REPEATING
    rows = model_card.rows_of("mine", {name: types.SimpleNamespace(compared=lines)}, {"rm3.01"})
    assert [(row["lines"], row["number"]) for row in rows] == [(name, 2), (f"{name}, texts unseen", 1)]


def test_missing_fonts_are_told():
    lines = SyntheticLines(["a"], [Face("Caladea.ttf", frozenset(ASCII))], 5)
    with pytest.raises(ValueError, match=r"fonts of B612, Cantarell, CharisSIL.* are missing"):
        some_faces(lines, held_out=True)
