"""Confidences that are as good as they say: log-odds scaled by numbers that were fitted on lines with known texts.

The events are "the whole line is right" and "this word is right"; c is the model's probability of the line's or the
word's tokens. With a temperature T and a bias b of its own for each event,

    calibrated c = sigmoid(logit(c) / T + b),

which is Platt's scaling (Platt, 1999) on log-odds. It needs no second pass over the logits, and as it grows with c,
lines keep their order. What is read, its scores and its log-probabilities stay as they are. A temperature on the
logits of every token (Guo et al., 2017) was tried on rendered lines and helps less, and one temperature for both
events cannot help: with the embedded model lines want one below 1 and words one above.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trocr_jax.config import read_json, write_json

CALIBRATION_NAME = "calibration.json"
VERSION = 1
# A float32 log-probability cannot tell a probability above this from 1.
_LARGEST_LOG_PROB = -1e-7
# log(5e-324): the logarithm of a probability that is 0 as a float.
_SMALLEST_LOG_PROB = -744.4

# The natural logarithm of a confidence, and whether what it speaks of was right.
Judged = tuple[float, bool]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What maps one kind of confidence, and what it was fitted on.

    `count` lines or words of which `right` were right; of those, the negative log-likelihood and the expected
    calibration error before and after, as means. These are of the very samples that it was fitted on: what it does for
    others is measured on others.
    """

    temperature: float
    bias: float
    count: int
    right: int
    nll: tuple[float, float]
    ece: tuple[float, float]

    def __call__(self, log_prob: float) -> float:
        """The calibrated confidence of what has this natural logarithm of a confidence."""
        z = float(_log_odds(np.asarray(log_prob, float))) / self.temperature + self.bias
        # Of two equal formulas the one that cannot overflow.
        return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))

    @classmethod
    def fit(cls, judged: Sequence[Judged], name: str = "lines") -> Scaling:
        """The most likely scaling of some samples.

        A Gaussian prior of deviation 1 around doing nothing (1/T = 1, b = 0) settles what samples leave open, as when
        all were right. Raises ValueError without samples, or if higher confidences were right less often.
        """
        if not judged:
            raise ValueError(f"there are no {name} to calibrate on; pass some hundred lines that were not trained on")
        log_probs = np.array([log_prob for log_prob, _ in judged], float)
        is_right = np.array([right for _, right in judged], bool)
        slope, bias = _most_likely(_log_odds(log_probs), is_right)
        if slope <= 0:
            raise ValueError(
                f"of these {name} the more confident were right less often, so that no temperature calibrates them; "
                "check that the texts stand in the order of the images"
            )
        fitted = cls(1 / slope, bias, len(judged), int(is_right.sum()), (0.0, 0.0), (0.0, 0.0))
        both = np.exp(log_probs), np.array([fitted(log_prob) for log_prob in log_probs])
        nll, ece = (
            (measure(both[0], is_right), measure(both[1], is_right)) for measure in (mean_nll, calibration_error)
        )
        return dataclasses.replace(fitted, nll=nll, ece=ece)

    @classmethod
    def from_dict(cls, content: Any) -> Scaling:
        """The scaling in a JSON object; ValueError says what is wrong with it."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(content, Mapping) or set(content) != set(names):
            raise ValueError(f"an object of {names} was expected")
        pairs = []
        for name in ("nll", "ece"):
            if not isinstance(content[name], list) or len(content[name]) != 2:
                raise ValueError(f"{name} is {content[name]!r}; numbers before and after were expected")
            before, after = (_number(name, value, lowest=0) for value in content[name])
            pairs.append((before, after))
        counts = [_number(name, content[name], lowest=0) for name in ("count", "right")]
        if not all(count.is_integer() for count in counts):
            raise ValueError(f"count and right are {counts}; whole numbers were expected")
        temperature, bias = _number("temperature", content["temperature"]), _number("bias", content["bias"])
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        return cls(temperature, bias, int(counts[0]), int(counts[1]), *pairs)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How a model's confidences are mapped: those of whole lines, and those of words."""

    lines: Scaling
    words: Scaling

    @classmethod
    def fit(cls, lines: Sequence[Judged], words: Sequence[Judged]) -> Calibration:
        """The calibration of lines and words of which `trocr_jax.results.judge` knows whether they were right."""
        return cls(Scaling.fit(lines, "lines"), Scaling.fit(words, "words"))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """The calibration in a JSON object; ValueError says what is wrong with it."""
        if content.get("version") != VERSION:
            raise ValueError(f"version is {content.get('version')!r}; this library reads {VERSION}")
        return cls(Scaling.from_dict(content.get("lines")), Scaling.from_dict(content.get("words")))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Calibration | None:
        """The calibration that lies beside a folder's weights, None without one; ValueError names a bad file."""
        path = pathlib.Path(folder) / CALIBRATION_NAME
        if not path.is_file():
            return None
        content = read_json(path)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{path} is no calibration: {error}; delete it, or calibrate again") from error

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes calibration.json into a folder that exists."""
        write_json(folder / CALIBRATION_NAME, {"version": VERSION, **dataclasses.asdict(self)})


def mean_nll(confidences: np.ndarray, is_right: np.ndarray) -> float:
    """Mean negative log-likelihood of what was right and wrong under confidences, in nats."""
    certain = np.where(is_right, confidences, 1 - confidences)
    return float(-np.log(np.clip(certain, -math.expm1(_LARGEST_LOG_PROB), None)).mean())


def calibration_error(confidences: np.ndarray, is_right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from the share that was right, over bins of equal size.

    Few samples a bin differ by chance alone: the error of a perfect model is not 0.
    """
    parts = [part for part in np.array_split(np.argsort(confidences, kind="stable"), bins) if len(part)]
    gaps = [abs(confidences[part].mean() - is_right[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(confidences))


def _number(name: str, value: Any, lowest: float = -math.inf) -> float:
    # An int may be larger than any float, and JSON's NaN and Infinity are read as floats.
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value or not abs(value) < 1e9:
        raise ValueError(f"{name} is {value!r}; a number {'of at least 0 ' if lowest == 0 else ''}was expected")
    return float(value)


def _log_odds(log_probs: np.ndarray) -> np.ndarray:
    log_probs = np.clip(log_probs, _SMALLEST_LOG_PROB, _LARGEST_LOG_PROB)
    return log_probs - np.log(-np.expm1(log_probs))


def _most_likely(log_odds: np.ndarray, is_right: np.ndarray) -> tuple[float, float]:
    """(slope, bias) of logistic regression, by Newton's method; the prior makes the one minimum sharp."""
    inputs = np.stack([log_odds, np.ones_like(log_odds)], axis=1)
    signs = np.where(is_right, 1.0, -1.0)
    prior = np.array([1.0, 0.0])

    def loss(weights: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs * (inputs @ weights)).sum() + ((weights - prior) ** 2).sum() / 2)

    weights = prior
    for _ in range(100):
        probability = np.exp(-np.logaddexp(0, -(inputs @ weights)))
        gradient = inputs.T @ (probability - is_right) + weights - prior
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        if np.abs(step).max() < 1e-10:
            break
        # Far from the minimum a whole step may overshoot.
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
    return float(weights[0]), float(weights[1])
