"""Boxes of characters, from where the decoder looked while it wrote them.

One teacher-forced pass over the text that was found gives cross-attention, which says where about in the image each
token stands: to a patch, 8 or 16 pixels of the model's input. The ink says to a pixel where strokes and gaps are. A
monotone alignment of text and image weighs both, and the widths that characters commonly have.

Aligning through cross-attention is what openai/whisper does for word timestamps (`timing.py`: chosen heads, then
dynamic time warping) and htrflow for word boxes. Here the heads are chosen by a rule, as no TrOCR has published ones,
and the dynamic programme is a segmental Viterbi search, so that it can weigh widths.

B images, T target tokens, G heads of the layers used, C patch columns, S encoder tokens, E width, X grid cells.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trocr_jax.decoding.generate import GenerationOutput
from trocr_jax.decoding.shapes import bucket
from trocr_jax.modeling.decoder import causal_mask
from trocr_jax.modeling.model import VisionEncoderDecoder, apply
from trocr_jax.results import Box
from trocr_jax.sharding import fetch

Array = jax.Array
Params = Mapping[str, Any]

# A head counts by exp(-spread / this), the spread being a standard deviation as a share of the image's width.
HEAD_SPREAD = 0.05
# A head that moves by less than this share of the width over a line rests.
RESTING = 0.01
# Widest grid, in cells, that cuts between characters are sought on; narrower images have a cell a pixel.
MAX_CELLS = 512
# A cell has ink if its share of ink is more than this part of what it is in a stroke.
INK_SHARE = 0.02
# Weights of the alignment's parts, found by random search on rendered lines: kinds as in benchmarks/boxes.py, and with
# stains beside the text or no usable ink at all. Sums over cells are in units of an average character's width.
MISMATCH = 2.0  # a character without ink, a space with it
MARGIN = 0.5  # ink before and behind the text
ATTENTION = 0.8  # log-share of the attention that a cell gets which is the character's own
FLOOR = 0.1  # added to that share: attention may be wrong
CUT = 1.5  # a cut through ink, of the height of common strokes
WIDTH, SPACE_WIDTH = 1.0, 0.6  # squared log-ratio to the common width
LONGEST, LONGEST_SPACE = 2.5, 5.0  # times the common width


def attention_of_best(
    model: VisionEncoderDecoder, params: Params, encoder_hidden_states: Array, output: GenerationOutput, batch: int
) -> list[np.ndarray]:
    """Where the best text of each image looked: float32 [new tokens, C] an image, rows summing to 1.

    encoder_hidden_states [rows, S, E] are those of `batch` images and of rows that only fill up. Compiled once for
    each number of rows and bucket of the texts' length.
    """
    best = slice(None, None, len(output.num_tokens) // batch)
    sequences, num_tokens = output.sequences[best], output.num_tokens[best]
    prompt_length = sequences.shape[1] - output.token_log_probs.shape[1]
    # The query at a position looks for the token behind it.
    ids = np.maximum(sequences[:, :-1], 0)
    first = prompt_length - 1
    length = min(bucket(max(1, ids.shape[1])), model.config.decoder.max_position_embeddings)
    padded = np.zeros((len(encoder_hidden_states), length), np.int32)
    padded[:batch, : ids.shape[1]] = ids
    is_query = np.zeros(padded.shape, bool)
    for row, count in enumerate(num_tokens):
        is_query[row, first : first + count] = True
    found = fetch(column_attention(params, encoder_hidden_states, padded, is_query, model=model))
    return [found[row, first : first + count] for row, count in enumerate(num_tokens)]


@functools.partial(jax.jit, static_argnames=("model",))
def column_attention(
    params: Params, encoder_hidden_states: Array, ids: Array, is_query: Array, *, model: VisionEncoderDecoder
) -> Array:
    """Attention [B, T, C] to the image's patch columns, a mean over heads weighted by `head_weights`.

    encoder_hidden_states [B, S, E], ids [B, T]; is_query [B, T] marks the positions that count. Only the upper half of
    the decoder's layers is used: lower ones look for where the line goes on as often as for the token at hand.
    """
    encoder = model.config.encoder
    rows, columns = encoder.patch_grid

    def decode(network: VisionEncoderDecoder, states: Array, ids: Array) -> tuple[Array, ...] | None:
        mask = causal_mask(ids.shape[1], ids.shape[1])
        return network.decoder(ids, network.project_encoder(states), mask, output_attentions=True).cross_attentions

    layers = apply(model, params, encoder_hidden_states, ids, method=decode)
    per_column = [
        # [B, H, T, S] -> [B, H, T, rows, C] -> [B, H, T, C]
        layer[..., encoder.num_prefix_tokens :].reshape(*layer.shape[:3], rows, columns).sum(3)
        for layer in layers[len(layers) // 2 :]
    ]
    heads = jnp.concatenate(per_column, axis=1).astype(jnp.float32)  # [B, G, T, C]
    heads = heads / jnp.maximum(heads.sum(-1, keepdims=True), 1e-9)
    return jnp.einsum("bg,bgtc->btc", head_weights(heads, is_query), heads, precision=lax.Precision.HIGHEST)


def head_weights(heads: Array, is_query: Array) -> Array:
    """Weights [B, G], summing to 1, of heads [B, G, T, C] (rows summing to 1); is_query [B, T] marks what counts.

    A head is good if it looks at few columns at a time and moves along the line with the text: exp(-spread /
    HEAD_SPREAD) times its squared correlation of place and position. That drops heads that rest on one patch, which
    are sharp too. With fewer than three tokens there is no correlation to speak of.
    """
    columns = heads.shape[-1]
    places = (jnp.arange(columns) + 0.5) / columns
    count = jnp.maximum(is_query.sum(-1), 1)[:, None]  # [B, 1]
    weight = is_query[:, None, :] / count[..., None]  # [B, 1, T]
    # Rounded factors, which other devices' default is, would leave nothing of the small difference.
    mean = functools.partial(jnp.einsum, "bgtc,c->bgt", heads, precision=lax.Precision.HIGHEST)
    place = mean(places)
    variance = mean(places**2) - place**2
    spread = (jnp.sqrt(jnp.maximum(variance, 0)) * weight).sum(-1)
    steps = jnp.broadcast_to(jnp.arange(heads.shape[2], dtype=heads.dtype), place.shape)
    place = place - (place * weight).sum(-1, keepdims=True)
    steps = steps - (steps * weight).sum(-1, keepdims=True)
    covariance = (place * steps * weight).sum(-1)
    scale = ((place**2 * weight).sum(-1) + RESTING**2) * (steps**2 * weight).sum(-1)
    correlation = jnp.where(count < 3, 1.0, covariance**2 / jnp.maximum(scale, 1e-9))
    weights = jnp.exp(-spread / HEAD_SPREAD) * correlation + 1e-9  # never all zero
    return weights / weights.sum(-1, keepdims=True)


def locate_characters(
    text: str, spans: Sequence[tuple[int, int]], attention: np.ndarray, places: np.ndarray, ink: np.ndarray
) -> list[Box | None]:
    """A box for each character of a text, in pixels of the image; None for white space.

    `spans` are the characters that each token holds; attention [tokens, C] and the x of its columns' middles,
    places [C]; ink bool [h, w] as `find_ink` gives it. Boxes end where the ink does, also above and below; a character
    without any has all of its place and the line's height. Marks that stand over other characters share their boxes.
    """
    if _is_right_to_left(text):
        width = ink.shape[1]
        boxes = _locate(text, spans, attention[:, ::-1], width - places[::-1], ink[:, ::-1])
        return [None if box is None else (width - box[2], box[1], width - box[0], box[3]) for box in boxes]
    return _locate(text, spans, attention, places, ink)


def _locate(
    text: str, spans: Sequence[tuple[int, int]], attention: np.ndarray, places: np.ndarray, ink: np.ndarray
) -> list[Box | None]:
    clusters = _clusters(text)
    if not clusters:
        return [None] * len(text)
    num_cells = max(min(ink.shape[1], MAX_CELLS), 2 * len(clusters))
    middles = (np.arange(num_cells) + 0.5) * ink.shape[1] / num_cells
    held = np.array([[first < end and last > start for start, end in clusters] for first, last in spans])
    held = held.reshape(len(spans), len(clusters))
    is_seen = held.any(1)  # special tokens look at nothing
    looks = np.array([np.interp(middles, places, row) for row in attention[is_seen]])  # [tokens, X]
    shares = held[is_seen].T @ (looks / np.maximum(looks.sum(0), 1e-6))  # [clusters, X]
    # Against the best of each cell, so that attention which says nothing weighs nothing.
    log_shares = np.log((shares + FLOOR) / (shares.max(0) + FLOOR))
    edges = align([text[start:end] for start, end in clusters], log_shares, _profile(ink, num_cells))
    edges = edges * ink.shape[1] / num_cells
    boxes: list[Box | None] = [None] * len(text)
    for (start, end), (left, right) in zip(clusters, itertools.pairwise(edges), strict=True):
        if not text[start].isspace():
            boxes[start:end] = [_tight(ink, left, right)] * (end - start)
    return boxes


def align(clusters: Sequence[str], log_shares: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Where characters begin and the last one ends: cuts [len(clusters) + 1], increasing, in cells of the grid.

    log_shares [clusters, X] are logarithms of the attention's shares, at most 0; profile [X] is the ink in each cell, 1
    for that of a common stroke. The best of all cuts in order, by dynamic programming: `best[x]` is the score of the
    clusters so far if the last of them ends at x.
    """
    num_cells = len(profile)
    is_ink = profile > INK_SHARE
    inked = np.flatnonzero(is_ink)
    widths = np.array([common_width(cluster) for cluster in clusters])
    unit = (inked[-1] + 1 - inked[0]) / widths.sum()
    margin = _sums(-MARGIN * is_ink / unit)
    through = np.concatenate([[0], np.minimum(profile[:-1], profile[1:]), [0]])
    best = margin
    chosen: list[np.ndarray] = []
    for cluster, width, log_share in zip(clusters, widths, log_shares, strict=True):
        is_space = cluster.isspace()
        cells = (-MISMATCH * (is_ink if is_space else ~is_ink) + ATTENTION * log_share) / unit
        total = _sums(cells)
        common = max(width * unit, 1.0)
        longest = min(num_cells, int(max(4, (LONGEST_SPACE if is_space else LONGEST) * common + 2)))
        lengths = np.arange(longest, 0, -1)
        score = -(SPACE_WIDTH if is_space else WIDTH) * np.log(lengths / common) ** 2
        # Row x: the scores of all places that a cluster which ends at x may begin at, x - longest to x - 1.
        before = np.concatenate([np.full(longest, -np.inf), best - total])
        candidates = np.lib.stride_tricks.sliding_window_view(before, longest)[: num_cells + 1] + score
        picked = candidates.argmax(1)
        best = candidates[np.arange(num_cells + 1), picked] + total - CUT * through
        chosen.append(np.arange(num_cells + 1) - lengths[picked])
    cuts = [int(np.argmax(best + margin[-1] - margin))]
    for begins in reversed(chosen):
        cuts.append(int(begins[cuts[-1]]))
    return np.array(cuts[::-1])


