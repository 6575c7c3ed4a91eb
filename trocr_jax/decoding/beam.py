"""Beam search, vectorised over images and beams; token for token the reference's.

Source: transformers 5.23, GenerationMixin._beam_search (the vectorised search that replaced BeamSearchScorer in 4.50).
We differ in what cannot be seen from outside: the cache is not reordered but looked at through `ancestors`, the best
continuations are found per beam and then merged, and rows that only fill the batch up to its bucket never hold it up.

B images, K beams, C = (1 + number of end tokens, at least 2) * K candidates, P prompt tokens, L cache length,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from trocr_jax.decoding.logits_processors import process, start_processors
from trocr_jax.decoding.search import (
    EARLY_STOPPING,
    NEG_INF,
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
class Beams:
    """Texts and their scores, [B, n] of them: n = K running, K finished, or C candidates."""

    sequences: Array  # [B, n, L] int32
    token_log_probs: Array  # [B, n, L]
    scores: Array  # [B, n]
    num_tokens: Array  # [B, n] new tokens; 0 in a slot that nothing has filled
    beam_indices: Array | None = None  # [B, n, L] int32 the beam each new token was drawn from, -1 behind the end

    def take(self, indices: Array) -> Beams:
        """These beams in another order or number; indices [B, m]."""
        return jax.tree.map(lambda leaf: _gather(leaf, indices), self)


@flax.struct.dataclass
class BeamState:
    """Between two steps. `length` is the only place where the position is kept."""

    length: Array  # [] tokens in every running row
    running: Beams  # K; scores are plain sums of processed log-probabilities, plus NEG_INF for a dead beam
    finished: Beams  # K, best first; scores are divided by the length penalty, NEG_INF in an empty slot
    is_filled: Array  # [B, K] whether a finished slot holds a hypothesis
    can_improve: Array  # [B] whether the running beams may still beat the finished ones; once False, for good
    is_exhausted: Array  # [B] whether every candidate of the last step ended, so that nothing runs on
    ancestors: Array  # [B, K, L] the beam whose cache slot holds each position of a running beam
    processor_states: tuple[Any, ...]  # leaves [N, ...]
    record: Record  # steps of the running beams, in the order that these had at each step
    cache: Cache


def start(
    step: StepFunction,
    prompt: Array,
    cache: Cache,
    options: SearchOptions,
    num_beams: int,
    length: int,
    vocab_size: int,
    dtype: Any,
) -> BeamState:
    """The state before the first new token; prompt [B, P]."""
    batch, prompt_length = prompt.shape
    shape = (batch, num_beams)
    sequences = jnp.full((*shape, length), options.fill_token, jnp.int32)
    sequences = sequences.at[:, :, :prompt_length].set(prompt[:, None])
    empty = Beams(
        sequences=sequences,
        token_log_probs=jnp.zeros((*shape, length), dtype),
        scores=jnp.full(shape, NEG_INF, dtype),
        num_tokens=jnp.zeros(shape, jnp.int32),
        beam_indices=jnp.full((*shape, length), -1, jnp.int32) if _keeps_steps(options) else None,
    )
    ancestors = own_slots(batch, num_beams, length)
    rows = jnp.repeat(prompt, num_beams, axis=0)  # [B, P] -> [N, P]
    return BeamState(
        length=jnp.int32(prompt_length),
        # All beams read the same prompt: only the first may continue it, or all would find the same texts. The
        # reference gives the others -1e9, and where constraints leave few texts returns the same ones again.
        running=dataclasses.replace(empty, scores=jnp.full(shape, -jnp.inf, dtype).at[:, 0].set(0)),
        finished=empty,
        is_filled=jnp.zeros(shape, bool),
        can_improve=options.is_image,
        is_exhausted=~options.is_image,
        ancestors=ancestors,
        processor_states=start_processors(options.processors, batch * num_beams, rows, vocab_size),
        record=Record.allocate(options, batch * num_beams, length, vocab_size, dtype),
        cache=read_prompt(step, prompt, ancestors, cache),
    )


def is_unfinished(state: BeamState, options: SearchOptions) -> Array:
    """Whether another step is needed. The batch stops as one; a decided image's result no longer changes."""
    is_full = jnp.all(state.is_filled | ~options.is_image[:, None])
    is_decided = is_full & (options.early_stopping == EARLY_STOPPING[True])
    return jnp.any(state.can_improve) & ~is_decided & ~jnp.all(state.is_exhausted)


