"""Schedules at the steps that matter, and which weights are decayed."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trocr_jax.training import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 99: 1.0}),
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 51: 1 - 47 / 96, 99: 1 / 96, 100: 0.0, 200: 0.0}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 52: 0.5, 100: 0.0}),
        ("inverse_sqrt", {0: 0.25, 3: 1.0, 15: 0.5, 99: 0.2}),
    ],
)
def test_schedules(kind, expected):
    schedule = make_schedule(kind, 2.0, warmup_steps=4, max_steps=100)
    for count, factor in expected.items():
        np.testing.assert_allclose(schedule(count), 2.0 * factor, atol=1e-6, err_msg=str(count))


def test_the_first_step_is_not_wasted():
    for kind in ("constant", "linear", "cosine", "inverse_sqrt"):
        assert math.isclose(make_schedule(kind, 0.1, max_steps=10)(0), 0.1, rel_tol=1e-6)


def test_norms_and_biases_are_not_decayed():
    names = ["decoder/fc1/kernel", "decoder/fc1/bias", "encoder/layernorm/scale", "encoder/embeddings/cls_token"]
    params = {name: jnp.ones(2) for name in names}
    gradients = {name: jnp.zeros(2) for name in names}

    def decayed(**options):
        optimizer = make_optimizer(0.1, weight_decay=0.5, **options)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose([u[0] for u in updates.values() if u[0] != 0], -0.05, rtol=1e-6)
        return [name for name in names if updates[name][0] != 0]

    assert decayed() == [names[0], names[3]]
    assert decayed(not_decayed="^encoder/") == names[:2]


@pytest.mark.parametrize(("max_grad_norm", "factor"), [(2.5, 0.5), (10.0, 1.0), (0, 1.0), (None, 1.0)])
def test_gradients_are_cut_to_a_norm_unless_that_is_0(max_grad_norm, factor):
    params, gradients = {"kernel": jnp.zeros(2)}, {"kernel": jnp.array([3.0, 4.0])}
    optimizer = make_optimizer(0.1, max_grad_norm=max_grad_norm)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    # Adam's first moment: a tenth of the gradient.
    moment = optax.tree_utils.tree_get(state, "mu")["kernel"]
    np.testing.assert_allclose(10 * moment, factor * gradients["kernel"], rtol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        make_schedule("step", 1.0)
    with pytest.raises(ValueError, match="max_steps is None"):
        make_schedule("cosine", 1.0)
    for peak in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"learning rate is {peak}; it must be above 0 and finite"):
            make_schedule("constant", peak)
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        make_schedule("constant", 1.0, warmup_steps=-1)
    with pytest.raises(ValueError, match="no regular expression"):
        make_optimizer(1.0, not_decayed="(")
    with pytest.raises(ValueError, match="max_grad_norm is -1"):
        make_optimizer(1.0, max_grad_norm=-1)
