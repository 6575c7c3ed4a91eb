"""One result schema, versioned, the same in Python and JSON."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from trocr_jax.calibration import Calibration, Judged

if TYPE_CHECKING:
    from PIL import Image

SCHEMA_VERSION = 2

FinishReason = Literal["eos", "length", "error", "blank", "rejected"]
# x0, y0, x1, y1 in pixels of the image turned upright by its EXIF orientation; the last two are just outside.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a text: what stands between spaces.

    `start` and `end` are its place in the text, in characters. `confidence` is the product of the probabilities of the
    tokens that hold any of its characters: the model's probability of these tokens, given the text before them. In a
    calibrated result that is mapped to how often such words are right. `box` and `char_boxes`, one for each character,
    are None unless they were asked for.
    """

    text: str
    start: int
    end: int
    confidence: float
    box: Box | None = None
    char_boxes: tuple[Box, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """This word as a JSON object."""
        return {
            **dataclasses.asdict(self),
            "box": None if self.box is None else list(self.box),
            "char_boxes": None if self.char_boxes is None else [list(box) for box in self.char_boxes],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Word:
        """The word in a JSON object; boxes may be missing."""
        box, char_boxes = (content.get(name) for name in ("box", "char_boxes"))
        return cls(
            content["text"],
            content["start"],
            content["end"],
            content["confidence"],
            None if box is None else _box(box),
            None if char_boxes is None else tuple(_box(box) for box in char_boxes),
        )


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What was read in one image.

    `token_ids` are the new tokens, the end token included and the start token not; `token_log_probs` are the model's
    own log-probabilities of those (natural logarithm, before any penalty), and `log_prob` is their sum.
    `sequence_score` is transformers' `sequences_scores`, None without beams. `finish_reason` is "eos" for a finished
    text and "length" for one that the length limit cut off; with an empty text it is "error" where the image could not
    be read (`error` says why), "blank" where it has no ink, and "rejected" where the confidence was too low (the first
    of `alternatives` is what was read). `source` is the path of the image, None for one given in memory.
    `alternatives` are further hypotheses, best first, where more than one was asked for. `calibrated_confidence` is
    there if the model has a calibration.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    token_log_probs: tuple[float, ...] = ()
    sequence_score: float | None = None
    finish_reason: FinishReason = "eos"
    error: str | None = None
    source: str | None = None
    alternatives: tuple[Recognition, ...] = ()
    words: tuple[Word, ...] = ()
    calibrated_confidence: float | None = None

    @property
    def log_prob(self) -> float:
        """Sum of the token log-probabilities, the end token's included."""
        return math.fsum(self.token_log_probs)

    @property
    def mean_log_prob(self) -> float | None:
        """Log-probability a token, which texts of different lengths can be compared by; None without tokens."""
        return self.log_prob / len(self.token_log_probs) if self.token_log_probs else None

    @property
    def confidence(self) -> float | None:
        """The probability that exactly this text is right; None without tokens.

        It is the model's own, the product of the tokens' probabilities and the end's, so that a long line has less of
        it than each of its words; or where `is_calibrated`, that mapped to how often such lines are right.
        """
        if self.calibrated_confidence is not None:
            return self.calibrated_confidence
        return math.exp(self.log_prob) if self.token_log_probs else None

    @property
    def is_calibrated(self) -> bool:
        """Whether `confidence`, and that of the words, went through a calibration."""
        return self.calibrated_confidence is not None

    @property
    def is_truncated(self) -> bool:
        """Whether the length limit came before the end of the text."""
        return self.finish_reason == "length"

    def calibrated(self, calibration: Calibration) -> Recognition:
        """This result, which is not calibrated and has tokens, with confidences mapped; nothing else changes."""
        words = tuple(
            dataclasses.replace(word, confidence=calibration.words(_log(word.confidence))) for word in self.words
        )
        return dataclasses.replace(self, words=words, calibrated_confidence=calibration.lines(self.log_prob))

    def rejected_below(self, confidence: float) -> Recognition:
        """This result, or where its confidence is lower an empty one that has it as its first alternative."""
        if self.confidence is None or self.confidence >= confidence:
            return self
        reading = dataclasses.replace(self, alternatives=())
        return dataclasses.replace(
            self, text="", words=(), finish_reason="rejected", alternatives=(reading, *self.alternatives)
        )

    def with_boxes(self, char_boxes: Sequence[Box | None], *, of_characters: bool) -> Recognition:
        """This result with a box around each word, and on demand around each character; `char_boxes` are the text's."""
        words = []
        for word in self.words:
            boxes = tuple(box for box in char_boxes[word.start : word.end] if box is not None)
            words.append(dataclasses.replace(word, box=_around(boxes), char_boxes=boxes if of_characters else None))
        return dataclasses.replace(self, words=tuple(words))

    def draw(self, image: Any = None) -> Image.Image:
        """The image, upright, with its boxes and the words above them where these fit.

        `image` is needed where `source` is None, the image having been given in memory. Raises ValueError if words
        have no boxes, ImageError if the image cannot be read.
        """
        if image is None and self.source is None:
            raise ValueError("this image was given in memory: pass it to draw as well")
        if any(word.box is None for word in self.words):
            raise ValueError("this text has no boxes: read the image with boxes=True")
        from trocr_jax.drawing import draw_words  # a result without a picture needs no Pillow

        return draw_words(self.source if image is None else image, self.words)

    def to_dict(self) -> dict[str, Any]:
        """This result as a JSON object of the current schema; `alternatives` only where there are any."""
        content: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "source": self.source,
            "text": self.text,
            "confidence": self.confidence,
            "is_calibrated": self.is_calibrated,
            "words": [word.to_dict() for word in self.words],
            "token_ids": list(self.token_ids),
            "token_log_probs": list(self.token_log_probs),
            "log_prob": self.log_prob,
            "mean_log_prob": self.mean_log_prob,
            "sequence_score": self.sequence_score,
            "finish_reason": self.finish_reason,
            "is_truncated": self.is_truncated,
            "error": self.error,
        }
        if self.alternatives:
            content["alternatives"] = [alternative.to_dict() for alternative in self.alternatives]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recognition:
        """The result in a JSON object; ValueError for a schema that this version does not know.

        Schema 1 had no words; in schema 2, boxes and what says that confidences are calibrated may be missing.
        """
        if content.get("schema") not in (1, SCHEMA_VERSION):
            raise ValueError(
                f"schema {content.get('schema')!r} is not known; this version reads 1 and {SCHEMA_VERSION}"
            )
        return cls(
            text=content["text"],
            token_ids=tuple(content["token_ids"]),
            token_log_probs=tuple(content["token_log_probs"]),
            sequence_score=content["sequence_score"],
            finish_reason=content["finish_reason"],
            error=content["error"],
            source=content["source"],
            alternatives=tuple(cls.from_dict(alternative) for alternative in content.get("alternatives", ())),
            words=tuple(Word.from_dict(word) for word in content.get("words", ())),
            calibrated_confidence=content["confidence"] if content.get("is_calibrated") else None,
        )


def _box(content: Sequence[float]) -> Box:
    x0, y0, x1, y1 = content
    return (x0, y0, x1, y1)


def _around(boxes: Sequence[Box]) -> Box:
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )


