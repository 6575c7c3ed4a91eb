"""This library's side."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax import TrOCR, TrOCRProcessor, VisionEncoderDecoderModel, __version__


def best_seconds(function: Any, *arguments: Any, runs: int = 20) -> float:
    """The least time that a call takes, waited for, behind a first that is not counted."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Reader:
    """A model under a precision policy."""

    def __init__(self, folder: str, device: str, dtype: str, options: dict[str, Any]) -> None:
        self._device = jax.devices()[0]
        self._network = VisionEncoderDecoderModel.from_pretrained(folder, dtype=options["policy"])
        jax.block_until_ready(self._network.runtime[1])
        self._ocr = TrOCR(self._network, TrOCRProcessor.from_pretrained(folder))

    def versions(self) -> dict[str, str]:
        return {"trocr_jax": __version__, "jax": jax.__version__, "device": self._device.device_kind}

    def generate(self, pixels: np.ndarray, **options: Any) -> np.ndarray:
        """Ids [B, length], on the host."""
        found = self._network.generate(pixels, **options)
        assert isinstance(found, np.ndarray)
        return found

    def read(self, paths: list[str], batch: int, **options: Any) -> list[str]:
        """The texts of image files."""
        return [found.text for found in self._ocr(paths, batch_size=batch, on_error="raise", **options)]

    def matmul_rate(self, dtype: str, size: int = 1024) -> float:
        """Flop/s of a product of square matrices of this dtype that arrives in float32."""
        key = jax.random.key(0)
        left, right = (jax.random.normal(key, (size, size)).astype(dtype) for _ in range(2))
        # Contracted on both last axes, which no backend has a slow path for.
        product = jax.jit(
            lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        )
        return 2 * size**3 / best_seconds(product, left, right)

    def bandwidth(self, size: int = 2**28) -> float:
        """Bytes/s at which a large array is read, as the vector of a product with ones."""
        rows = jnp.ones((size // 4 // 4096, 4096))
        product = jax.jit(lambda a, b: a @ b)
        return size / best_seconds(product, rows, jnp.ones(4096))
