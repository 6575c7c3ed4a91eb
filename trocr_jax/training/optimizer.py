"""AdamW with a warmed-up learning rate, weight decay by parameter path, and clipping.

Parameters come as {path: array}, paths as "decoder/layers_0/mlp/fc1/kernel"; patterns are searched for in them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

ScheduleKind = Literal["inverse_sqrt", "cosine", "linear", "constant"]
Schedule = Callable[[Any], Any]
# As in transformers' Trainer: norms and biases are not pulled towards zero.
NOT_DECAYED = r"(^|/)(bias|scale)$"


def make_schedule(kind: ScheduleKind, peak: float, *, warmup_steps: int = 0, max_steps: int | None = None) -> Schedule:
    """Learning rate of each update, the first of which is number 0.

    It grows evenly over `warmup_steps` updates, the last of which has `peak`, then stays ("constant"), falls with the
    square root of the number of updates ("inverse_sqrt", fairseq's), or falls to 0 at `max_steps` as half a cosine or
    evenly ("linear"). Raises ValueError for an unknown kind or one whose end is not given.
    """
    if kind not in get_args(ScheduleKind):
        raise ValueError(f"schedule is {kind!r}; choose one of {list(get_args(ScheduleKind))}")
    if not 0 < peak < math.inf:
        raise ValueError(f"the learning rate is {peak}; it must be above 0 and finite")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be 0 or more")
    if kind in ("cosine", "linear") and (max_steps is None or max_steps <= warmup_steps):
        raise ValueError(
            f"a {kind} schedule ends: max_steps is {max_steps}, pass more than warmup_steps={warmup_steps}"
        )

    def schedule(count: Any) -> Any:
        update = jnp.asarray(count, jnp.float32) + 1
        warmed = jnp.minimum(update / max(warmup_steps, 1), 1.0)
        if kind == "inverse_sqrt":
            return peak * jnp.where(update > warmup_steps, jnp.sqrt(max(warmup_steps, 1) / update), warmed)
        if kind == "constant":
            return peak * warmed
        assert max_steps is not None
        left = jnp.clip((max_steps - update + 1) / (max_steps - warmup_steps), 0.0, 1.0)
        fallen = left if kind == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * left)
        return peak * jnp.minimum(warmed, fallen)

    return schedule


def make_optimizer(
    learning_rate: float | Schedule,
    *,
    weight_decay: float = 0.0,
    not_decayed: str = NOT_DECAYED,
    max_grad_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) as torch's, behind clipping by the gradients' global norm.

    Weights whose path `not_decayed` is found in are not decayed. `max_grad_norm` 0, or None, is no clipping.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must be 0 or more")
    if max_grad_norm is not None and not max_grad_norm >= 0:
        raise ValueError(f"max_grad_norm is {max_grad_norm}; it must be above 0, or 0 for no clipping")
    pattern = compile_pattern(not_decayed, "not_decayed")

    def is_decayed(params: Mapping[str, Any]) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not pattern.search(jax.tree_util.keystr(path, simple=True, separator="/")), params
        )

    adamw = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=is_decayed)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw) if max_grad_norm else adamw


def compile_pattern(pattern: str, name: str) -> re.Pattern[str]:
    """The compiled pattern; ValueError naming the option where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} is {pattern!r}, which is no regular expression: {error}") from error
