"""One result schema, versioned, the same in Python and JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

SCHEMA_VERSION = 2

FinishReason = Literal["eos", "length", "error", "blank", "rejected"]


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a text: what stands between spaces.

    `start` and `end` are its place in the text, in characters. `confidence` is the product of the probabilities of the
    tokens that hold any of its characters: the model's probability of these tokens, given the text before them.
    """

    text: str
    start: int
    end: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What was read in one image.

    `token_ids` are the new tokens, the end token included and the start token not; `token_log_probs` are the model's
    own log-probabilities of those (natural logarithm, before any penalty), and `log_prob` is their sum.
    `sequence_score` is transformers' `sequences_scores`, None without beams. `finish_reason` is "eos" for a finished
    text and "length" for one that the length limit cut off; with an empty text it is "error" where the image could not
    be read (`error` says why), "blank" where it has no ink, and "rejected" where the confidence was too low (the first
    of `alternatives` is what was read). `source` is the path of the image, None for one given in memory.
    `alternatives` are further hypotheses, best first, where more than one was asked for.
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
        """The model's probability of exactly this text and its end; None without tokens.

        That is the product of the tokens' probabilities, so that a long line has less of it than each of its words.
        """
        return math.exp(self.log_prob) if self.token_log_probs else None

    @property
    def is_truncated(self) -> bool:
        """Whether the length limit came before the end of the text."""
        return self.finish_reason == "length"

    def rejected_below(self, confidence: float) -> Recognition:
        """This result, or where its confidence is lower an empty one that has it as its first alternative."""
        if self.confidence is None or self.confidence >= confidence:
            return self
        reading = dataclasses.replace(self, alternatives=())
        return dataclasses.replace(
            self, text="", words=(), finish_reason="rejected", alternatives=(reading, *self.alternatives)
        )

    def to_dict(self) -> dict[str, Any]:
        """This result as a JSON object of the current schema; `alternatives` only where there are any."""
        content: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "source": self.source,
            "text": self.text,
            "confidence": self.confidence,
            "words": [dataclasses.asdict(word) for word in self.words],
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

        Schema 1 had no words.
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
            words=tuple(Word(**word) for word in content.get("words", ())),
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
