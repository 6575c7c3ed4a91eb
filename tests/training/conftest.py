"""What the tests of training share."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def compiled_in_a_hurry():
    """Programs that run a few times are not worth optimising."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
