import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.twins import config_dict, make_twin
from trocr_jax.modeling.model import VisionEncoderDecoder, apply, for_rows, prepare
from trocr_jax.modeling.policy import FLOAT32, INT8_DECODER, prepared
from trocr_jax.modeling.products import MANY_ROWS, arrange, matmul, panel_shapes, quantized
from trocr_jax.sharding import make_mesh


@pytest.mark.parametrize("layout", ["in_out", "out_in", "panels"])
@pytest.mark.parametrize("features", [64, 100, 300])
@pytest.mark.parametrize("parts", [1, 3, 16])
def test_a_product_is_the_same_in_every_layout_with_few_and_many_rows(layout, features, parts):
    policy = dataclasses.replace(prepared(FLOAT32, "cpu"), parts=parts)
    draw = np.random.default_rng(0)
    kernel = draw.standard_normal((24, features)).astype(np.float32)
    arranged = arrange(kernel, policy, layout, np)
    jax.tree.map(np.testing.assert_array_equal, arrange(jnp.asarray(kernel), policy, layout, jnp), arranged)
    if layout == "panels":
        assert [part.shape for part in arranged] == panel_shapes(24, features, parts)
        assert len(arranged) == min(parts, -(-features // 64))
    for rows in (1, 2, MANY_ROWS - 1, MANY_ROWS):
        x = draw.standard_normal((rows, 1, 24)).astype(np.float32)
        y = jax.jit(matmul, static_argnums=(2, 3))(x, arranged, policy, layout)
        expected = x.astype(np.float64) @ kernel
        assert not np.any(np.asarray(y[..., features:]))  # panels are filled up with zeros
        np.testing.assert_allclose(y[..., :features], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["int8_in_out", "int8_panels"])
def test_a_product_of_integers_is_exact_to_16_bits(layout):
    policy = dataclasses.replace(prepared(INT8_DECODER, "cpu"), parts=3)
    draw = np.random.default_rng(0)
    kernel = draw.standard_normal((96, 300)).astype(np.float32) * draw.uniform(0.01, 3, 300).astype(np.float32)
    kernel[:, 7] = 0  # whose scale could not be divided by
    integers, scale = quantized(kernel, 0, np)
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == 127
    assert np.all(np.abs(integers * scale - kernel) <= 0.5001 * scale)
    arranged = arrange(integers, policy, layout, np)
    for rows in (1, 2, MANY_ROWS // 2 - 1, MANY_ROWS // 2, 60):
        x = draw.standard_normal((rows, 96)).astype(np.float32)
        y = jax.jit(matmul, static_argnums=(2, 3))(x, arranged, policy, layout)[:, :300] * scale
        # A step of 16 bits of the row's largest number, which all 96 may miss by half.
        bound = np.abs(x).max(axis=1, keepdims=True) / 127 / 254 * np.abs(integers * scale).sum(axis=0)
        assert np.all(np.abs(y - x.astype(np.float64) @ (integers * scale)) <= 0.51 * bound + 1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_decoder_of_integers_computes_nearly_the_same(platform):
    twin = make_twin(config_dict(), 0)
    pixels, ids = twin.pixels(2), np.array([[2, 5, 6, 7]] * 2)
    whole, integers = (VisionEncoderDecoder(twin.config, policy) for policy in (FLOAT32, INT8_DECODER))
    expected = apply(whole, twin.params, pixels, ids)
    model, params = prepare(twin.params, integers, platform=platform)
    decoder = params["decoder"]
    leaves = jax.tree.leaves([decoder["layers_0"]["self_attn"]["qkv_proj"]["kernel"], decoder["output_projection"]])
    assert {leaf.dtype.name for leaf in leaves} == {"int8", "float32"}
    found = apply(model, params, pixels, ids)
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(apply(*for_rows(model, params, 60), pixels, ids), found, rtol=0, atol=1e-5)


def test_integers_are_not_divided_among_devices():
    twin = make_twin(config_dict(), 0)
    mesh = make_mesh(jax.devices() * 2, model=2)
    with pytest.raises(ValueError, match="model=1"):
        prepare(twin.params, VisionEncoderDecoder(twin.config, INT8_DECODER), mesh)


def test_panels_are_put_together_for_a_loop_of_many_rows():
    twin = make_twin(config_dict(decoder={"tie_word_embeddings": False}), 0)
    model, params = prepare(twin.params, VisionEncoderDecoder(twin.config, FLOAT32), platform="cpu")
    pixels, ids = twin.pixels(2), np.array([[2, 5, 6, 7]] * 2)
    expected = apply(model, params, pixels, ids)

    def layouts(rows):
        changed, tree = for_rows(model, params, rows)
        np.testing.assert_allclose(apply(changed, tree, pixels, ids), expected, rtol=0, atol=1e-5)
        return changed.policy.decoder_layout, changed.policy.head_layout

    assert layouts(MANY_ROWS - 1) == ("panels", "panels")
    assert layouts(MANY_ROWS) == ("in_out", "in_out")
