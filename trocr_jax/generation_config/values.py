"""The values of generation settings: brought into one form where they come in, and checked before they are used.

A value that has no such form is kept as it is: a file that holds one can be read, and using it is an error that says
what it is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

# Settings that are whole numbers, and their least values.
_INTEGERS: Mapping[str, int] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "top_k": 0,
    "forced_bos_token_id": 0,
}
# Settings that are numbers: what is demanded besides being finite, and in words.
_FLOATS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "length_penalty": (math.isfinite, ""),
    "repetition_penalty": (lambda value: value > 0, " above 0"),
    "temperature": (lambda value: value > 0, " above 0; for the likeliest token at every step, set do_sample=False"),
    "top_p": (lambda value: 0 <= value <= 1, " from 0 to 1, where 1 switches it off"),
    "min_p": (lambda value: 0 <= value <= 1, " from 0 to 1, or None"),
    "typical_p": (lambda value: 0 < value <= 1, " above 0 and at most 1, which switches it off"),
}
_BOOLEANS = (
    "do_sample",
    "remove_invalid_values",
    "renormalize_logits",
    "end_at_max_length",
    "output_scores",
    "output_logits",
)
_FORMS: Mapping[str, str] = {
    "eos_token_id": "a token id or a list of them",
    "forced_eos_token_id": "a token id or a list of them, not empty",
    "suppress_tokens": "a list of token ids",
    "begin_suppress_tokens": "a list of token ids",
    "bad_words_ids": "a list, not empty, of lists of token ids, such as [[5], [7, 8]]",
    "sequence_bias": "a list, not empty, of pairs of token ids and a number below inf, such as [[[7, 8], -2.0]], or "
    "a dict such as {(7, 8): -2.0}",
    "exponential_decay_length_penalty": "a pair of a whole number from 0 (new tokens without it) and a factor above 0",
}
# What only sampling looks at, with the values that have no effect.
SAMPLING: Mapping[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}


def _tokens(value: Any) -> tuple[int, ...]:
    return tuple(map(operator.index, value))


def _token_or_tokens(value: Any) -> int | tuple[int, ...]:
    return operator.index(value) if np.ndim(value) == 0 else _tokens(value)


def _token_list(value: Any) -> tuple[int, ...]:
    return (operator.index(value),) if np.ndim(value) == 0 else _tokens(value)


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    # Of equal sequences the last counts, as in the reference.
    return tuple({_tokens(tokens): float(bias) for tokens, bias in pairs}.items())


def _decay(value: Any) -> tuple[int, float]:
    start, factor = value
    return operator.index(start), float(factor)


_NORMALISERS: Mapping[str, Callable[[Any], Any]] = {
    "eos_token_id": _token_or_tokens,
    "forced_eos_token_id": _token_or_tokens,
    "suppress_tokens": _token_list,
    "begin_suppress_tokens": _token_list,
    "bad_words_ids": lambda value: tuple(map(_tokens, value)),
    "sequence_bias": _biases,
    "exponential_decay_length_penalty": _decay,
}


def normalised(settings: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of the settings that are lists, as nested tuples; those that are not what they should be left."""
    for name, normalise in _NORMALISERS.items():
        value = getattr(settings, name)
        if value is not None:
            try:
                yield name, normalise(value)
            except (TypeError, ValueError):
                continue


def check(settings: Any) -> None:
    """Raises ValueError, with everything that is wrong with the values."""
    problems = [*_problems_of_numbers(settings), *_problems_of_lists(settings)]
    problems = problems or [*_problems_of_combinations(settings)]
    if problems:
        raise ValueError("; ".join(problems))


def _is_integer(value: Any, least: int = 0) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def _problems_of_numbers(settings: Any) -> Iterator[str]:
    for name, least in _INTEGERS.items():
        value = getattr(settings, name)
        if value is not None and not _is_integer(value, least):
            yield f"{name} is {value!r}; it must be an int of at least {least}"
    for name, (fits, demand) in _FLOATS.items():
        value = getattr(settings, name)
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value) and fits(value)):
            yield f"{name} is {value!r}; it must be a finite number{demand}"
    for name in _BOOLEANS:
        value = getattr(settings, name)
        if not isinstance(value, bool | np.bool_):
            yield f"{name} is {value!r}; it must be True or False"
    if settings.early_stopping not in (False, True, "never"):
        yield f"early_stopping is {settings.early_stopping!r}; it must be False, True or 'never'"


def _are_tokens(value: Any, least: int = 0) -> bool:
    return isinstance(value, tuple) and len(value) >= least and all(map(_is_integer, value))


def _is_bias(pair: Any) -> bool:
    tokens, bias = pair
    return _are_tokens(tokens, 1) and bias < math.inf  # nan is not


def _is_list_of(fits: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(fits, value))


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "eos_token_id": lambda value: _is_integer(value) or _are_tokens(value),
    "forced_eos_token_id": lambda value: _is_integer(value) or _are_tokens(value, 1),
    "suppress_tokens": _are_tokens,
    "begin_suppress_tokens": _are_tokens,
    "bad_words_ids": lambda value: _is_list_of(lambda word: _are_tokens(word, 1), value),
    "sequence_bias": lambda value: _is_list_of(_is_bias, value),
    "exponential_decay_length_penalty": lambda value: value[0] >= 0 and 0 < value[1] < math.inf,
}


def _problems_of_lists(settings: Any) -> Iterator[str]:
    as_they_should_be = dict(normalised(settings))
    for name, fits in _FITS.items():
        value = getattr(settings, name)
        if value is not None and (name not in as_they_should_be or not fits(value)):
            yield f"{name} is {value!r}; it must be {_FORMS[name]}"


def _problems_of_combinations(settings: Any) -> Iterator[str]:
    returned, beams = settings.num_return_sequences, settings.num_beams
    if returned > beams and not (settings.do_sample and beams == 1):
        yield (
            f"num_return_sequences {returned} exceeds num_beams {beams}; raise num_beams, or draw several texts with "
            "do_sample=True and num_beams=1"
        )
    ends = settings.eos_token_ids
    for name in ("exponential_decay_length_penalty", "end_at_max_length"):
        if getattr(settings, name) and not ends:
            yield f"{name} is {getattr(settings, name)!r}, but no token ends a text; pass eos_token_id as well"
    if settings.bad_words_ids is not None and all(word in {(end,) for end in ends} for word in settings.bad_words_ids):
        yield (
            f"bad_words_ids {settings.bad_words_ids!r} are end tokens, which are never bad words; to put the end off, "
            "use min_new_tokens"
        )
    suppressed = set(settings.suppress_tokens or ())
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = getattr(settings, name)
        if value is not None and set(_token_list(value)) <= suppressed:
            yield f"{name} {value!r} is also in suppress_tokens, so that nothing is left; remove it from one of the two"