def common_width(cluster: str) -> float:
    """About how wide a character is, 1 for most small letters: classes read off proportional text faces."""
    character = cluster[0]
    if character.isspace():
        return 0.6
    if unicodedata.east_asian_width(character) in "WF":
        return 2.0
    if character in "iljI.,:;'`!|":
        return 0.5
    if character in 'tfr1()[]{}"-/\\':
        return 0.7
    if character in "mwMW@%—":
        return 1.6
    return 1.3 if character.isupper() else 1.05


def _clusters(text: str) -> list[tuple[int, int]]:
    r"""Spans of characters, each with the marks and joiners behind it, without white space around the text.

    A mark behind white space, which it cannot stand over, is a character of its own.

    In: " e\u0301t " Out: [(1, 3), (3, 4)]
    """
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())

    def begins(i: int) -> bool:
        is_mark = unicodedata.category(text[i]) in ("Mn", "Me", "Cf")
        return i == start or not is_mark or text[i - 1].isspace()

    starts = [i for i in range(start, end) if begins(i)]
    return list(zip(starts, [*starts[1:], end], strict=False))


def _is_right_to_left(text: str) -> bool:
    kinds = [unicodedata.bidirectional(character) for character in text]
    return sum(kind in ("R", "AL") for kind in kinds) > kinds.count("L")


