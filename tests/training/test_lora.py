"""Adapters: by hand, trained by a step, saved and merged."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from tests.training.small import examples, small_ocr
from trocr_jax.training import LoRA, create_state, fit, make_optimizer, make_train_step, merge_adapters, save_adapters

RANK, PATTERN = 2, r"decoder/.*(q_proj|fc1)/kernel$"


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, small_ocr().params)


@pytest.fixture(scope="module")
def trained(params):
    """(state behind two steps, the weights at the start as {path: array})."""
    ocr, optimizer = small_ocr(), make_optimizer(1e-2)
    lora = LoRA(RANK, 6.0, PATTERN)
    state = create_state(params, optimizer, lora=lora, with_ema=True)
    step = make_train_step(ocr.model, optimizer, ema_decay=0.5, deterministic=True)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 320)).astype(np.float32)
    for _ in range(2):
        state, _ = step(state, pixels, np.array([[5, 6, 2], [7, 2, -100]]))
    return state, flatten_dict(params, sep="/")


def test_new_adapters_change_nothing(params):
    state = create_state(params, make_optimizer(1e-2), lora=LoRA())
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    names = {name.rpartition("/kernel/")[0].rpartition("/")[2] for name in state.trainable}
    assert names == {"q_proj", "v_proj"}
    a = state.trainable["decoder/layers_0/self_attn/q_proj/kernel/lora_a"]
    assert a.shape == (32, 8)
    assert 0.9 * 32**-0.5 < abs(a).max() <= 32**-0.5


def test_a_step_trains_adapters_alone_and_parameters_have_them_merged(trained):
    state, before = trained
    after = flatten_dict(state.params, sep="/")
    assert after.keys() == before.keys()
    changed = {name for name in before if not np.array_equal(after[name], before[name])}
    adapted = {name.removesuffix("/lora_a") for name in state.trainable if name.endswith("/lora_a")}
    assert changed == adapted
    assert {name.rpartition("layers_0/")[2] for name in adapted} == {
        "self_attn/q_proj/kernel",
        "encoder_attn/q_proj/kernel",
        "mlp/fc1/kernel",
    }
    for name in adapted:
        a, b = (np.asarray(state.trainable[f"{name}/lora_{part}"], np.float64) for part in "ab")
        assert (a.shape[1], b.shape[0]) == (RANK, RANK)
        np.testing.assert_allclose(after[name], before[name] + 3.0 * a @ b, atol=1e-6)
    assert not changed & state.opt_state[1][0].mu.keys()


def test_saved_adapters_are_small_and_merge_into_plain_weights(trained, params, tmp_path):
    state, _ = trained
    path = tmp_path / "adapters.safetensors"
    save_adapters(state.trainable, state.lora_scale, path)
    assert load_file(path).keys() == state.trainable.keys()
    merged = merge_adapters(params, path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), merged, state.params)
    with pytest.raises(ValueError, match="no adapters for this model"):
        merge_adapters({"encoder": params["encoder"]}, path)


@pytest.mark.slow
def test_fit_leaves_merged_weights_and_the_adapters(params, tmp_path):
    ocr, lines = small_ocr(), examples()
    options = {"max_steps": 30, "batch_size": 5, "learning_rate": 3e-2, "lora_rank": 4}
    result = fit(ocr, lines, lines, tmp_path, lora_pattern=PATTERN, **options)
    assert result.best_step > 0
    merged = merge_adapters(params, tmp_path / "training" / "adapters.safetensors")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), result.ocr.params, merged)
    kernel = merged["decoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    assert not np.array_equal(kernel, params["decoder"]["layers_0"]["mlp"]["fc1"]["kernel"])
    with pytest.raises(ValueError, match="go with a lora_rank"):
        fit(ocr, lines, lines, tmp_path / "other", lora_alpha=3.0)


def test_what_cannot_be_adapted_is_refused(params):
    optimizer = make_optimizer(1e-2)
    with pytest.raises(ValueError, match="found in no parameter's path"):
        create_state(params, optimizer, lora=LoRA(pattern="qproj"))
    with pytest.raises(ValueError, match="which is no matrix"):
        create_state(params, optimizer, lora=LoRA(pattern="bias"))
    with pytest.raises(ValueError, match="leave out frozen"):
        create_state(params, optimizer, lora=LoRA(), frozen="encoder")
    with pytest.raises(ValueError, match="above 0"):
        LoRA(rank=0)
