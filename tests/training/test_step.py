"""The step against torch: gradients, one update, two hundred of them; and what the step does beside."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.twins import config_dict, make_twin, switched
from trocr_jax.checkpoints import names, store
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.modeling.policy import get_policy
from trocr_jax.training import create_state, make_loss, make_optimizer, make_train_step, pad_labels

SMALL = config_dict({"num_hidden_layers": 1}, {"decoder_layers": 1})
TEXTS = [[7, 30, 12, 9, 2], [5, 2], [11, 4, 2], [33, 8, 8, 2]]


def batch(twin, seed=0, dtype="float32"):
    return twin.pixels(len(TEXTS), seed, dtype), pad_labels(TEXTS, 6)


def torch_loss(oracle, pixels, labels, label_smoothing=0.0, start=2):
    """By hand, from the logits: the oracle's own loss was wrong in some versions."""
    labels = torch.from_numpy(labels).long()
    ids = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    ids = ids.masked_fill(ids == -100, 1)
    logits = oracle(torch.from_numpy(pixels), decoder_input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)


def as_tree(oracle, config, pick):
    """What `pick` takes of each of the oracle's parameters, as our tree."""
    found = {name: pick(p) for name, p in oracle.named_parameters(remove_duplicate=False)}
    found = {name: value.detach().numpy() for name, value in found.items() if value is not None}
    return store.from_torch(found, names.table(config), "the oracle")


def close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


OTHER = switched(encoder="deit", positions="sinusoidal", tied=False, cross="bridge", layernorm_embedding=False)


def test_gradients_are_torchs_in_float64_recomputed_or_not(x64):
    twin, start = make_twin(OTHER), 0
    oracle = copy.deepcopy(twin.oracle).double()
    positions = oracle.decoder.model.decoder.embed_positions
    positions.weights = positions.weights.double()
    pixels, labels = batch(twin, dtype="float64")
    expected = torch_loss(oracle, pixels, labels, 0.1, start)
    expected.backward()
    policy = dataclasses.replace(get_policy("float64"), remat=True)
    model = VisionEncoderDecoder(twin.config, policy)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), twin.params)
    loss = make_loss(model, start_token_id=start, label_smoothing=0.1, deterministic=True)
    value, grads = jax.jit(jax.value_and_grad(loss))(params, pixels, labels, jax.random.key(0))
    count = (labels != -100).sum()
    np.testing.assert_allclose(value / count, expected.item(), rtol=1e-12)
    grads = jax.tree.map(lambda leaf: leaf / count, grads)
    close(grads, as_tree(oracle, twin.config, lambda p: p.grad), atol=1e-8, rtol=0)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 0.1


@pytest.fixture(scope="module")
def twin():
    return make_twin(SMALL)


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(1e-3, weight_decay=1e-2)


@pytest.fixture(scope="module")
def plain_step(twin, optimizer):
    """A step that has been compiled once; states without a moving average and nothing frozen."""
    return make_train_step(model_of(twin), optimizer, deterministic=True)


def model_of(twin, **dropout):
    decoder = dataclasses.replace(twin.config.decoder, **dropout)
    return VisionEncoderDecoder(dataclasses.replace(twin.config, decoder=decoder), get_policy("float32"))


