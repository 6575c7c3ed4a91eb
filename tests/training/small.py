"""A model of a few thousand weights, lines for it, and what `test_fit.py` runs in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import sys
import threading

import jax
import numpy as np
from PIL import Image

from tests.twins import config_dict
from trocr_jax import TrOCR, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, cli, make_mesh
from trocr_jax.compilation_cache import enable_compilation_cache
from trocr_jax.datasets import Example
from trocr_jax.opening import to_device
from trocr_jax.sharding import DATA, axis_size, shard_batch
from trocr_jax.training import TrainingSettings, TrainState, fit
from trocr_jax.training.plan import Plan

CONFIG = config_dict(
    {"num_hidden_layers": 1, "image_size": [32, 320], "patch_size": [32, 40], "hidden_size": 16,
     "num_attention_heads": 2, "initializer_range": 0.1},
    {"decoder_layers": 1, "vocab_size": 512, "max_position_embeddings": 24, "cross_attention_hidden_size": 16,
     "init_std": 0.1, "dropout": 0.1},
)  # fmt: skip
TEXTS = ("ab", "c", "ba d", "e", "cab")


def small_ocr() -> TrOCR:
    """The model with random weights, and the embedded one's processor for its size of images."""
    embedded = TrOCR.from_pretrained()
    network = VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_dict(CONFIG), generation_config=embedded.generation_config.replace(max_length=9)
    )
    images = dataclasses.replace(embedded.processor.image_processor, size=network.config.encoder.image_shape)
    return TrOCR(network, embedded.processor.with_image_processor(images))


def examples(texts=TEXTS) -> list[Example]:
    """Lines whose images are noise, each its own."""

    def image(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 320, 3), np.uint8))

    return [Example(f"line {i}", text, lambda i=i: image(i)) for i, text in enumerate(texts)]


def write_lines(folder: pathlib.Path) -> pathlib.Path:
    """The new folder, with the lines as files of a dataset."""
    folder.mkdir()
    for line in examples():
        line.open().save(folder / f"{line.text}.png")
    (folder / "labels.tsv").write_text("".join(f"{text}.png\t{text}\n" for text in TEXTS))
    return folder


def shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An augmentation: the image moved by a few pixels."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, float(rng.uniform(-4, 4)), 0, 1, 0))


def options(max_steps: int) -> dict:
    """Settings with everything on that has a state; 150 steps are enough to learn the lines by heart."""
    return {
        "augment": shift,
        "max_steps": max_steps,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "schedule": "linear",
        "warmup_steps": 10,
        "eval_every": 75,
        "checkpoint_every": 30,
        "ema_decay": 0.9,
        "patience": 0,
    }


def configure(cache: str, num_devices: int) -> None:
    """Of a process that has just begun."""
    jax.config.update("jax_num_cpu_devices", num_devices)
    enable_compilation_cache(cache)


def divide(model: str, cache: str, output: str) -> None:
    """Takes a step of a training whose state eight devices divide, and looks where it lies."""
    configure(cache, 8)
    lines, settings = examples(), TrainingSettings(max_steps=12, batch_size=8, ema_decay=0.9, fsdp=True)
    plan = Plan.of(TrOCR.from_pretrained(model), lines, lines, output, settings, augment=None)
    state = plan.first_state()
    [batch] = plan.batches.stream(0, 1)
    pixels = to_device(list(batch.levels), 8, plan.batches.image_processor)
    for _ in range(2):
        assert_divided(state)
        state, _ = plan.step()(state, *shard_batch((pixels, batch.labels), plan.ocr.mesh))
    assert_divided(state)


def assert_divided(state: TrainState) -> None:
    """Of all bytes of a state an eighth lies on each device, as far as eight divides its arrays' dimensions."""
    name, shape = "decoder/layers_0/mlp/fc1/kernel", (32, 48)
    for tree in (state.trainable, state.opt_state[1][0].mu, state.opt_state[1][0].nu, state.ema):
        assert tree[name].shape == shape
        assert tree[name].sharding.shard_shape(shape) == (32, 6)
    leaves = [leaf for leaf in jax.tree.leaves((state.trainable, state.opt_state, state.ema)) if leaf.ndim]
    whole = sum(leaf.size for leaf in leaves)
    assert sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves) < 0.14 * whole


def read(ocr: TrOCR) -> list:
    """Of one batch, so that several processes make the same calls."""
    return ocr([line.open() for line in examples()], batch_size=8)


def command(cache: str, num_devices: int, arguments: list[str]) -> None:
    """Runs `trocr-jax` with arguments."""
    configure(cache, num_devices)
    sys.exit(cli.main(arguments))


class Countdown:
    """Kills its process when it has been called so many times, by whatever threads, if not None."""

    def __init__(self, end: int | None) -> None:
        self.count, self._end, self._lock = 0, end, threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.count += 1
            if self.count == self._end:
                os.kill(os.getpid(), signal.SIGKILL)


def count_files(output: str, countdown: Countdown) -> None:
    """Counts from now on, before it is done, what is put in its place in a training's folder and the one inside."""
    rename, folders = os.replace, (pathlib.Path(output), pathlib.Path(output) / "training")

    def replace(partial, path) -> None:
        if pathlib.Path(path).parent in folders:
            countdown()
        rename(partial, path)

    os.replace = replace


def train(
    model: str,
    cache: str,
    output: str,
    max_steps: int,
    num_images: int | None,
    num_devices: int,
    host: tuple[int, int] | None = None,
    num_files: int | None = None,
    **changes,
) -> None:
    """Trains or resumes; kills its process when it opens so many images, or would put so many files in their places.

    With a `host` (port, number) it is one of two processes with so many devices each, and says what it opened.
    """
    configure(cache, num_devices)
    if host is not None:
        jax.distributed.initialize(f"127.0.0.1:{host[0]}", num_processes=2, process_id=host[1])
    opened = Countdown(num_images)
    count_files(output, Countdown(num_files))

    def counted(example: Example) -> Example:
        def image() -> Image.Image:
            opened()
            return example.open()

        return dataclasses.replace(example, open=image)

    mesh = None if host is None else make_mesh(jax.devices())
    ocr, lines = TrOCR.from_pretrained(model, mesh=mesh), [counted(example) for example in examples()]
    assert axis_size(ocr.mesh, DATA) == num_devices * (1 if host is None else 2)
    result = fit(ocr, lines, examples(), output, resume=True, **{**options(max_steps), **changes})
    if host is not None:
        # What each process opened and found, for the test to compare.
        found = {"opened": opened.count, "best_cer": result.best_cer, "texts": [line.text for line in read(result.ocr)]}
        pathlib.Path(f"{output}-{host[1]}.json").write_text(json.dumps(found))
        # Neither may end while the other is still at what both did last.
        jax.distributed.shutdown()
