"""One result schema, versioned, the same in Python and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

SCHEMA_VERSION = 1

FinishReason = Literal["eos", "length", "error"]


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What was read in one image.

    `token_ids` are the new tokens, the end token included and the start token not; `token_log_probs` are the model's
    own log-probabilities of those (natural logarithm, before any penalty), and `log_prob` is their sum.
    `sequence_score` is transformers' `sequences_scores`, None under greedy search. `finish_reason` is "eos" for a
    finished text, "length" for one that the length limit cut off, and "error" where the image could not be read:
    then `error` says why and the text is empty. `source` is the path of the image, None for one given in memory.
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

    @property
    def log_prob(self) -> float:
        """Sum of the token log-probabilities, the end token's included."""
        return math.fsum(self.token_log_probs)

    @property
    def is_truncated(self) -> bool:
        """Whether the length limit came before the end of the text."""
        return self.finish_reason == "length"

    def to_dict(self) -> dict[str, Any]:
        """This result as a JSON object of the current schema; `alternatives` only where there are any."""
        content: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "source": self.source,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "token_log_probs": list(self.token_log_probs),
            "log_prob": self.log_prob,
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
        """The result in a JSON object; ValueError for a schema that this version does not know."""
        if content.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"schema {content.get('schema')!r} is not known; this version reads {SCHEMA_VERSION}")
        return cls(
            text=content["text"],
            token_ids=tuple(content["token_ids"]),
            token_log_probs=tuple(content["token_log_probs"]),
            sequence_score=content["sequence_score"],
            finish_reason=content["finish_reason"],
            error=content["error"],
            source=content["source"],
            alternatives=tuple(cls.from_dict(alternative) for alternative in content.get("alternatives", ())),
        )
