"""Synthetic lines: the same whenever they are asked for, and never a glyph that is not there."""

from __future__ import annotations

import pathlib
import pickle
import string
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image
from PIL.ImageFont import truetype

from trocr_jax import cli
from trocr_jax.datasets import open_dataset
from trocr_jax.datasets.fonts import ASCII, find_faces, find_fonts
from trocr_jax.datasets.synthetic import CURRENCIES, SyntheticLines, draw_line, synthetic_lines, write_archive

# matplotlib brings DejaVu and STIX along, and fonts for mathematics without most letters.
FONTS = pathlib.Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
SOME = [str(FONTS / name) for name in ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf")]
TEXT = "The quick brown fox – naïve, über 12 – jumps over 日本 the lazy dog’s Ελλάδα back. " * 3


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def lines(text_file):
    return synthetic_lines([text_file], num_lines=200, fonts=SOME, most_characters=30)


@pytest.fixture(scope="module")
def faces():
    return {pathlib.Path(face.path).name: face for face in find_faces(find_fonts([FONTS]), "aé日Ω \u200b")}


def test_they_are_at_hand_and_nothing_heavy_comes_along():
    code = (
        "import sys; from trocr_jax.datasets import synthetic_lines;"
        "assert not {'jax', 'matplotlib', 'fontTools', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_faces_without_all_letters_and_digits_are_left_out(faces):
    assert {"DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf"} <= faces.keys()
    for name in ("DejaVuSansDisplay.ttf", "STIXSizOneSymReg.ttf"):
        assert (FONTS / name).is_file()
        assert name not in faces


def test_faces_whose_glyphs_are_not_what_their_tables_say_are_left_out(faces):
    # TeX's have other signs in the places of some of ASCII; the last resort has one box for all letters.
    for name in ("cmex10.ttf", "cmsy10.ttf", "LastResortHE-Regular.ttf"):
        assert (FONTS / name).is_file()
        assert name not in faces
    assert ASCII - faces["cmr10.ttf"].characters == set("\"<>\\_{|}'^`~")


def test_faces_of_capitals_alone_are_left_out(tmp_path):
    with TTFont(FONTS / "DejaVuSans.ttf") as font:
        for letter in string.ascii_lowercase:
            font["glyf"][letter] = font["glyf"][letter.upper()]
        font.save(tmp_path / "capitals.ttf")
    assert truetype(tmp_path / "capitals.ttf", 20).getmask("h").getbbox() is not None
    assert list(find_faces([str(tmp_path / "capitals.ttf")])) == []


def test_coverage_is_of_what_a_face_draws(faces):
    sans = faces["DejaVuSans.ttf"]
    assert sans.covers("a é Ω" + string.printable[:94])
    assert not sans.covers("日")
    assert not sans.covers("\u200b")  # in its table, but without ink
    assert sans.characters == ASCII | set("aéΩ ")


def test_files_that_are_no_fonts_are_left_out(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "notes.txt").write_text("x")
    assert find_fonts([tmp_path]) == [str(tmp_path / "broken.ttf")]
    assert list(find_faces(find_fonts([tmp_path]))) == []


def test_a_line_is_the_same_whenever_it_is_asked_for(lines, text_file):
    again = synthetic_lines([text_file], num_lines=5, fonts=SOME, most_characters=30)
    assert [line.text for line in again] == [line.text for line in lines[:5]]
    assert all(a.open().tobytes() == b.open().tobytes() for a, b in zip(again, lines[:5], strict=True))
    sent = pickle.loads(pickle.dumps(lines[3]))
    assert sent.open().tobytes() == lines[3].open().tobytes()
    other = synthetic_lines([text_file], num_lines=5, fonts=SOME, seed=1, most_characters=30)
    assert [line.text for line in other] != [line.text for line in again]
    assert lines[-1].text == lines[199].text
    assert len({line.text for line in lines}) > 100
    with pytest.raises(IndexError):
        lines[200]


def test_texts_are_words_of_the_file_that_the_fonts_draw(lines):
    words = {word for word in TEXT.split() if word != "日本"}
    upper = {word.upper() for word in words}
    numbers = 0
    for line in lines:
        assert 1 <= len(line.text) <= 30
        assert "日" not in line.text
        if not (set(line.text.split()) <= words or set(line.text.split()) <= upper):
            numbers += 1
            assert any(character.isdigit() for character in line.text)
    assert 10 < numbers < 60  # 15 % of them


def test_amounts_in_all_currencies_and_capitals_with_accents_are_among_the_lines(text_file):
    lines = synthetic_lines([text_file], num_lines=600, fonts=SOME[:1], most_characters=30)
    assert set("ÏÜΆΔ" + CURRENCIES) <= set("".join(line.text for line in lines))
    assert "日" not in lines.faces[0].characters


def test_scripts_that_are_not_set_letter_by_letter_are_left_out(tmp_path):
    (tmp_path / "mixed.txt").write_text(
        "\u05e9\u05dc\u05d5\u05dd \u0633\u0644\u0627\u0645 u\u0332p \u0416\u0443\u043a abc"
    )
    with TTFont(SOME[0]) as font:
        assert font.getBestCmap().keys() >= set(map(ord, "\u05e9\u05dc\u0633\u0644u\u0332p\u0416"))
    lines = synthetic_lines([tmp_path / "mixed.txt"], num_lines=1, fonts=SOME[:1])
    assert lines.words == ["\u0416\u0443\u043a", "abc"]


def test_the_face_of_a_line_covers_it(lines):
    for i in range(50):
        text, face = lines._drawn(np.random.default_rng([0, i, 0]))
        assert face.covers(text)
        assert text == lines[i].text


def test_where_no_face_covers_a_text_it_is_an_error(lines):
    with pytest.raises(ValueError, match="no face draws '日'"):
        SyntheticLines(["日"], lines.faces, 1, most_characters=1, seed=3)[0]


def test_lines_have_ink_all_along_and_a_contrast(lines):
    for line in lines[:60]:
        levels = np.asarray(line.open().convert("L"), float)
        assert levels.shape[0] >= 5
        assert levels.max() - levels.min() > 40, line


def test_the_ink_of_a_line_is_whole():
    # The widths of the ink of a text that ends in strokes at both ends, on images of all kinds, against the font's own.
    path = str(FONTS / "DejaVuSans.ttf")
    left, _, right, _ = truetype(path, 40).getbbox("H ground H")
    for seed in range(20):
        image = draw_line("H ground H", path, 40, np.random.default_rng(seed))
        assert image.width >= right - left + 2
        assert image.height >= 40


def test_backgrounds_are_drawn_on(text_file, tmp_path):
    Image.new("RGB", (20, 20), (250, 120, 250)).save(tmp_path / "paper.png")
    lines = synthetic_lines([text_file], num_lines=30, fonts=SOME, backgrounds=[tmp_path / "paper.png"])
    pink = [np.median(np.asarray(line.open()), axis=(0, 1))[1] < 200 for line in lines]
    assert 5 < sum(pink) < 28


def test_an_archive_is_a_dataset(lines, tmp_path):
    write_archive(lines[:4], tmp_path / "s.zip")
    found = open_dataset(tmp_path / "s.zip")
    assert [line.text for line in found] == [line.text for line in lines[:4]]
    assert found[2].open().tobytes() == lines[2].open().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["s.zip"]


def test_the_command_makes_a_dataset(text_file, tmp_path, capsys):
    arguments = ["data", "synthesize", str(text_file), "--fonts", *SOME, "--max-characters", "12", "--lines", "6"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli.main([*arguments, "--output", str(tmp_path / f"{name}.zip"), "--seed", str(seed)]) == 0
    assert "a.zip: 6 lines, each in one of 3 fonts" in capsys.readouterr().out
    contents = [(tmp_path / f"{name}.zip").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    assert max(len(line.text) for line in open_dataset(tmp_path / "a.zip")) <= 12
    capsys.readouterr()
    assert cli.main([*arguments, "--output", str(tmp_path / "a.zip")]) == 2
    assert "a.zip is there already" in capsys.readouterr().err
    assert (tmp_path / "a.zip").read_bytes() == contents[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts": ["none.txt"]}, "none.txt does not exist"),
        ({"fonts": ["nowhere"]}, "no font draws all of ASCII's letters"),
        ({"texts": ["{text_file.parent}/long.txt"], "max-characters": ["2"]}, "no word of at most 2 characters"),
        ({"output": ["lines.tar"]}, "lines.tar does not end in .zip"),
        ({"backgrounds": ["none.png"]}, "none.png does not exist"),
    ],
)
def test_mistakes_are_told_and_give_status_2(text_file, tmp_path, monkeypatch, capsys, changed, message):
    monkeypatch.chdir(tmp_path)
    (text_file.parent / "long.txt").write_text("long words alone")
    given = {"texts": [str(text_file)], "fonts": SOME, "output": ["a.zip"], "lines": ["3"], **changed}
    options = [part for name in given if name != "texts" for part in (f"--{name}", *given[name])]
    assert cli.main(["data", "synthesize", given["texts"][0].format(text_file=text_file), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
