import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.twins import config_dict, make_twin
from trocr_jax.modeling.layers import MANY_ROWS, arrange, matmul, panel_shapes
from trocr_jax.modeling.model import VisionEncoderDecoder, apply, for_rows, prepare
from trocr_jax.modeling.policy import FLOAT32, prepared


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