def advance(step: StepFunction, state: BeamState, options: SearchOptions, prompt_length: int) -> BeamState:
    """One more token on every running beam."""
    batch, beams, buffer = state.running.sequences.shape
    position = state.length - 1
    tokens = lax.dynamic_slice_in_dim(state.running.sequences, position, 1, axis=2)[:, :, 0]  # [B, K]
    logits, cache = step(tokens, position, state.ancestors, state.cache)

    log_probs = jax.nn.log_softmax(logits, axis=-1)  # [B, K, V]
    rows = log_probs.reshape(batch * beams, -1)  # [B, K, V] -> [N, V]
    sequences = state.running.sequences.reshape(batch * beams, buffer)
    states, rows = process(options.processors, state.processor_states, sequences, state.length, rows)
    scores = rows.reshape(log_probs.shape) + state.running.scores[:, :, None]

    num_candidates = max(2, 1 + options.end_tokens.shape[0]) * beams
    candidate_scores, parents, next_tokens = continuations(scores, num_candidates, state.length, options)
    candidates = extend(state.running, state.length, candidate_scores, parents, next_tokens, log_probs)
    hits = is_end(next_tokens, options) | (state.length + 1 >= options.max_length)  # [B, C]

    chosen = lax.top_k(candidates.scores + hits * NEG_INF, beams)  # ([B, K] scores, [B, K] indices)
    running = dataclasses.replace(candidates.take(chosen[1]), scores=chosen[0])
    finished, is_filled = update_finished(state, candidates, hits, options, prompt_length)
    chosen_parents = _gather(parents, chosen[1])
    can_improve = state.can_improve & may_improve(
        running.scores[:, 0], finished.scores, is_filled, state.length + 1 - prompt_length, options, prompt_length
    )
    return BeamState(
        length=state.length + 1,
        running=running,
        finished=finished,
        is_filled=is_filled,
        can_improve=can_improve,
        is_exhausted=jnp.all(hits, axis=-1) | ~options.is_image,
        ancestors=inherit(state.ancestors, chosen_parents, position),
        processor_states=_reorder(states, chosen_parents),
        record=state.record.write(state.length, rows, logits.reshape(rows.shape)),
        cache=cache,
    )


def continuations(
    scores: Array, num_candidates: int, length: Array, options: SearchOptions
) -> tuple[Array, Array, Array]:
    """The candidates of each image: scores [B, K, V] -> (scores, beams, tokens), each [B, C].

    The best, best first; or, under sampling, drawn without replacement in the order drawn.
    """
    if options.randomness is None:
        return top_continuations(scores, num_candidates)
    _, parents, tokens = top_continuations(options.randomness.perturb(scores, length), num_candidates)
    return _pick(scores, parents, tokens), parents, tokens


def top_continuations(scores: Array, num_candidates: int) -> tuple[Array, Array, Array]:
    """The best candidates of each image: scores [B, K, V] -> (scores, beams, tokens), each [B, C], best first.

    Each beam's best C first, then the best of those: the same as over all K*V, ties included, where the lower beam and
    then the lower token wins, without sorting K*V numbers.
    """
    batch, beams, vocab_size = scores.shape
    most = min(num_candidates, vocab_size)
    best, tokens = lax.top_k(scores.reshape(batch * beams, vocab_size), most)  # rank 2 keeps GPU's fast path
    best, order = lax.top_k(best.reshape(batch, beams * most), min(num_candidates, beams * most))
    tokens = jnp.take_along_axis(tokens.reshape(batch, beams * most), order, axis=1)
    return best, order // most, tokens.astype(jnp.int32)


