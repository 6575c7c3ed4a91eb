"""Which processors a call's settings ask for, in the reference's order.

Source of the order and of each one's condition: transformers 5.23, GenerationMixin._get_logits_processor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from trocr_jax.decoding.constrained import Constrain
from trocr_jax.decoding.logits_processors import (
    EndAtLimit,
    ExponentialDecayLengthPenalty,
    ForceTokens,
    LogitsProcessor,
    MinLength,
    NoRepeatNGram,
    RemoveInvalidValues,
    Renormalize,
    RepetitionPenalty,
    SuppressTokens,
    SuppressTokensAtBegin,
)
from trocr_jax.decoding.sampling import MinP, Temperature, TopK, TopP, TypicalP
from trocr_jax.decoding.sequence_bias import make_sequence_bias
from trocr_jax.decoding.shapes import bucket
from trocr_jax.generation_config import GenerationConfig

# Up to here, all values of top_k share one program.
_LEAST_TOP_K = 64


def make_processors(
    settings: GenerationConfig, vocab_size: int, prompt_length: int, constraint: Constrain | None = None
) -> tuple[LogitsProcessor, ...]:
    """The processors that resolved settings and a constraint ask for behind a prompt; neutral settings give none.

    Raises ValueError for a token outside the vocabulary.
    """
    return (
        *_of_contents(settings, vocab_size),
        *_of_places(settings, vocab_size, prompt_length, constraint),
        *(_warpers(settings, vocab_size) if settings.do_sample else ()),
        *((Renormalize(),) if settings.renormalize_logits else ()),
    )


def _of_contents(settings: GenerationConfig, vocab_size: int) -> Iterator[LogitsProcessor]:
    """Those that look at a row's tokens."""
    if settings.sequence_bias is not None:
        check_tokens("sequence_bias", (token for tokens, _ in settings.sequence_bias for token in tokens), vocab_size)
        yield make_sequence_bias(dict(settings.sequence_bias), vocab_size)
    if settings.repetition_penalty != 1.0:
        yield RepetitionPenalty(np.float32(settings.repetition_penalty))
    if settings.no_repeat_ngram_size > 0:
        yield NoRepeatNGram(np.int32(settings.no_repeat_ngram_size))
    if settings.bad_words_ids is not None:
        check_tokens("bad_words_ids", (token for word in settings.bad_words_ids for token in word), vocab_size)
        # As in the reference, an end token by itself is no bad word.
        ends = {(token,) for token in settings.eos_token_ids}
        yield make_sequence_bias({word: -math.inf for word in settings.bad_words_ids if word not in ends}, vocab_size)


def _of_places(
    settings: GenerationConfig, vocab_size: int, prompt_length: int, constraint: Constrain | None
) -> Iterator[LogitsProcessor]:
    """Those that look at a row's length, and the constraint and some others in their midst."""

    def mask(name: str, tokens: int | tuple[int, ...]) -> np.ndarray:
        return _token_mask(name, tokens, vocab_size)

    max_length = np.int32(settings.max_length or 0)
    ends = settings.eos_token_ids
    if settings.min_length > 0 and ends:
        yield MinLength(np.int32(settings.min_length), mask("eos_token_id", ends))
    if settings.forced_bos_token_id is not None:
        yield ForceTokens(mask("forced_bos_token_id", settings.forced_bos_token_id), np.int32(1))
    if settings.forced_eos_token_id is not None:
        yield ForceTokens(mask("forced_eos_token_id", settings.forced_eos_token_id), max_length - 1)
    if settings.remove_invalid_values:
        yield RemoveInvalidValues()
    if constraint is not None:
        yield constraint  # behind what would make a closed token an open one
    if settings.exponential_decay_length_penalty is not None:
        start, factor = settings.exponential_decay_length_penalty
        yield ExponentialDecayLengthPenalty(
            mask("eos_token_id", ends), np.int32(prompt_length + start), np.float32(math.log(factor))
        )
    if settings.suppress_tokens is not None:
        yield SuppressTokens(mask("suppress_tokens", settings.suppress_tokens))
    if settings.begin_suppress_tokens is not None:
        # A forced first token is no beginning.
        begin = prompt_length + (prompt_length == 1 and settings.forced_bos_token_id is not None)
        yield SuppressTokensAtBegin(mask("begin_suppress_tokens", settings.begin_suppress_tokens), np.int32(begin))
    if settings.end_at_max_length:
        yield EndAtLimit(mask("eos_token_id", ends), max_length)


def _warpers(settings: GenerationConfig, vocab_size: int) -> Iterator[LogitsProcessor]:
    """Those of sampling."""
    # Under beam search a token that ends nothing has to be left to every beam.
    keep = 1 if settings.num_beams == 1 else max(2, 1 + len(settings.eos_token_ids))
    if settings.temperature != 1.0:
        yield Temperature(np.float32(settings.temperature))
    if settings.top_k > 0:
        k = min(max(settings.top_k, keep), vocab_size)
        yield TopK(np.int32(k), most=min(bucket(max(k, _LEAST_TOP_K)), vocab_size))
    if settings.top_p < 1.0:
        yield TopP(np.float32(settings.top_p), keep)
    if settings.min_p is not None:
        yield MinP(np.float32(settings.min_p), keep)
    if settings.typical_p < 1.0:
        yield TypicalP(np.float32(settings.typical_p), keep)


def _token_mask(name: str, tokens: int | tuple[int, ...], vocab_size: int) -> np.ndarray:
    """[V], True at the tokens."""
    tokens = (tokens,) if isinstance(tokens, int) else tokens
    check_tokens(name, tokens, vocab_size)
    mask = np.zeros(vocab_size, bool)
    mask[list(tokens)] = True
    return mask


def check_tokens(name: str, tokens: Iterable[Any], vocab_size: int) -> None:
    """Raises ValueError unless all are tokens of the vocabulary."""
    outside = [token for token in tokens if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(f"{name} holds {outside}; this model's tokens are 0 to {vocab_size - 1}")
