"""Error rates of texts read, against the texts that stand there: as published, with confidence intervals.

Every metric is a statistic of counts that are summed over lines, so that lines drawn anew, for the intervals, need no
second comparison of texts.
"""

from __future__ import annotations

import collections
import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

SAMPLES = 1000
LEVEL = 0.95
# What counts in scene text, as in unilm's scorer "wpa".
_ALPHABET = frozenset(string.digits + string.ascii_lowercase)


@dataclasses.dataclass(frozen=True)
class Metric:
    """`count` gives int [lines, k] for texts and references, `statistic` [...] of sums [..., k] of those."""

    count: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    statistic: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric's value on some lines, and the interval that 95 % of its values lie in when lines are drawn anew."""

    value: float
    low: float
    high: float


def character_error_rate(texts: Sequence[str], references: Sequence[str]) -> float:
    """Edits (insertions, deletions, substitutions) of all texts over the characters of all references: CER, micro.

    May exceed 1. Raises ValueError where the numbers of texts differ or the references hold no character. unilm's
    scorer "cer" is this in percent, except that it counts bytes of UTF-8 for characters.
    """
    return _rate(character_edits(texts, references), "character")


def word_error_rate(texts: Sequence[str], references: Sequence[str]) -> float:
    """The same with words, which is what stands between spaces: WER, micro."""
    return _rate(word_edits(texts, references), "word")


def sroie_scores(texts: Sequence[str], references: Sequence[str]) -> tuple[float, float, float]:
    """(precision, recall, F1) of words over all lines, each word of a reference being found once: unilm's "sroie".

    0 where there are no words to divide by, where unilm's scorer fails. Raises ValueError for no lines.
    """
    counts = word_matches(texts, references)
    if not len(counts):
        raise ValueError("there are no lines to compare")
    sums = counts.sum(axis=0)
    return float(_precision(sums)), float(_recall(sums)), float(_f1(sums))


def str_accuracy(texts: Sequence[str], references: Sequence[str]) -> float:
    """Part of the lines that are right in lower case with ASCII letters and digits alone: unilm's "wpa"."""
    return _rate(scene_matches(texts, references), "line")


def character_edits(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Edits and characters of the reference of each line: int [lines, 2]."""
    return _counts(texts, references, lambda text, reference: (Levenshtein.distance(text, reference), len(reference)))


def word_edits(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Edits of words and words of the reference of each line: int [lines, 2]."""

    def count(text: str, reference: str) -> tuple[int, int]:
        return Levenshtein.distance(text.split(), reference.split()), len(reference.split())

    return _counts(texts, references, count)


def word_matches(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Words that text and reference share, words of the text, words of the reference of each line: int [lines, 3]."""

    def count(text: str, reference: str) -> tuple[int, int, int]:
        read, wanted = collections.Counter(text.split()), collections.Counter(reference.split())
        return (read & wanted).total(), read.total(), wanted.total()

    return _counts(texts, references, count)


def line_matches(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Whether each line is right, and 1: int [lines, 2]."""
    return _counts(texts, references, lambda text, reference: (text == reference, 1))


def scene_matches(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Whether each line is right as `str_accuracy` has it, and 1: int [lines, 2]."""
    return line_matches([_scene(text) for text in texts], [_scene(text) for text in references])


def _scene(text: str) -> str:
    return "".join(character for character in text.lower() if character in _ALPHABET)


def _counts(
    texts: Sequence[str], references: Sequence[str], count: Callable[[str, str], tuple[int, ...]]
) -> np.ndarray:
    return np.array([count(text, reference) for text, reference in zip(texts, references, strict=True)], np.int64)


def _rate(counts: np.ndarray, unit: str) -> float:
    if not len(counts) or counts[:, 1].sum() == 0:
        raise ValueError(f"the references hold no {unit}: an error rate is undefined")
    return float(_ratio(counts.sum(axis=0)))


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The ratio, 0 where it is 0 over 0."""
    return np.where(denominator == 0, np.where(numerator == 0, 0.0, np.nan), numerator / np.maximum(denominator, 1))


def _ratio(sums: np.ndarray) -> np.ndarray:
    return _over(sums[..., 0], sums[..., 1])


def _precision(sums: np.ndarray) -> np.ndarray:
    return _over(sums[..., 0], sums[..., 1])


def _recall(sums: np.ndarray) -> np.ndarray:
    return _over(sums[..., 0], sums[..., 2])


def _f1(sums: np.ndarray) -> np.ndarray:
    return _over(2 * sums[..., 0], sums[..., 1] + sums[..., 2])  # 2 P R / (P + R)


METRICS: Mapping[str, Metric] = {
    "cer": Metric(character_edits, _ratio),
    "wer": Metric(word_edits, _ratio),
    "line_accuracy": Metric(line_matches, _ratio),
    "word_precision": Metric(word_matches, _precision),
    "word_recall": Metric(word_matches, _recall),
    "word_f1": Metric(word_matches, _f1),
    "word_accuracy": Metric(scene_matches, _ratio),
}
# What a published protocol reports beside `cer`, `wer` and `line_accuracy`; IAM's is the CER itself.
PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "iam": (),
    "sroie": ("word_precision", "word_recall", "word_f1"),
    "str": ("word_accuracy",),
}


def estimate(
    name: str, texts: Sequence[str], references: Sequence[str], *, samples: int = SAMPLES, seed: int = 0
) -> Estimate | None:
    """The metric of that name in METRICS, with its interval: percentiles of the bootstrap over lines.

    None where it is undefined, the references holding nothing to compare with. Lines are drawn as if they were
    independent; those of one writer or document are not, and then the interval is too narrow.
    """
    metric = METRICS[name]
    counts = metric.count(texts, references)
    if not len(counts) or counts[:, -1].sum() == 0:
        return None
    random = np.random.default_rng(seed)
    sums = np.stack([counts[random.integers(len(counts), size=len(counts))].sum(axis=0) for _ in range(samples)])
    drawn = metric.statistic(sums)
    tail = (1 - LEVEL) / 2
    drawn = drawn[np.isfinite(drawn)]  # a draw whose references are all empty has no rate
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(metric.statistic(counts.sum(axis=0))), float(low), float(high))


def confusions(texts: Sequence[str], references: Sequence[str]) -> collections.Counter[tuple[str, str]]:
    """How often each (character that stands there, character read in its place) occurs; "" stands for none.

    Which of several equally short ways from one text to the other is taken is rapidfuzz's choice.
    """
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for text, reference in zip(texts, references, strict=True):
        for edit in Levenshtein.editops(reference, text):
            stands = "" if edit.tag == "insert" else reference[edit.src_pos]
            read = "" if edit.tag == "delete" else text[edit.dest_pos]
            found[stands, read] += 1
    return found
