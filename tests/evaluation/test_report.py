"""Reports on lines that a stand-in reads, so that every number is known."""

from __future__ import annotations

import html
import json
import re

import pytest
from PIL import Image

from trocr_jax.config import write_json
from trocr_jax.datasets import Example
from trocr_jax.evaluation import Normalization, evaluate
from trocr_jax.evaluation.html import mark, to_html, write_html
from trocr_jax.processing.image import ImageError
from trocr_jax.results import Recognition

# Reference, what is read, and whether its image can be read.
LINES = (
    ("TOTAL 9.00", "TOTAL 9.00", True),
    ("CASH", "CAsH", True),
    ("<b>&amp;</b>", "<b>&</b>", True),
    ("lost", "", False),
    ("a longer line of text, read badly", "a onger lime", True),
)


class Reader:
    """Reads in images of width i + 1 the text of LINES[i]."""

    source = "org/model"

    def __init__(self):
        self.calls = []

    def stream(self, images, **options):
        self.calls.append(options)
        for image in images:
            yield Recognition(LINES[image.width - 1][1], token_ids=(5,), token_log_probs=(-0.5,))


def example(i):
    def opened():
        if not LINES[i][2]:
            raise ImageError(f"line{i}.png is not an image")
        return Image.new("RGB", (i + 1, 4), "white")

    return Example(f"line{i}.png", LINES[i][0], opened)


EXAMPLES = [example(i) for i in range(len(LINES))]


@pytest.fixture(scope="module")
def report():
    return evaluate(Reader(), EXAMPLES, protocol="sroie", train_texts=["CASH", "TOTAL 9.00"], num_beams=2)


def test_rates_are_of_the_lines_that_could_be_read(report):
    # 1, 4 and 22 edits of 10 + 4 + 12 + 33 characters; 0, 1, 1 and 6 of 2 + 1 + 1 + 7 words.
    edits = [line.edits for line in report.compared]
    assert edits[:3] == [0, 1, 4]
    assert report.all.lines == 4
    assert report.all.rates["cer"].value == pytest.approx(sum(edits) / 59)
    assert report.all.rates["wer"].value == pytest.approx(8 / 11)
    assert report.all.rates["line_accuracy"].value == 1 / 4
    # "TOTAL", "9.00" and "a" of 7 words read, and of 11 there.
    assert report.all.rates["word_precision"].value == pytest.approx(3 / 7)
    assert report.all.rates["word_recall"].value == pytest.approx(3 / 11)
    assert report.unreadable == [("line3.png", "line3.png is not an image")]


def test_a_line_that_the_search_finds_no_text_for_counts_as_empty():
    class Silent(Reader):
        def stream(self, images, **_options):
            for _ in images:
                yield Recognition("", finish_reason="error", error="no text was left")

    found = evaluate(Silent(), EXAMPLES[:2])
    assert (found.all.lines, found.unreadable) == (2, [])
    assert found.all.rates["cer"].value == 1


def test_texts_of_the_training_lines_are_left_out_of_unseen(report):
    assert report.unseen.lines == 2
    assert report.unseen.rates["wer"].value == pytest.approx(7 / 8)
    assert evaluate(Reader(), EXAMPLES, train_texts=[line[0] for line in LINES]).unseen.rates == {}
    ignoring = evaluate(Reader(), EXAMPLES, train_texts=["cash"], normalization=Normalization(ignore_case=True))
    assert ignoring.unseen.lines == 3
    assert ignoring.all.rates["line_accuracy"].value == 2 / 4
    assert evaluate(Reader(), EXAMPLES).unseen is None


def test_lengths_confusions_and_worst_lines(report):
    assert {name: score.lines for name, score in report.by_length.items()} == {
        "0 to 10": 2,
        "11 to 20": 1,
        "21 to 40": 1,
    }
    assert ("S", "s", 1) in report.confusions
    assert sum(count for _, _, count in report.confusions) == sum(line.edits for line in report.compared)
    assert [line.example.name for line in report.worst(2)] == ["line4.png", "line2.png"]
    assert len(report.worst(9)) == 3


