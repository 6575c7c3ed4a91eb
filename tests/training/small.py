"""A model of a few thousand weights, lines for it, and what `test_fit.py` runs in processes of their own."""

from __future__ import annotations

import os
import signal

import jax
import numpy as np
from PIL import Image

from tests.twins import config_dict
from trocr_jax import TrOCR, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from trocr_jax.datasets import Example
from trocr_jax.training import fit

CONFIG = config_dict(
    {"num_hidden_layers": 1, "image_size": [32, 320], "patch_size": [32, 40], "hidden_size": 16,
     "num_attention_heads": 2, "initializer_range": 0.1},
    {"decoder_layers": 1, "vocab_size": 512, "max_position_embeddings": 24, "cross_attention_hidden_size": 16,
     "init_std": 0.1, "dropout": 0.1},
)  # fmt: skip
TEXTS = ("ab", "c", "ba d", "e", "cab")


def small_ocr() -> TrOCR:
    """The model with random weights, and the embedded one's processor."""
    embedded = TrOCR.from_pretrained()
    network = VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_dict(CONFIG), generation_config=embedded.generation_config.replace(max_length=9)
    )
    return TrOCR(network, embedded.processor)


def examples(texts=TEXTS) -> list[Example]:
    """Lines whose images are noise, each its own."""

    def image(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 320, 3), np.uint8))

    return [Example(f"line {i}", text, lambda i=i: image(i)) for i, text in enumerate(texts)]


def shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An augmentation: the image moved by a few pixels."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, float(rng.uniform(-4, 4)), 0, 1, 0))


def train_until_killed(model: str, cache: str, output: str, num_images: int | None) -> None:
    """Trains or resumes, with everything on that has a state, until so many images were opened; None is to the end."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    opened = []

    def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        opened.append(None)
        if len(opened) == num_images:
            os.kill(os.getpid(), signal.SIGKILL)
        return shift(image, rng)

    fit(
        TrOCR.from_pretrained(model),
        examples(),
        examples(),
        output,
        augment=augment,
        resume=True,
        max_steps=24,
        batch_size=2,
        learning_rate=1e-2,
        eval_every=9,
        checkpoint_every=3,
        ema_decay=0.9,
        patience=0,
    )
