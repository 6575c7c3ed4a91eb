"""One step of training: loss, gradients, update.

A accumulated parts, B images of a batch, T target tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from trocr_jax.modeling.loss import IGNORED_LABEL, shift_tokens_right, summed_cross_entropy
from trocr_jax.modeling.model import VisionEncoderDecoder, apply
from trocr_jax.training.layout import StateLayout
from trocr_jax.training.lora import LoRA, merge
from trocr_jax.training.optimizer import compile_pattern

Array = jax.Array
Params = Mapping[str, Any]
Flat = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """What training knows, all of it: with the same state and batches, the same follows.

    Flat trees are {path: array} with paths as "decoder/layers_0/mlp/fc1/kernel".
    """

    step: Array  # int32 [], steps done, skipped ones included
    trainable: Flat  # float32 master weights that are trained
    frozen: Flat  # those that are not, in the dtype they came in
    opt_state: Any  # the optimizer's, of the trainable ones alone
    ema: Flat | None  # a moving average of `trainable`, where one is kept
    key: Array  # dropout's; each step folds its number in
    # int32 [], steps that changed no weight: their loss or gradients were not finite, or they had no label to learn
    num_skipped: Array
    lora_scale: float = flax.struct.field(pytree_node=False, default=1.0)

    @property
    def params(self) -> Params:
        """The canonical parameter tree, adapters merged."""
        return self.joined(self.trainable)

    @property
    def averaged_params(self) -> Params:
        """The canonical tree with the moving average in place of what is trained; `params` where none is kept."""
        return self.joined(self.trainable if self.ema is None else self.ema)

    def joined(self, trainable: Flat) -> Params:
        """The canonical tree with this in place of what is trained."""
        return unflatten_dict(merge({**self.frozen, **trainable}, self.lora_scale), sep="/")


@flax.struct.dataclass
class StepMetrics:
    """What one step found: float32 scalars, on the device until they are looked at."""

    loss: Array  # mean over the batch's tokens
    grad_norm: Array  # global, before clipping
    num_tokens: Array  # that the loss counts
    is_updated: Array  # bool, whether weights were updated
    num_skipped: Array  # steps that were not, this one included


def create_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    frozen: str | None = None,
    lora: LoRA | None = None,
    with_ema: bool = False,
    dtype: Any = jnp.float32,
) -> TrainState:
    """The state before the first step: a copy of `params` as master weights in `dtype`, and nothing learned.

    Parameters whose path the pattern `frozen` is found in are not trained; with `lora` none are, but adapters beside
    them. Raises ValueError where the pattern freezes nothing, which is a misspelling, or all.
    """
    flat = flatten_dict(dict(params), sep="/")
    key, adapters_key = jax.random.split(jax.random.key(seed))
    if lora is None:
        names = set() if frozen is None else _frozen_names(flat, frozen)
        # Copies, since the step gives its buffers away.
        trainable = {name: jnp.array(leaf, dtype) for name, leaf in flat.items() if name not in names}
    elif frozen is None:
        names, trainable = set(flat), lora.adapters(flat, adapters_key)
    else:
        raise ValueError("with lora no weight is trained: leave out frozen, and choose by LoRA's pattern")
    return TrainState(
        step=jnp.int32(0),
        trainable=trainable,
        frozen={name: jnp.array(flat[name]) for name in names},
        opt_state=optimizer.init(trainable),
        ema={name: jnp.array(leaf) for name, leaf in trainable.items()} if with_ema else None,
        key=key,
        num_skipped=jnp.int32(0),
        lora_scale=1.0 if lora is None else lora.scale,
    )


def _frozen_names(flat: Mapping[str, Any], frozen: str) -> set[str]:
    pattern = compile_pattern(frozen, "frozen")
    names = {name for name in flat if pattern.search(name)}
    if not 0 < len(names) < len(flat):
        raise ValueError(
            f"frozen is {frozen!r}, which is found in {len(names)} of {len(flat)} parameters; paths are as "
            f"{', '.join(sorted(flat)[:3])}"
        )
    return names


def make_loss(
    model: VisionEncoderDecoder,
    *,
    start_token_id: int | None = None,
    label_smoothing: float = 0.0,
    deterministic: bool = False,
) -> Callable[..., Array]:
    """A function (params, pixel_values [B, 3, height, width], labels [B, T], dropout's key) -> summed loss.

    Labels are targets aligned with the logits (see `labels.py`), -100 is not counted. The start token is the
    configuration's unless it is given; pads stand behind the end of a text, where nothing that counts looks.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 up to but not 1")
    config = model.config
    start = config.label_start_token_id if start_token_id is None else start_token_id
    pad = config.label_pad_token_id

    def loss(params: Params, pixel_values: Array, labels: Array, key: Array) -> Array:
        ids = shift_tokens_right(labels, pad, start)
        rngs = None if deterministic else {"dropout": key}
        logits = apply(model, params, pixel_values, ids, deterministic=deterministic, rngs=rngs)
        return summed_cross_entropy(logits, labels, label_smoothing)

    return loss


def make_train_step(
    model: VisionEncoderDecoder,
    optimizer: optax.GradientTransformation,
    *,
    start_token_id: int | None = None,
    label_smoothing: float = 0.0,
    deterministic: bool = False,
    accumulate: int = 1,
    ema_decay: float | None = None,
    layout: StateLayout | None = None,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, StepMetrics]]:
    """A compiled function (state, pixel_values [B, 3, height, width], labels [B, T]) -> (next state, metrics).

    It computes as the model's policy says, from float32 master weights, and gives the old state's buffers away. With
    `accumulate` A, gradients of A parts of the batch are added up one after another, which is the gradient of the
    whole; A must divide B. A step whose loss or gradients are not finite, or that has no label, changes no weight and
    is counted. The moving average has decay `ema_decay`, less in the first steps: (1 + t) / (10 + t).

    A state that `layout` has put on devices stays so; batches are divided by `trocr_jax.sharding.shard_batch`.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; it is a number of parts of a batch, 1 or more")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay is {ema_decay}; it must lie between 0 and 1")
    loss = make_loss(model, start_token_id=start_token_id, label_smoothing=label_smoothing, deterministic=deterministic)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, pixel_values: Array, labels: Array) -> tuple[TrainState, StepMetrics]:
        if (state.ema is None) != (ema_decay is None):
            raise ValueError("a moving average needs both create_state(with_ema=True) and make_train_step(ema_decay=)")
        num_tokens = jnp.sum(labels != IGNORED_LABEL)
        value, grads = _gradients(
            _gathering(loss, layout), state, pixel_values, labels, num_tokens, accumulate=accumulate
        )
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        is_sound = jnp.isfinite(value) & jnp.isfinite(norm) & (num_tokens > 0)
        state = _updated(state, optimizer, grads, is_sound, ema_decay)
        if layout is not None:
            state = layout.constrain(state)
        return state, StepMetrics(value, norm, num_tokens, is_sound, state.num_skipped)

    return step


def _gathering(loss: Callable[..., Array], layout: StateLayout | None) -> Callable[..., Array]:
    """The loss of weights that are gathered first, where a layout divides them."""
    if layout is None or not layout.is_divided:
        return loss
    return lambda params, *others: loss(layout.gather(params), *others)


def _updated(
    state: TrainState, optimizer: optax.GradientTransformation, grads: Flat, is_sound: Array, ema_decay: float | None
) -> TrainState:
    """The next state: with new weights if all is sound, else with the old ones and one more skipped step."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    ema = state.ema
    if ema_decay is not None:
        count = (state.step - state.num_skipped).astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
        ema = jax.tree.map(lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), ema, trainable)
    new, old = (trainable, opt_state, ema), (state.trainable, state.opt_state, state.ema)
    trainable, opt_state, ema = jax.tree.map(lambda a, b: jnp.where(is_sound, a, b), new, old)
    return state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        trainable=trainable,
        opt_state=opt_state,
        ema=ema,
        num_skipped=state.num_skipped + ~is_sound,
    )