def find_words(text: str, spans: Sequence[tuple[int, int]], token_log_probs: Sequence[float]) -> tuple[Word, ...]:
    """The words of a text, with confidences; `spans` are the characters (start, end) that each token holds."""
    words = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        held = (
            log_prob
            for (first, last), log_prob in zip(spans, token_log_probs, strict=True)
            if first < end and last > start
        )
        words.append(Word(match[0], start, end, math.exp(math.fsum(held))))
    return tuple(words)


def judge(lines: Sequence[Recognition], texts: Sequence[str]) -> tuple[list[Judged], list[Judged]]:
    """(each line's confidence and whether it is right, the same of each word), confidences as natural logarithms.

    The lines have tokens and are not calibrated. A line is right if it has the words of its true text, whatever white
    space stands between them. A word is right if aligning the words of both texts finds it in the true one.
    """
    judged_lines, judged_words = [], []
    for line, text in zip(lines, texts, strict=True):
        read, true = [word.text for word in line.words], text.split()
        judged_lines.append((line.log_prob, read == true))
        blocks = difflib.SequenceMatcher(None, read, true, autojunk=False).get_matching_blocks()
        right = {i for block in blocks for i in range(block.a, block.a + block.size)}
        judged_words += [(_log(word.confidence), i in right) for i, word in enumerate(line.words)]
    return judged_lines, judged_words


def _log(confidence: float) -> float:
    return math.log(confidence) if confidence > 0 else -math.inf
