import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trocr_jax.modeling.layers import MANY_ROWS, arrange, kernel_shape, matmul
from trocr_jax.modeling.policy import FLOAT32, prepared


@pytest.mark.parametrize("layout", ["in_out", "out_in", "panels"])
@pytest.mark.parametrize("features", [64, 100])
def test_a_product_is_the_same_in_every_layout_with_few_and_many_rows(layout, features):
    policy = prepared(FLOAT32, "cpu")
    draw = np.random.default_rng(0)
    kernel = draw.standard_normal((24, features)).astype(np.float32)
    arranged = arrange(kernel, layout, np)
    assert arranged.shape == kernel_shape(24, features, layout)
    np.testing.assert_array_equal(arrange(jnp.asarray(kernel), layout, jnp), arranged)
    for rows in (1, 2, MANY_ROWS - 1, MANY_ROWS):
        x = draw.standard_normal((rows, 1, 24)).astype(np.float32)
        y = jax.jit(matmul, static_argnums=(2, 3))(x, arranged, policy, layout)
        expected = x.astype(np.float64) @ kernel
        assert not np.any(np.asarray(y[..., features:]))  # panels are filled up with zeros
        np.testing.assert_allclose(y[..., :features], expected, rtol=0, atol=1e-5)
