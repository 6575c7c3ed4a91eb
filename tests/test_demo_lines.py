"""What the demo's page reads, and its HTML, without a page."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import html
import io
import json
import re
import socket
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

from trocr_jax import cli
from trocr_jax.demo import cards, lines
from trocr_jax.demo.lines import EXAMPLES, Choices, Line, Reader, cropped_to_ink, draw_line
from trocr_jax.results import Recognition, Word


@pytest.fixture(scope="module")
def reader():
    """One program for one beam; nothing else of this file compiles in this process, but for two beams."""
    return Reader()


def test_images_are_read_in_order_and_a_bad_one_loses_no_other(reader, tmp_path):
    bad, wide = tmp_path / "bad.png", tmp_path / "wide.png"
    bad.write_bytes(b"no image")
    Image.new("1", (20_001, 1_000)).save(wide)
    Image.new("L", (30, 10)).save(tmp_path / "eps.png", "EPS")  # for which Pillow would start Ghostscript
    images = [
        ("a.png", draw_line(EXAMPLES[0])),
        ("bad.png", str(bad)),
        ("wide.png", wide),
        ("eps.png", tmp_path / "eps.png"),
        ("b", draw_line(EXAMPLES[2])),
    ]
    found = reader.read(images, Choices())
    assert [line.result.source for line in found] == ["a.png", "bad.png", "wide.png", "eps.png", "b"]
    assert [line.result.text for line in found] == [EXAMPLES[0], "", "", "", EXAMPLES[2]]
    assert "bad.png is not an image that can be read" in found[1].result.error
    assert "wide.png has 20001 x 1000 pixels; the most is 20 million" in found[2].result.error
    assert "eps.png is a file of the kind EPS" in found[3].result.error
    assert not any(str(tmp_path) in (line.result.error or "") for line in found)
    assert [line.picture is None for line in found] == [False, True, True, True, False]
    assert all(word.box is not None for word in found[0].result.words)
    [large] = reader.read([("large", draw_line(EXAMPLES[0]).resize((3000, 300)))], Choices())
    assert large.picture.width == lines.PICTURE_SIZE[0]


def test_constraints_and_beams_are_followed(reader):
    image, texts = [("line", draw_line(EXAMPLES[0]))], {"Total 31.42 EUR", "Total 31,41 EUR"}
    choices = Choices(num_beams=2, lexicon="Total 31.42 EUR\n\nTotal 31,41 EUR\r\nTotal", pattern="T.*R")
    [line] = reader.read(image, choices)
    assert {line.result.text, *(other.text for other in line.result.alternatives)} == texts
    [line] = reader.read(image, dataclasses.replace(choices, allowed="Total 31,EUR4"))
    assert line.result.text == "Total 31,41 EUR"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (Choices(model="../other"), "there is no model '../other'"),
        (Choices(num_beams=9), "beams go from 1 to 8"),
        (Choices(pattern="(a"), r"\(a"),
        (Choices(pattern="a" * 501), "pattern: at most 500 characters"),
        (Choices(lexicon="a" * 200_001), "lexicon: at most 200000 characters"),
    ],
)
def test_choices_that_cannot_be_followed_are_refused(reader, choices, message):
    with pytest.raises(ValueError, match=message):
        reader.read([("line", draw_line("a"))], choices)


def test_too_many_images_are_refused(reader):
    with pytest.raises(ValueError, match="33 images are too many: at most 32"):
        reader.read([("line", draw_line("a"))] * 33, Choices())


def test_two_visitors_get_their_own_texts(reader):
    def read(i):
        return reader.read([(str(i), draw_line(EXAMPLES[i % 3]))], Choices())[0].result

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(12)))
    assert [line.text for line in found] == [EXAMPLES[i % 3] for i in range(12)]
    assert [line.source for line in found] == [str(i) for i in range(12)]


def test_a_drawing_is_cut_to_its_ink():
    drawing = Image.new("RGBA", (640, 240), (0, 0, 0, 0))
    assert cropped_to_ink(drawing) is None
    ImageDraw.Draw(drawing).rectangle((100, 50, 199, 79), fill=(0, 0, 0, 255))
    cut = cropped_to_ink(drawing)
    assert cut.size == (100 + 2 * lines.MARGIN, 30 + 2 * lines.MARGIN)
    assert (cut.getpixel((0, 0)), cut.getpixel((lines.MARGIN, lines.MARGIN))) == ((255, 255, 255), (0, 0, 0))


def test_html_escapes_what_was_read_and_carries_the_json():
    evil = "<b>&'\""
    word = Word("<i>", 0, 3, 0.5, (0.0, 0.0, 2.0, 2.0))
    other = Recognition("<u>", (6, 2), (-2.0, -0.1))
    result = Recognition("<i>", (5, 2), (-0.7, -0.1), source=evil, words=(word,), alternatives=(other,))
    error = Recognition("", finish_reason="error", error=evil, source="x")
    page = cards.to_html([Line(result, Image.new("RGB", (3000, 30), "white")), Line(error, None)])
    assert evil not in page
    assert page.count(html.escape(evil)) == 2
    assert not re.search("<[ibu]>", page)
    assert "hsl(60 75% 80%)" in page  # a half is yellow
    assert "<li>&lt;u&gt; <span>12 %</span></li>" in page
    content = json.loads(base64.b64decode(re.search('href="data:application/json;base64,([^"]+)"', page)[1]))
    assert [Recognition.from_dict(line) for line in content] == [result, error]
    picture = base64.b64decode(re.search('src="data:image/png;base64,([^"]+)"', page)[1])
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width == 3000
    assert evil not in cards.message(evil)
    assert cards.to_text([Line(result, None), Line(error, None)]) == "<i>\n"


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "trocr_jax.demo.page", raising=False)
    assert cli.main(["demo"]) == 2
    assert 'pip install "trocr-jax[demo]"' in capsys.readouterr().err


def test_a_taken_port_is_told_at_once(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be had" in capsys.readouterr().err
    assert cli.main(["demo", "--port", "65536"]) == 2
    assert cli.main(["demo", "--host", "256.0.0.1"]) == 2


def test_only_the_page_imports_gradio():
    modules = "import sys, trocr_jax.cli, trocr_jax.demo.cards"
    code = f"{modules}; trocr_jax.cli._parser(); assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
