"""Row by row: greedy search, the best token at every step, and sampling, a token drawn at random.

One program, no trip to the host between tokens. Samples of one image share its encoder states and cross keys and
values, as beams do. Source: transformers 5.23, GenerationMixin._sample.

B images, K samples of each (1 under greedy search), N = B*K decoder rows, L cache length, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from trocr_jax.decoding.logits_processors import process, start_processors
from trocr_jax.decoding.search import (
    Array,
    Cache,
    Hypotheses,
    Record,
    SearchOptions,
    StepFunction,
    is_end,
    own_slots,
    read_prompt,
)


@flax.struct.dataclass
class GreedyState:
    """Between two steps. `length` is the only place where the position is kept."""

    length: Array  # [] tokens in every row so far
    sequences: Array  # [N, L] int32
    token_log_probs: Array  # [N, L], in the dtype of the logits
    is_finished: Array  # [N]
    num_tokens: Array  # [N] new tokens so far, the end token included
    processor_states: tuple[Any, ...]
    record: Record
    cache: Cache


def start(
    step: StepFunction,
    prompt: Array,
    cache: Cache,
    options: SearchOptions,
    num_samples: int,
    length: int,
    vocab_size: int,
    dtype: Any,
) -> GreedyState:
    """The state before the first new token; prompt [B, P]."""
    batch, prompt_length = prompt.shape
    num_rows = batch * num_samples
    rows = jnp.repeat(prompt, num_samples, axis=0)  # [B, P] -> [N, P]
    sequences = jnp.full((num_rows, length), options.fill_token, jnp.int32)
    return GreedyState(
        length=jnp.int32(prompt_length),
        sequences=lax.dynamic_update_slice_in_dim(sequences, rows, 0, axis=1),
        token_log_probs=jnp.zeros((num_rows, length), dtype),
        is_finished=jnp.repeat(~options.is_image, num_samples),
        num_tokens=jnp.zeros(num_rows, jnp.int32),
        processor_states=start_processors(options.processors, num_rows, rows, vocab_size),
        record=Record.allocate(options, num_rows, length, vocab_size, dtype),
        cache=read_prompt(step, prompt, own_slots(batch, num_samples, length), cache),
    )


def is_unfinished(state: GreedyState, options: SearchOptions) -> Array:
    """Whether another step is needed."""
    return (state.length < options.max_length) & ~jnp.all(state.is_finished)


def advance(step: StepFunction, state: GreedyState, options: SearchOptions) -> GreedyState:
    """One more token in every unfinished row."""
    num_rows, buffer = state.sequences.shape
    batch = options.is_image.shape[0]
    samples = num_rows // batch
    position = state.length - 1
    tokens = lax.dynamic_slice_in_dim(state.sequences, position, 1, axis=1)  # [N, 1]
    tokens = tokens.reshape(batch, samples)  # [N, 1] -> [B, K]
    logits, cache = step(tokens, position, own_slots(batch, samples, buffer), state.cache)
    logits = logits.reshape(num_rows, -1)  # [B, K, V] -> [N, V]
    states, scores = process(options.processors, state.processor_states, state.sequences, state.length, logits)
    token, is_open = choose(scores, state.length, options)
    log_prob = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    # A row without any token left ends without a text, as an image does whose beams all end in nothing.
    is_dead = ~state.is_finished & ~is_open
    is_silent = state.is_finished | is_dead
    token = jnp.where(is_silent, options.fill_token, token)
    log_prob = jnp.where(is_silent, 0, log_prob)
    return GreedyState(
        length=state.length + 1,
        sequences=lax.dynamic_update_slice_in_dim(state.sequences, token[:, None], state.length, axis=1),
        token_log_probs=lax.dynamic_update_slice_in_dim(state.token_log_probs, log_prob[:, None], state.length, axis=1),
        is_finished=is_silent | is_end(token, options),
        num_tokens=jnp.where(is_dead, 0, state.num_tokens + ~state.is_finished),
        processor_states=states,
        record=state.record.write(state.length, scores, logits),
        cache=cache,
    )


def choose(scores: Array, length: Array, options: SearchOptions) -> tuple[Array, Array]:
    """(the next token of each row [N], whether there is one): the best, or drawn from softmax(scores); scores [N, V].

    There is none where the best score is -inf, or NaN.
    """
    if options.randomness is not None:
        split = scores.reshape(options.is_image.shape[0], -1, scores.shape[1])  # [N, V] -> [B, K, V]
        scores = options.randomness.perturb(split, length).reshape(scores.shape)
    # top_k instead of argmax: the same first maximum, three times faster on CPU.
    best, token = lax.top_k(scores, 1)
    return token[:, 0].astype(jnp.int32), best[:, 0] > -jnp.inf


def finish(state: GreedyState, num_samples: int, prompt_length: int, options: SearchOptions) -> Hypotheses:
    """The hypotheses of each image, in the order of their rows; one that came to nothing is its prompt alone."""
    is_text = (state.num_tokens > 0)[:, None]  # [N, 1]
    is_prompt = jnp.arange(state.sequences.shape[1]) < prompt_length
    sequences = jnp.where(is_text | is_prompt, state.sequences, options.fill_token)
    token_log_probs = jnp.where(is_text, state.token_log_probs, 0)

    def split(leaf: Array) -> Array:
        return leaf.reshape(-1, num_samples, *leaf.shape[1:])  # [N, ...] -> [B, K, ...]

    return Hypotheses(
        sequences=split(sequences),
        num_tokens=split(state.num_tokens),
        token_log_probs=split(token_log_probs),
        scores=split(jnp.sum(token_log_probs, axis=-1)),
        length=state.length,
        record=state.record,
    )