def leaves(tree):
    return {"/".join(k.key for k in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def torch_adamw(oracle, learning_rate, weight_decay):
    """Torch's, with what is decayed told by the oracle's own names."""
    groups = {True: [], False: []}
    for name, p in oracle.named_parameters():
        groups["norm" not in name and not name.endswith("bias")].append(p)
    options = [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(options, lr=learning_rate)


def torch_steps(oracle, batches, learning_rate, weight_decay, max_grad_norm):
    """The loss of each step, taken by torch."""
    optimizer, losses = torch_adamw(oracle, learning_rate, weight_decay), []
    for pixels, labels in batches:
        optimizer.zero_grad()
        loss = torch_loss(oracle, pixels, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in oracle.parameters() if p.grad is not None], max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_one_update_is_torchs(x64, twin):
    oracle = copy.deepcopy(twin.oracle).double()
    pixels, labels = batch(twin, dtype="float64")
    [expected] = torch_steps(oracle, [(pixels, labels)], 1e-2, 0.1, 0.5)
    model = VisionEncoderDecoder(twin.config, get_policy("float64"))
    optimizer = make_optimizer(1e-2, weight_decay=0.1, max_grad_norm=0.5)
    state = create_state(twin.params, optimizer, dtype="float64")
    state, found = make_train_step(model, optimizer, deterministic=True)(state, pixels, labels)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-12)
    assert found.grad_norm > 0.5  # it was clipped
    gradients = leaves(as_tree(oracle, twin.config, lambda p: p.grad))
    for name, moment in state.opt_state[1][0].mu.items():
        np.testing.assert_allclose(moment / 0.1, gradients[name], atol=1e-8, rtol=0, err_msg=name)
    updated = as_tree(oracle, twin.config, lambda p: p)
    # Where a gradient is rounding alone, as that of keys' biases is, Adam makes a whole step of its sign.
    sure, expected = leaves(state.params), leaves(updated)
    assert sure.keys() == expected.keys()
    keys = {name for name in sure if name.endswith("k_proj/bias")}
    assert len(keys) == 3
    for name in sure.keys() - keys:
        np.testing.assert_allclose(sure[name], expected[name], atol=1e-8, rtol=0, err_msg=name)


@pytest.mark.slow
def test_a_loss_curve_is_torchs(twin, optimizer, plain_step):
    oracle, rng = copy.deepcopy(twin.oracle), np.random.default_rng(0)
    batches = [
        (twin.pixels(4, i % 5), pad_labels([[*rng.integers(3, 41, 4).tolist(), 2] for _ in range(4)], 6))
        for i in range(5)
    ] * 40
    expected = torch_steps(oracle, batches, 1e-3, 1e-2, 1.0)
    state, losses = create_state(twin.params, optimizer), []
    for pixels, labels in batches:
        state, found = plain_step(state, pixels, labels)
        losses.append(float(found.loss))
    assert len(losses) == 200
    assert expected[-1] < 0.5 * expected[0]
    np.testing.assert_allclose(losses, expected, atol=1e-3, rtol=0)


def test_recomputing_keeps_less_for_the_gradient():
    """XLA's CPU compiler computes nothing twice, so that its own figures show none of it."""
    config = VisionEncoderDecoderConfig.from_dict(config_dict({"num_hidden_layers": 6}, {"decoder_layers": 1}))
    pixels = jax.ShapeDtypeStruct((16, 3, *config.encoder.image_shape), "float32")
    labels = jax.ShapeDtypeStruct((16, 6), "int32")

    def kept(remat):
        model = VisionEncoderDecoder(config, dataclasses.replace(get_policy("float32"), remat=remat))
        loss = functools.partial(jax.vjp, make_loss(model, deterministic=True))
        _, backward = jax.eval_shape(loss, abstract_params(model), pixels, labels, jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    assert kept(True) < 0.5 * kept(False)


def test_accumulation_is_one_big_batch(twin, optimizer, plain_step):
    pixels, labels = batch(twin)
    whole, found = plain_step(create_state(twin.params, optimizer), pixels, labels)
    step = make_train_step(model_of(twin), optimizer, deterministic=True, accumulate=2)
    parts, parts_found = step(create_state(twin.params, optimizer), pixels, labels)
    np.testing.assert_allclose(parts_found.loss, found.loss, rtol=1e-6)
    np.testing.assert_allclose(parts_found.grad_norm, found.grad_norm, rtol=1e-5)
    assert parts_found.num_tokens == found.num_tokens == 14
    # Adam's first step is the gradient's sign: compare its memory of the gradients.
    close(parts.opt_state[1][0].mu, whole.opt_state[1][0].mu, atol=1e-6)
    with pytest.raises(ValueError, match="4 images cannot be divided into 3"):
        make_train_step(model_of(twin), optimizer, accumulate=3)(create_state(twin.params, optimizer), pixels, labels)


def test_a_step_that_is_not_finite_or_has_no_label_is_skipped_and_counted(twin, optimizer, plain_step):
    pixels, labels = batch(twin)
    state, _ = plain_step(create_state(twin.params, optimizer), pixels, labels)
    before = jax.tree.map(np.array, (state.trainable, state.opt_state))
    state, found = plain_step(state, np.full_like(pixels, np.nan), labels)
    assert not found.is_updated
    assert (int(state.step), int(state.num_skipped)) == (2, 1)
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.opt_state), before)
    # Neither Adam's momentum nor decay moves weights where there is nothing to learn.
    state, found = plain_step(state, pixels, np.full_like(labels, -100))
    assert not found.is_updated
    assert found.loss == 0
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.opt_state), before)
    state, found = plain_step(state, pixels, labels)
    assert found.is_updated
    assert (int(state.step), int(state.num_skipped)) == (4, 2)
    assert not np.array_equal(
        state.trainable["decoder/embed_tokens/embedding"], before[0]["decoder/embed_tokens/embedding"]
    )