def _profile(ink: np.ndarray, num_cells: int) -> np.ndarray:
    """Ink in each of `num_cells` cells along the line, 1 for that of a common stroke: bool [h, w] -> [X]."""
    edges = np.linspace(0, ink.shape[1], num_cells + 1)
    profile = np.diff(np.interp(edges, np.arange(ink.shape[1] + 1), _sums(ink.mean(0))))
    inked = profile[profile > 0]
    if not inked.size:
        return np.ones(num_cells)  # nothing to go by: attention and widths alone
    return np.minimum(profile / np.percentile(inked, 80), 1)


def _tight(ink: np.ndarray, left: float, right: float) -> Box:
    """The box of the ink between two cuts; all between them, as high as the line, where there is none."""
    first, last = round(left), max(round(left) + 1, round(right))
    part = ink[:, first:last]
    columns, rows = np.flatnonzero(part.any(0)), np.flatnonzero(part.any(1))
    if not columns.size:
        of_line = np.flatnonzero(ink.any(1))
        top, bottom = (of_line[0], of_line[-1] + 1) if of_line.size else (0, len(ink))
        return (float(left), float(top), float(right), float(bottom))
    return (float(first + columns[0]), float(rows[0]), float(first + columns[-1] + 1), float(rows[-1] + 1))


def _sums(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])
