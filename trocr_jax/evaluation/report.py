"""Reads lines whose texts are known and says how well: rates with intervals, and where the errors are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.given import Lines, examples_of
from trocr_jax.evaluation.metrics import (
    PROTOCOLS,
    SAMPLES,
    Estimate,
    character_edits,
    confusions,
    estimate,
)
from trocr_jax.evaluation.normalization import Normalization
from trocr_jax.evaluation.reading import read_examples
from trocr_jax.recognizer import TrOCR
from trocr_jax.version import __version__

SCHEMA_VERSION = 1
# Lengths of references, in characters, that `by_length` begins a new group at.
LENGTHS = (0, 11, 21, 41, 81)
MOST_CONFUSIONS = 50


@dataclasses.dataclass(frozen=True)
class Compared:
    """A line that was read: both texts as they are, and the edits between them as they were compared."""

    example: Example
    text: str
    edits: int
    confidence: float | None
    is_truncated: bool

    def to_dict(self) -> dict[str, Any]:
        """This line as a JSON object."""
        return {
            "name": self.example.name,
            "reference": self.example.text,
            "text": self.text,
            "edits": self.edits,
            "confidence": self.confidence,
            "truncated": self.is_truncated,
        }


@dataclasses.dataclass(frozen=True)
class Score:
    """Rates of some lines, by metric; empty where there is nothing to compare."""

    lines: int
    rates: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """{"lines": ..., "cer": ..., "intervals": {"cer": [low, high]}}"""
        values = {name: rate.value for name, rate in self.rates.items()}
        intervals = {name: [rate.low, rate.high] for name, rate in self.rates.items()}
        return {"lines": self.lines, **values, "intervals": intervals}


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found.

    `all` is the score of all lines that could be read, `unseen` of those among them whose text is none of the training
    texts, None where these were not given. `by_length` are the scores by length of the reference, `compared` the lines
    in the order of the dataset, `unreadable` name and reason of each image that could not be read and counts nowhere.
    `confusions` are (what stands there, what was read, how often), most frequent first, "" standing for no character.
    `model` is what the weights were read from.
    """

    all: Score
    unseen: Score | None
    by_length: Mapping[str, Score]
    confusions: Sequence[tuple[str, str, int]]
    compared: Sequence[Compared]
    unreadable: Sequence[tuple[str, str]]
    normalization: Normalization
    protocol: str | None
    model: str | None
    options: Mapping[str, Any]

    def worst(self, count: int) -> list[Compared]:
        """The lines with the most edits for their length, without those that have none."""
        wrong = [line for line in self.compared if line.edits]
        return sorted(wrong, key=lambda line: (-line.edits / max(len(line.example.text), 1), line.example.name))[:count]

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object: `cer`, `wer` and `lines` first of all, the rates of every line last."""
        return {
            "schema": SCHEMA_VERSION,
            "version": __version__,
            "model": self.model,
            "options": {name: _plain(value) for name, value in self.options.items()},
            "protocol": self.protocol,
            "normalization": {**dataclasses.asdict(self.normalization), "said": str(self.normalization)},
            **self.all.to_dict(),
            "unseen": None if self.unseen is None else self.unseen.to_dict(),
            "by_length": {name: score.to_dict() for name, score in self.by_length.items()},
            "confusions": [list(pair) for pair in self.confusions],
            "unreadable": [{"name": name, "error": error} for name, error in self.unreadable],
            "readings": [line.to_dict() for line in self.compared],
        }


def evaluate(
    ocr: TrOCR,
    examples: Lines,
    *,
    protocol: str | None = None,
    train_texts: Iterable[str] | None = None,
    normalization: Normalization = Normalization(),  # noqa: B008 - frozen
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    **options: Any,
) -> Report:
    """Reads the examples and compares what was read with their texts.

    They are a path as `trocr_jax.datasets.open_dataset` takes it, or an iterable of Examples or of (image, text) pairs,
    an image being whatever a recogniser reads.

    `protocol` is "iam" (CER of texts as they are), "sroie" (precision, recall and F1 of words) or "str" (accuracy of
    words), each as unilm's scorer has it; CER, WER and the part of lines that are right are always there. With
    `train_texts` lines are reported apart whose text is none of these. `normalization` is done to all texts. `samples`
    lines are drawn anew for the intervals, from `seed`. `options` are those of a call that bear on the search, such as
    num_beams=4. Raises ValueError where no line could be read or the texts hold nothing to compare with, TypeError for
    what are no lines.
    """
    _check(protocol, options)
    compared, unreadable = _read(ocr, examples_of(examples), normalization, batch_size, options)
    names = ("cer", "wer", "line_accuracy", *PROTOCOLS.get(protocol or "", ()))
    pairs = [(normalization(line.text), normalization(line.example.text)) for line in compared]
    score = functools.partial(_score, names, samples=samples, seed=seed)
    known = None if train_texts is None else {normalization(text) for text in train_texts}
    return Report(
        all=score(pairs),
        unseen=None if known is None else score([pair for pair in pairs if pair[1] not in known]),
        by_length={name: score(chosen) for name, chosen in _by_length(pairs) if chosen},
        confusions=[
            (*pair, count) for pair, count in confusions(*zip(*pairs, strict=True)).most_common(MOST_CONFUSIONS)
        ],
        compared=compared,
        unreadable=unreadable,
        normalization=normalization,
        protocol=protocol,
        model=ocr.source,
        options=options,
    )


def _check(protocol: str | None, options: Mapping[str, Any]) -> None:
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}, or None")
    if useless := sorted(options.keys() & {"reject_below", "skip_blank", "boxes", "on_error"}):
        raise TypeError(f"{useless} would change what is compared; pass options of the search alone")
    if isinstance(options.get("constraint"), list | tuple):
        raise TypeError("constraint is a list; pass one for all lines, since some may not be readable")


def _read(
    ocr: TrOCR,
    examples: Iterable[Example],
    normalization: Normalization,
    batch_size: int | None,
    options: Mapping[str, Any],
) -> tuple[list[Compared], list[tuple[str, str]]]:
    lines, unread = read_examples(ocr, examples, batch_size=batch_size, **options)
    compared = []
    for example, line in lines:
        edits = character_edits([normalization(line.text)], [normalization(example.text)])[0, 0]
        compared.append(Compared(example, line.text, int(edits), line.confidence, line.is_truncated))
    unreadable = [(example.name, str(error)) for example, error in unread]
    if not any(line.example.text.split() for line in compared):
        raise ValueError(f"the texts of all {len(compared)} lines are empty: there is nothing to compare with")
    return compared, unreadable


def _score(names: Sequence[str], pairs: Sequence[tuple[str, str]], *, samples: int, seed: int) -> Score:
    texts, references = [text for text, _ in pairs], [reference for _, reference in pairs]
    rates = {name: estimate(name, texts, references, samples=samples, seed=seed) for name in names}
    return Score(len(pairs), {name: rate for name, rate in rates.items() if rate is not None})


def _plain(value: Any) -> Any:
    """What JSON has for an option; others, such as constraints, by what they say of themselves."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _by_length(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for first, behind in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        name = f"{first} and more" if behind is None else f"{first} to {behind - 1}"
        yield name, [pair for pair in pairs if first <= len(pair[1]) and (behind is None or len(pair[1]) < behind)]
