"""Speed of training steps beside a loop of transformers and torch: images/s, and bytes with and without remat.

usage: python -m benchmarks.train [--model NAME] [--batch N] [--tokens N] [--dtypes float32 bfloat16] [--steps N]

Both sides take whole steps (forward, backward, clipping, AdamW) of the same architecture with random weights on the
same random images and labels, dropout as the configuration has it, in turn. `--model` is an official model's name or
"embedded". torch computes bfloat16 by autocast; `--compile` compiles its model. On a GPU both sides use it. The first
round of each side, which compiles, is not counted. Bytes are the compiler's: what our step needs beside its arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from trocr_jax import TrOCR, registry
from trocr_jax.modeling.model import VisionEncoderDecoder, init_params
from trocr_jax.modeling.policy import get_policy
from trocr_jax.training import create_state, make_optimizer, make_train_step

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 5e-5, 1e-4, 1.0


def jax_side(config, pixels, labels, dtype: str, *, remat: bool = False) -> tuple[Callable[[int], None], int]:
    """(what takes so many steps and waits for them, bytes that a step needs beside its arguments)."""
    model = VisionEncoderDecoder(config, dataclasses.replace(get_policy(dtype), remat=remat))
    optimizer = make_optimizer(LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    state = create_state(init_params(model, jax.random.key(0)), optimizer)
    pixels, labels = jax.device_put((pixels, labels))
    step = make_train_step(model, optimizer).lower(state, pixels, labels).compile()
    held = [state]

    def run(count: int) -> None:
        for _ in range(count):
            held[0], _ = step(held[0], pixels, labels)
        jax.block_until_ready(held[0])

    return run, step.memory_analysis().temp_size_in_bytes


def torch_side(config, pixels, labels, dtype: str, *, is_compiled: bool) -> Callable[[int], None]:
    """What takes so many steps and waits for them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    content = config.to_dict()
    encoder_class = transformers.DeiTConfig if content["encoder"]["model_type"] == "deit" else transformers.ViTConfig
    whole = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_class(**content["encoder"]), transformers.TrOCRConfig(**content["decoder"])
    )
    whole.decoder_start_token_id, whole.pad_token_id = config.label_start_token_id, config.label_pad_token_id
    model = transformers.VisionEncoderDecoderModel(config=whole).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    network = torch.compile(model) if is_compiled else model
    images, targets = torch.from_numpy(pixels).to(device), torch.from_numpy(labels).long().to(device)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = network(pixel_values=images, labels=targets).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(sides: dict[str, Callable[[int], None]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each side in each round, in turn, behind one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run(1)
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run(steps)
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def main() -> None:
    """Prints a line for each dtype and side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", choices=("embedded", *registry.OFFICIAL))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=3, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch's side by torch.compile")
    options = parser.parse_args()
    config = TrOCR.from_pretrained().config if options.model == "embedded" else registry.OFFICIAL[options.model]
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (options.batch, 3, *config.encoder.image_shape)).astype(np.float32)
    labels = rng.integers(3, config.decoder.vocab_size, (options.batch, options.tokens)).astype(np.int32)
    device = jax.devices()[0]
    print(
        f"{options.model}, {options.batch} images, {options.tokens} tokens, {device.device_kind}; jax {jax.__version__}"
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, compiled: {options.compile}")
    for dtype in options.dtypes:
        ours, kept = jax_side(config, pixels, labels, dtype)
        theirs = torch_side(config, pixels, labels, dtype, is_compiled=options.compile)
        seconds = measure({"trocr_jax": ours, "transformers": theirs}, options.steps, options.rounds)
        for name, values in seconds.items():
            low, middle, high = (options.batch / t for t in (max(values), statistics.median(values), min(values)))
            print(f"{dtype} {name}: median {middle:.2f} images/s, range {low:.2f} to {high:.2f}, {len(values)} rounds")
        ratio = statistics.median(seconds["transformers"]) / statistics.median(seconds["trocr_jax"])
        _, again = jax_side(config, pixels, labels, dtype, remat=True)
        print(f"{dtype} trocr_jax over transformers: {ratio:.2f}")
        print(f"{dtype} working memory of our step: {kept / 2**20:.0f} MiB, with remat {again / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
