"""The loss of a text, and the decoder's input made from labels.

B images, T target tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
IGNORED_LABEL = -100


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean of -log p(label) over labels that are not -100, in float32 at least; logits [..., V], labels [...].

    labels[..., i] is the target of logits[..., i, :]: nothing is shifted here.
    """
    return summed_cross_entropy(logits, labels) / jnp.sum(labels != IGNORED_LABEL)


def summed_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """The sum over labels that are not -100 of -log p(label); arguments as in `cross_entropy`.

    With `label_smoothing` the target is that much of a uniform distribution over all V tokens and otherwise the label,
    as torch.nn.functional.cross_entropy has it (Szegedy et al., 2016, "Rethinking the Inception architecture").
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    is_counted = labels != IGNORED_LABEL
    picked = jnp.take_along_axis(log_probs, jnp.where(is_counted, labels, 0)[..., None], axis=-1)[..., 0]
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * jnp.mean(log_probs, axis=-1)
    return -jnp.sum(jnp.where(is_counted, picked, 0))


def shift_tokens_right(labels: Any, pad_token_id: int, decoder_start_token_id: int) -> Array:
    """Labels [B, T] -> decoder inputs [B, T]: the start token in front, the last label gone, -100 made pad.

    In:  [[5, 6, 2, -100]], pad 1, start 2
    Out: [[2, 5, 6, 2]]
    """
    labels = jnp.asarray(labels)
    shifted = jnp.concatenate([jnp.full_like(labels[:, :1], decoder_start_token_id), labels[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED_LABEL, pad_token_id, shifted)