@pytest.fixture(scope="module")
def half_step(twin, optimizer):
    """A step with dropout, a moving average and (by the states it is given) a part of the weights frozen."""
    return make_train_step(model_of(twin, dropout=0.2), optimizer, ema_decay=0.9)


def half_state(twin, optimizer, **options):
    return create_state(twin.params, optimizer, frozen=r"^encoder/|embed_", with_ema=True, **options)


def test_frozen_weights_do_not_change_and_have_no_optimizer_state(twin, optimizer, half_step):
    pixels, labels = batch(twin)
    state, weights = half_state(twin, optimizer), []
    for _ in range(2):
        state, _ = half_step(state, pixels, labels)
        weights.append(leaves(state.params))
    before, (first, second) = leaves(twin.params), weights
    frozen = {name for name in before if name.startswith("encoder/") or "embed_" in name}
    assert 20 < len(frozen) < len(before)
    for name in before:
        assert (before[name].tobytes() == second[name].tobytes()) == (name in frozen), name
    assert not frozen & state.opt_state[1][0].mu.keys()
    # Decay is 1 / 10 behind the first update, 2 / 11 behind the second.
    averaged = leaves(state.averaged_params)
    for name in before:
        expected = 2 / 11 * (0.1 * before[name] + 0.9 * first[name]) + 9 / 11 * second[name]
        np.testing.assert_allclose(averaged[name], expected, atol=1e-6)


def test_dropout_depends_on_the_key_and_the_step(twin, optimizer, half_step):
    def loss(seed, step):
        state = half_state(twin, optimizer, seed=seed).replace(step=jnp.int32(step))
        return float(half_step(state, *batch(twin))[1].loss)

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3


def test_patterns_that_freeze_nothing_are_refused(twin, optimizer):
    with pytest.raises(ValueError, match=r"'encodr', which is found in 0 of"):
        create_state(twin.params, optimizer, frozen="encodr")


def test_bfloat16_computes_from_float32_master_weights(twin, optimizer, plain_step):
    pixels, labels = batch(twin)
    half = make_train_step(VisionEncoderDecoder(twin.config, get_policy("bfloat16")), optimizer, deterministic=True)
    state, found = half(create_state(twin.params, optimizer), pixels, labels)
    exact, expected = plain_step(create_state(twin.params, optimizer), pixels, labels)
    assert {leaf.dtype.name for leaf in state.trainable.values()} == {"float32"}
    assert 0 < abs(float(found.loss - expected.loss)) < 0.1
    assert 0 < abs(float(found.grad_norm / expected.grad_norm - 1)) < 0.1
    moments, exact_moments = state.opt_state[1][0].mu, exact.opt_state[1][0].mu
    name = "decoder/layers_0/mlp/fc1/kernel"
    assert np.corrcoef(moments[name].ravel(), exact_moments[name].ravel())[0, 1] > 0.99


def test_products_of_gradients_have_rounded_factors_in_bfloat16(twin):
    """Read in the programs: one factor that is not rounded would take a GPU the time of two."""
    loss = make_loss(VisionEncoderDecoder(twin.config, get_policy("bfloat16")), deterministic=True)
    pixels, labels = batch(twin)
    program = jax.jit(jax.grad(loss)).trace(twin.params, pixels, labels, jax.random.key(0))
    pattern = r"stablehlo.dot_general .*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) -> tensor<[\dx]*(\w+)>"
    rounded = ("bf16", "bf16", "f32")
    kinds = re.findall(pattern, program.lower(lowering_platforms=("cuda",)).as_text())
    assert len(kinds) > 60
    assert set(kinds) == {rounded}
    # On CPU the gradients of kernels, and attention's, are float32 products.
    on_cpu = re.findall(pattern, program.lower(lowering_platforms=("cpu",)).as_text())
    assert len(on_cpu) == len(kinds)
    assert len(kinds) / 2 < on_cpu.count(rounded) < len(kinds)