def _gradients(
    loss: Callable[..., Array],
    state: TrainState,
    pixel_values: Array,
    labels: Array,
    num_tokens: Array,
    *,
    accumulate: int,
) -> tuple[Array, Flat]:
    """(mean loss over the batch's tokens, its gradients with respect to `state.trainable`)."""
    key = jax.random.fold_in(state.key, state.step)

    def mean_loss(trainable: Flat, images: Array, targets: Array, key: Array) -> Array:
        # Divided by the tokens of the whole batch: the sum over its parts is then the mean over the whole.
        return loss(state.joined(trainable), images, targets, key) / jnp.maximum(num_tokens, 1)

    value_and_grad = jax.value_and_grad(mean_loss)
    if accumulate == 1:
        return value_and_grad(state.trainable, pixel_values, labels, key)
    if labels.shape[0] % accumulate:
        raise ValueError(f"{labels.shape[0]} images cannot be divided into {accumulate} equal parts; change accumulate")

    def add(total: tuple[Array, Flat], part: tuple[Array, ...]) -> tuple[tuple[Array, Flat], None]:
        images, targets, number = part
        found = value_and_grad(state.trainable, images, targets, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), None

    # [A*B] -> [A, B], rows of one part far from each other: divided over devices, each part lies on all of them.
    parts = [jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1) for x in (pixel_values, labels)]
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(value_and_grad, state.trainable, parts[0][0], parts[1][0], key))
    total, _ = lax.scan(add, zero, (*parts, jnp.arange(accumulate)))
    return total
