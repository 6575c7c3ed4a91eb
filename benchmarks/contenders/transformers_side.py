"""transformers' side, and what all sides with its `generate` share."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.trocr import modeling_trocr


def take_tensor_positions() -> None:
    """Lets the decoder's learned positions begin at a tensor, so that a compiled step is one graph.

    As shipped (transformers 5.23), torch.arange waits for the device at each step to learn where they begin.
    """

    def forward(self: Any, input_ids: Any, past_key_values_length: Any = 0) -> Any:
        positions = torch.arange(input_ids.shape[1], device=self.weight.device) + past_key_values_length
        return torch.nn.Embedding.forward(self, positions.expand(len(input_ids), -1) + self.offset)

    modeling_trocr.TrOCRLearnedPositionalEmbedding.forward = forward


class Reader:
    """A model of transformers; `options` go to every `generate`, but for "is_patched": `take_tensor_positions`."""

    def __init__(self, folder: str, device: str, dtype: str, options: dict[str, Any]) -> None:
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        if device == "gpu" and not torch.cuda.is_available():
            raise RuntimeError("this torch finds no GPU")
        options = dict(options)
        if options.pop("is_patched", False):
            take_tensor_positions()
        self._folder, self._options = folder, options
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

    def read(self, paths: list[str], batch: int, **options: Any) -> list[str]:
        """The texts of image files, read as transformers' documentation does it."""
        texts = []
        for start in range(0, len(paths), batch):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + batch]]
            pixels = self._processor(images, return_tensors="np").pixel_values
            texts += self._tokenizer.batch_decode(self.generate(pixels, **options), skip_special_tokens=True)
        return texts

    @functools.cached_property
    def _processor(self) -> Any:
        """The image processor that works on Pillow's images; transformers 4 has no other under this name."""
        try:
            from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
        except ImportError:
            return transformers.ViTImageProcessor.from_pretrained(self._folder)
        return ViTImageProcessorPil.from_pretrained(self._folder)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self._folder)

    def _best_seconds(self, function: Any, runs: int = 20) -> float:
        seconds = []
        with torch.inference_mode():
            for _ in range(runs + 1):
                start = time.perf_counter()
                function()
                if self._device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    def matmul_rate(self, dtype: str, size: int = 1024) -> float:
        """Flop/s of a product of square matrices of this dtype."""
        left, right = (torch.randn(size, size).to(self._device, getattr(torch, dtype)) for _ in range(2))
        return 2 * size**3 / self._best_seconds(lambda: left @ right.T)

    def bandwidth(self, size: int = 2**28) -> float:
        """Bytes/s at which a large array is read, as the matrix of a product with ones."""
        rows, ones = torch.ones(size // 4 // 4096, 4096, device=self._device), torch.ones(4096, device=self._device)
        return size / self._best_seconds(lambda: rows @ ones)
