"""Results as JSON, of this version and the one before, and words with their boxes."""

from __future__ import annotations

import json
import math

import pytest

from trocr_jax.results import Recognition, Word, find_words

LETTERS = ((1.0, 2.0, 9.0, 20.0), (10.0, 8.0, 20.0, 20.0), (28.0, 18.0, 30.5, 20.0))
WORDS = (
    Word("No.", 0, 3, 0.9, (1.0, 2.0, 30.5, 20.0), LETTERS),
    Word("7", 4, 5, 0.5, (35.0, 2.0, 44.0, 20.0)),
)
LINE = Recognition("No. 7", (5, 6, 2), (-0.1, -0.7, -0.01), source="line.png", words=WORDS)


def test_boxes_are_json_both_ways():
    content = json.loads(json.dumps(LINE.to_dict()))
    assert content == LINE.to_dict()
    assert content["words"][1] == {
        "text": "7", "start": 4, "end": 5, "confidence": 0.5, "box": [35.0, 2.0, 44.0, 20.0], "char_boxes": None
    }  # fmt: skip
    assert Recognition.from_dict(content) == LINE


def test_words_written_before_boxes_are_read():
    content = LINE.to_dict()
    for word in content["words"]:
        del word["box"], word["char_boxes"]
    assert [word.box for word in Recognition.from_dict(content).words] == [None, None]


def test_schema_1_is_read_and_written_as_2():
    content = {
        "schema": 1,
        "source": "line.png",
        "text": "No. 7",
        "token_ids": [5, 6, 2],
        "token_log_probs": [-0.1, -0.7, -0.01],
        "log_prob": -0.81,
        "sequence_score": None,
        "finish_reason": "eos",
        "is_truncated": False,
        "error": None,
    }
    line = Recognition.from_dict(content)
    assert (line.text, line.token_ids, line.words) == ("No. 7", (5, 6, 2), ())
    assert line.to_dict()["schema"] == 2
    assert line.to_dict()["confidence"] == pytest.approx(math.exp(-0.81))
    assert Recognition.from_dict(line.to_dict()) == line


def test_a_words_confidence_is_that_of_every_token_with_a_character_of_it():
    # A space belongs to no word, a token over two words to both, a special token and the end to none.
    text, spans = "ab c d", [(0, 1), (1, 2), (2, 3), (3, 3), (3, 6), (6, 6)]
    words = find_words(text, spans, [math.log(p) for p in (0.5, 0.25, 0.1, 0.1, 0.8, 0.1)])
    assert [(word.text, word.start, word.end) for word in words] == [("ab", 0, 2), ("c", 3, 4), ("d", 5, 6)]
    assert [word.confidence for word in words] == pytest.approx([0.125, 0.8, 0.8])


def test_boxes_are_put_around_words():
    plain = Recognition("a bc", (3, 2), (-0.1, -0.1), words=find_words("a bc", [(0, 4), (4, 4)], [-0.1, -0.1]))
    boxes = [(0.0, 5.0, 4.0, 9.0), None, (8.0, 2.0, 12.0, 9.0), (13.0, 5.0, 16.0, 11.0)]
    found = plain.with_boxes(boxes, of_characters=False)
    assert [word.box for word in found.words] == [boxes[0], (8.0, 2.0, 16.0, 11.0)]
    assert [word.char_boxes for word in found.words] == [None, None]
    assert plain.with_boxes(boxes, of_characters=True).words[1].char_boxes == tuple(boxes[2:])


def test_what_cannot_be_drawn_says_why():
    with pytest.raises(ValueError, match="given in memory"):
        Recognition("a", words=(Word("a", 0, 1, 1.0, (0, 0, 1, 1)),)).draw()
    with pytest.raises(ValueError, match="boxes=True"):
        Recognition("a", source="a.png", words=(Word("a", 0, 1, 1.0),)).draw()
    with pytest.raises(ValueError, match=r"a\.png does not exist"):
        Recognition("", source="a.png").draw()
