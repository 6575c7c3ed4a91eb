"""transformers' side, and what all sides with its `generate` share."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import transformers


class Reader:
    """A model of transformers; `options` go to every `generate`."""

    def __init__(self, folder: str, device: str, dtype: str, options: dict[str, Any]) -> None:
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        if device == "gpu" and not torch.cuda.is_available():
            raise RuntimeError("this torch finds no GPU")
        self._options = options
        self._dtype = getattr(torch, dtype)
        self._model = self._load(folder)

    def _load(self, folder: str) -> Any:
        model = transformers.VisionEncoderDecoderModel.from_pretrained(folder, dtype=self._dtype)
        return model.eval().to(self._device)

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def generate(self, pixels: np.ndarray, **options: Any) -> np.ndarray:
        """Ids [B, length], on the host."""
        given = torch.from_numpy(pixels).to(self._device, self._dtype)
        with torch.inference_mode():
            return self._model.generate(given, **self._options, **options).cpu().numpy()

    def _best_seconds(self, function: Any, runs: int = 7) -> float:
        seconds = []
        with torch.inference_mode():
            for _ in range(runs + 1):
                start = time.perf_counter()
                function()
                if self._device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    def matmul_rate(self, dtype: str, size: int = 2048) -> float:
        """Flop/s of a product of square matrices of this dtype."""
        left, right = (torch.randn(size, size).to(self._device, getattr(torch, dtype)) for _ in range(2))
        return 2 * size**3 / self._best_seconds(lambda: left @ right.T)

    def bandwidth(self, size: int = 2**28) -> float:
        """Bytes/s at which a large array is read, as the matrix of a product with ones."""
        rows, ones = torch.ones(size // 4 // 4096, 4096, device=self._device), torch.ones(4096, device=self._device)
        return size / self._best_seconds(lambda: rows @ ones)
