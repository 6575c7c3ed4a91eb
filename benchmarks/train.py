"""Speed of training steps beside a loop of transformers and torch: images/s, and bytes with and without remat.

usage: python -m benchmarks.train [--model NAME] [--batch N] [--tokens N] [--dtypes float32 bfloat16] [--steps N]

Both sides take whole steps (forward, backward, clipping, AdamW) of the same architecture with random weights on the
same random images and labels, dropout as the configuration has it, each in a process of its own, in turn. `--model` is
an official model's name or "embedded". torch computes bfloat16 by autocast; `--compile` compiles its model. On a GPU
both sides use it. Ours keeps freed memory, as `trocr-jax finetune` does. The first round of each side, which compiles,
is not counted. Bytes are the compiler's: what our step needs beside its arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from trocr_jax import TrOCR, registry
from trocr_jax.allocator import keep_freed_memory
from trocr_jax.config import VisionEncoderDecoderConfig

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 5e-5, 1e-4, 1.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides are given."""

    model: str
    batch: int
    tokens: int
    dtype: str
    is_compiled: bool  # torch's

    def config(self) -> VisionEncoderDecoderConfig:
        """The architecture."""
        return TrOCR.from_pretrained().config if self.model == "embedded" else registry.OFFICIAL[self.model]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images [B, 3, height, width] and labels [B, T]."""
        rng, config = np.random.default_rng(0), self.config()
        pixels = rng.uniform(-1, 1, (self.batch, 3, *config.encoder.image_shape)).astype(np.float32)
        return pixels, rng.integers(3, config.decoder.vocab_size, (self.batch, self.tokens)).astype(np.int32)


def jax_step(work: Work, *, remat: bool = False) -> tuple[Any, Any, Any]:
    """Our compiled step, the state before it, and (pixels, labels) on the device."""
    import jax

    from trocr_jax.modeling.model import VisionEncoderDecoder, init_params
    from trocr_jax.modeling.policy import get_policy
    from trocr_jax.training import create_state, make_optimizer, make_train_step

    model = VisionEncoderDecoder(work.config(), dataclasses.replace(get_policy(work.dtype), remat=remat))
    optimizer = make_optimizer(LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    state = create_state(init_params(model, jax.random.key(0)), optimizer)
    batch = jax.device_put(work.arrays())
    return make_train_step(model, optimizer).lower(state, *batch).compile(), state, batch


def jax_side(work: Work) -> Callable[[int], None]:
    """What takes so many steps and waits for them."""
    import jax

    step, state, batch = jax_step(work)
    held = [state]

    def run(count: int) -> None:
        for _ in range(count):
            held[0], _ = step(held[0], *batch)
        jax.block_until_ready(held[0])

    return run


def torch_side(work: Work) -> Callable[[int], None]:
    """What takes so many steps and waits for them."""
    import torch
    import transformers

    config = work.config()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    content = config.to_dict()
    encoder_class = transformers.DeiTConfig if content["encoder"]["model_type"] == "deit" else transformers.ViTConfig
    whole = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_class(**content["encoder"]), transformers.TrOCRConfig(**content["decoder"])
    )
    whole.decoder_start_token_id, whole.pad_token_id = config.label_start_token_id, config.label_pad_token_id
    model = transformers.VisionEncoderDecoderModel(config=whole).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    network = torch.compile(model) if work.is_compiled else model
    pixels, labels = work.arrays()
    images, targets = torch.from_numpy(pixels).to(device), torch.from_numpy(labels).long().to(device)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=work.dtype == "bfloat16"):
                loss = network(pixel_values=images, labels=targets).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


class Process:
    """One side in a process of its own: the allocator's settings are the whole process's."""

    def __init__(self, make: Callable[[Work], Callable[[int], None]], work: Work) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (make, work))

    def seconds(self, steps: int) -> float:
        """Seconds a step of so many."""
        return self._pool.submit(_seconds, steps).result()

    def close(self) -> None:
        """Ends it."""
        self._pool.shutdown()


_running: dict[str, Callable[[int], None]] = {}  # in a side's process


def _start(make: Callable[[Work], Callable[[int], None]], work: Work) -> None:
    if make is jax_side:
        keep_freed_memory()
    _running["side"] = make(work)


def _seconds(steps: int) -> float:
    start = time.perf_counter()
    _running["side"](steps)
    return (time.perf_counter() - start) / steps


def measure(sides: Mapping[str, Process], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each side in each round, in turn, behind one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.seconds(steps)
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side.seconds(steps))
    return seconds


def report(work: Work, steps: int, rounds: int) -> None:
    """Prints a line for each side, their ratio, and our step's memory."""
    sides = {"trocr_jax": Process(jax_side, work), "transformers": Process(torch_side, work)}
    try:
        seconds = measure(sides, steps, rounds)
    finally:
        for side in sides.values():
            side.close()
    for name, values in seconds.items():
        low, middle, high = (work.batch / t for t in (max(values), statistics.median(values), min(values)))
        print(f"{work.dtype} {name}: median {middle:.2f} images/s, range {low:.2f} to {high:.2f}, {rounds} rounds")
    ratio = statistics.median(seconds["transformers"]) / statistics.median(seconds["trocr_jax"])
    print(f"{work.dtype} trocr_jax over transformers: {ratio:.2f}")
    kept, again = (jax_step(work, remat=remat)[0].memory_analysis().temp_size_in_bytes for remat in (False, True))
    print(f"{work.dtype} working memory of our step: {kept / 2**20:.0f} MiB, with remat {again / 2**20:.0f} MiB")


def main() -> None:
    """Prints what `report` finds for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", choices=("embedded", *registry.OFFICIAL))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=3, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch's side by torch.compile")
    options = parser.parse_args()
    # JAX would take three quarters of a GPU's memory that torch shares.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    print(f"{options.model}, {options.batch} images, {options.tokens} tokens; {versions}, compiled: {options.compile}")
    for dtype in options.dtypes:
        work = Work(options.model, options.batch, options.tokens, dtype, options.compile)
        report(work, options.steps, options.rounds)


if __name__ == "__main__":
    main()