def test_json_has_the_rates_first_and_can_be_read_back(report, tmp_path):
    write_json(tmp_path / "r.json", report.to_dict())
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["lines"] == 4
    assert content["cer"] == report.all.rates["cer"].value
    assert content["wer"] == report.all.rates["wer"].value
    low, high = content["intervals"]["cer"]
    assert 0 <= low < content["cer"] < high
    assert content["model"] == "org/model"
    assert content["options"] == {"num_beams": 2}
    assert content["normalization"]["said"] == "both texts as they are"
    assert content["unreadable"] == [{"name": "line3.png", "error": "line3.png is not an image"}]
    assert content["readings"][1]["text"] == "CAsH"
    assert content["unseen"]["lines"] == 2


def test_a_path_and_pairs_are_read_like_examples(tmp_path):
    pairs = [(line.open(), line.text) for line in EXAMPLES if line.name != "line3.png"]
    found = evaluate(Reader(), (pair for pair in pairs))
    assert [line.to_dict() for line in found.compared] == [
        {**line.to_dict(), "name": f"image {i}"} for i, line in enumerate(evaluate(Reader(), EXAMPLES).compared)
    ]
    pairs[1][0].save(tmp_path / "a.png")
    (tmp_path / "labels.tsv").write_text("a.png\tCASH\n")
    [line] = evaluate(Reader(), tmp_path).compared
    assert (line.example.text, line.text) == ("CASH", "CAsH")
    with pytest.raises(TypeError, match=r"^line 1 .* is int; pass an Example, or a pair"):
        evaluate(Reader(), [pairs[0], 3])


def test_options_reach_the_search_and_unknown_ones_are_refused():
    reader = Reader()
    evaluate(reader, EXAMPLES, batch_size=3, num_beams=4)
    assert reader.calls[0].items() >= {"batch_size": 3, "num_beams": 4}.items()
    with pytest.raises(ValueError, match="protocol is 'icdar'; choose one of iam, sroie, str"):
        evaluate(reader, EXAMPLES, protocol="icdar")
    with pytest.raises(TypeError, match="reject_below"):
        evaluate(reader, EXAMPLES, reject_below=0.5)
    with pytest.raises(TypeError, match="constraint is a list"):
        evaluate(reader, EXAMPLES, constraint=[None] * len(EXAMPLES))
    with pytest.raises(ValueError, match="none of 1 images could be read, the first because line3"):
        evaluate(reader, EXAMPLES[3:4])
    with pytest.raises(ValueError, match="there are no lines: pass at least one"):
        evaluate(reader, [])
    with pytest.raises(ValueError, match="texts of all 1 lines are empty"):
        evaluate(reader, [Example("a", "", EXAMPLES[0].open)])


@pytest.mark.parametrize(("protocol", "names"), [("iam", set()), ("str", {"word_accuracy"}), (None, set())])
def test_protocols_add_their_metrics(protocol, names):
    found = evaluate(Reader(), EXAMPLES, protocol=protocol, samples=10)
    assert set(found.all.rates) == {"cer", "wer", "line_accuracy"} | names


def test_the_page_escapes_all_text_and_holds_all_pictures(report, tmp_path):
    write_html(report, tmp_path / "r.html", worst=3)
    page = (tmp_path / "r.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "<b>&" not in page
    assert "line3.png is not an image" in page
    assert not re.search(r"<script|https?://|\bsrc=\"(?!data:)", page)
    shown = re.findall(r"<b>text</b>(.*?)</div>", page)
    assert [html.unescape(re.sub("</?del>", "", line)) for line in shown] == [LINES[i][0] for i in (4, 2, 1)]
    assert "Images that could not be read and count nowhere: 1" in page
    assert "What is mistaken for what" in page
    assert "The 1 worst lines" in to_html(report, worst=1)
    assert "What is mistaken for what" not in to_html(evaluate(Reader(), EXAMPLES[:1]))


def test_half_a_surrogate_pair_is_written_too(tmp_path):
    found = evaluate(Reader(), [Example("line1.png", "\ud800", EXAMPLES[1].open)])
    write_html(found, tmp_path / "r.html")
    assert b"<del>?</del>" in (tmp_path / "r.html").read_bytes()


def test_differences_are_marked_on_both_sides():
    assert mark("code", "c0des") == ("c<del>o</del>de", "c<ins>0</ins>de<ins>s</ins>")
    assert mark("a<b", "a") == ("a<del>&lt;b</del>", "a")
    assert mark("same", "same") == ("same", "same")