def extend(running: Beams, length: Array, scores: Array, parents: Array, tokens: Array, log_probs: Array) -> Beams:
    """The candidates: each parent's text and one token more. parents, tokens [B, C]; log_probs [B, K, V]."""

    def append(texts: Array, values: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(texts, values[:, :, None], length, axis=2)

    texts = running.take(parents)
    return Beams(
        sequences=append(texts.sequences, tokens),
        token_log_probs=append(texts.token_log_probs, _pick(log_probs, parents, tokens)),
        scores=scores,
        num_tokens=texts.num_tokens + 1,
        beam_indices=None if texts.beam_indices is None else append(texts.beam_indices, parents),
    )


def update_finished(
    state: BeamState, candidates: Beams, hits: Array, options: SearchOptions, prompt_length: int
) -> tuple[Beams, Array]:
    """(the K best finished texts after this step, whether each slot is filled [B, K]).

    Only candidates that ended and rank among the first K may enter, at their score over length ** length_penalty,
    where the length counts the end token but not the prompt.
    """
    beams = state.is_filled.shape[1]
    may_finish = hits & (jnp.arange(hits.shape[1]) < beams)
    is_closed = jnp.all(state.is_filled, axis=-1) & (options.early_stopping == EARLY_STOPPING[True])
    length = (state.length + 1 - prompt_length).astype(candidates.scores.dtype)
    scores = candidates.scores / length ** options.length_penalty.astype(candidates.scores.dtype)
    # Each obstacle adds NEG_INF instead of replacing the score, as in the reference.
    scores = scores + is_closed[:, None] * NEG_INF + ~state.can_improve[:, None] * NEG_INF + ~may_finish * NEG_INF
    merged = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new], axis=1),
        state.finished,
        dataclasses.replace(candidates, scores=scores),
    )
    best = lax.top_k(merged.scores, beams)[1]
    is_filled = jnp.concatenate([state.is_filled, may_finish], axis=1)
    return merged.take(best), _gather(is_filled, best)


def may_improve(
    best_running: Array,
    finished_scores: Array,
    is_filled: Array,
    num_tokens: Array,
    options: SearchOptions,
    prompt_length: int,
) -> Array:
    """[B]: whether the best running beam, at its hoped-for length, beats the worst finished text.

    That length is the present one, or the longest allowed where early_stopping is "never" and longer texts score
    better. best_running [B]; finished_scores and is_filled [B, K].
    """
    is_optimistic = (options.early_stopping == EARLY_STOPPING["never"]) & (options.length_penalty > 0)
    hoped = jnp.where(is_optimistic, options.max_length - prompt_length, num_tokens).astype(best_running.dtype)
    best = best_running / hoped ** options.length_penalty.astype(best_running.dtype)
    worst = jnp.where(is_filled, jnp.min(finished_scores, axis=1, keepdims=True), NEG_INF)
    return jnp.any(best[:, None] > worst, axis=-1)


def inherit(ancestors: Array, parents: Array, position: Array) -> Array:
    """Ancestors [B, K, L] after each beam continues a parent; parents [B, K].

    In:  ancestors [[0, 0, 0], [1, 1, 1]], parents [1, 1], position 1
    Out: [[1, 1, 0], [1, 1, 1]]
    """
    batch, beams, length = ancestors.shape
    is_past = jnp.arange(length) <= position
    return jnp.where(is_past, _gather(ancestors, parents), own_slots(batch, beams, length))


def finish(state: BeamState) -> Hypotheses:
    """The finished texts of each image, best first."""
    # The reference can leave an empty slot where it returned junk; ours says so by having no tokens.
    finished = state.finished
    return Hypotheses(
        sequences=finished.sequences,
        num_tokens=jnp.where(state.is_filled, finished.num_tokens, 0),
        token_log_probs=finished.token_log_probs,
        scores=finished.scores,
        length=state.length,
        record=state.record,
        beam_indices=finished.beam_indices,
    )


def _keeps_steps(options: SearchOptions) -> bool:
    return options.output_scores or options.output_logits


def _pick(values: Array, beams: Array, tokens: Array) -> Array:
    """Values [B, K, V] at beams and tokens, each [B, C] -> [B, C]."""
    batch, _, vocab_size = values.shape
    return jnp.take_along_axis(values.reshape(batch, -1), beams * vocab_size + tokens, axis=1)  # of [B, K*V]


def _gather(leaf: Array, indices: Array) -> Array:
    """Leaf [B, n, ...] at indices [B, m] -> [B, m, ...]."""
    return jnp.take_along_axis(leaf, indices.reshape(*indices.shape, *(1,) * (leaf.ndim - 2)), axis=1)


def _reorder(states: tuple[Any, ...], parents: Array) -> tuple[Any, ...]:
    batch, beams = parents.shape

    def reorder(leaf: Array) -> Array:
        split = leaf.reshape(batch, beams, *leaf.shape[1:])  # [N, ...] -> [B, K, ...]
        return _gather(split, parents).reshape(leaf.shape)

    return jax.tree.map(reorder, states)
