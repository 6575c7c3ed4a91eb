"""Memory of beam search, beside transformers' for the same work, as Markdown tables.

usage: python -m benchmarks.memory [--model trocr-base-handwritten] [--batch 64] [--tokens 8] [--no-processes]

Random weights, float32 and bfloat16, four beams, every text as long as is allowed. Weights are told apart: working
memory is all else.

- trocr_jax: what the compiled program (for this machine's backend) needs at the full batch, by XLA's memory analysis;
  it is reserved whole, however short the texts are. Nothing is run, and no weights are made.
- transformers: the highest sum of what torch's allocator holds while `generate` runs, by torch's profiler, at batches
  of 1, 2 and 3 (its records take memory as well: 24 GB do not hold those of 24 tokens of trocr-base). It grows by the
  same amount from each to the next, which is checked, so that it is known at the full batch. The keys and values of
  cross-attention in it, repeated for each beam, are told from their shapes.
- processes: the highest resident size of a process of its own during a second run above the size before it, of both
  sides, in float32, at a batch that fits most machines.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys

BEAMS = 4
GB = 1e9

# What a process of either side does around its own work.
MEASURE = """
import ctypes, gc, json, sys
from benchmarks import memory
generate = memory.{side}(sys.argv[1], "float32")
batch, tokens = int(sys.argv[2]), int(sys.argv[3])
def size(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
generate(batch, tokens)  # compiles, and warms up
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps of the first run
open("/proc/self/clear_refs", "w").write("5")  # the highest size starts anew
before = size("VmRSS")
generate(batch, tokens)
print(json.dumps(size("VmHWM") - before))
"""


def torch_side(name: str, dtype: str):
    """A function of (images, tokens) that runs transformers' beam search on random weights."""
    import torch
    import transformers

    from trocr_jax.registry import OFFICIAL

    content = OFFICIAL[name].to_dict()
    parts = {part: {k: v for k, v in content[part].items() if k != "model_type"} for part in ("encoder", "decoder")}
    is_deit = content["encoder"]["model_type"] == "deit"
    encoder = (transformers.DeiTConfig if is_deit else transformers.ViTConfig)(**parts["encoder"])
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, transformers.TrOCRConfig(**parts["decoder"])
    )
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(config=config).eval().to(getattr(torch, dtype))
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=1, eos_token_id=2, bos_token_id=0)

    def generate(batch: int, tokens: int) -> None:
        pixels = torch.randn((batch, 3, encoder.image_size, encoder.image_size), dtype=model.dtype)
        with torch.inference_mode():
            model.generate(pixels, num_beams=BEAMS, max_new_tokens=tokens, min_new_tokens=tokens)

    return generate


def jax_side(name: str, dtype: str):
    """The same with this library."""
    import jax
    import numpy as np

    from trocr_jax import VisionEncoderDecoderModel
    from trocr_jax.registry import OFFICIAL

    config, draw = OFFICIAL[name], np.random.default_rng(0)
    network = VisionEncoderDecoderModel(config, dtype=dtype)
    network.params = jax.tree.map(lambda leaf: 0.02 * draw.standard_normal(leaf.shape, np.float32), network._abstract())
    network.runtime  # noqa: B018
    shape = (config.encoder.num_channels, *config.encoder.image_shape)

    def generate(batch: int, tokens: int) -> None:
        pixels = draw.standard_normal((batch, *shape), np.float32)
        network.generate(pixels, num_beams=BEAMS, max_new_tokens=tokens, min_new_tokens=tokens)

    return generate


def compiled(name: str, dtype: str, batch: int, length: int) -> dict[str, float]:
    """Bytes of weights, of all else of the program, and of the caches in that, for a cache of `length` tokens."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from trocr_jax.decoding.generate import Inputs, make_search_options, run
    from trocr_jax.decoding.processor_list import make_processors
    from trocr_jax.generation_config import GenerationConfig
    from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params, prepare
    from trocr_jax.modeling.policy import get_policy, prepared
    from trocr_jax.registry import OFFICIAL

    config = OFFICIAL[name]
    model = VisionEncoderDecoder(config, get_policy(dtype))
    params = jax.eval_shape(lambda tree: prepare(tree, model)[1], abstract_params(model))
    model = model.clone(policy=prepared(model.policy))
    shape = (batch, config.encoder.num_channels, *config.encoder.image_shape)
    inputs = Inputs(jax.ShapeDtypeStruct(shape, jnp.float32), None, None, np.full((batch, 1), 2, np.int32))
    settings = GenerationConfig.from_model_config(config.to_dict()).resolve(
        {"num_beams": BEAMS, "max_length": length},
        prompt_length=1,
        max_positions=config.decoder.max_position_embeddings,
    )
    processors = make_processors(settings, config.decoder.vocab_size, 1)
    options = make_search_options(settings, processors, None, np.ones(batch, bool))
    static = {"model": model, "num_beams": BEAMS, "num_samples": 1, "length": length}
    found = run.lower(params, inputs, options, **static).compile().memory_analysis()
    cache = jax.eval_shape(
        lambda tree, states: model.apply({"params": tree}, states, None, BEAMS, length, method="start"),
        params,
        jax.ShapeDtypeStruct((batch, config.encoder.num_tokens, config.encoder.hidden_size), model.policy.result),
    )
    size = functools.partial(jax.tree.reduce, lambda total, leaf: total + leaf.size * leaf.dtype.itemsize)
    pixels = 4 * np.prod(shape)
    return {
        "arguments": found.argument_size_in_bytes,
        "pixels": float(pixels),
        "temporary": found.temp_size_in_bytes,
        "output": found.output_size_in_bytes,
        "cross": size(cache.cross_kv, 0),
        "self": size(cache.self_kv, 0),
    }


def torch_peak(generate, batch: int, tokens: int) -> int:
    """The most bytes that torch's allocator holds during a run above those before it."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        generate(batch, tokens)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def torch_working(name: str, dtype: str, batch: int, tokens: int) -> float:
    """Bytes at a batch, from those of one, two and three images. Raises ValueError if they do not grow evenly."""
    generate = torch_side(name, dtype)
    generate(1, 2)
    one, two, three = (torch_peak(generate, size, tokens) for size in (1, 2, 3))
    if abs((three - two) - (two - one)) > 0.01 * (three - two):
        raise ValueError(f"{one}, {two}, {three} bytes for 1, 2 and 3 images do not grow evenly")
    return one + (batch - 1) * (three - one) / 2


def resident(side: str, name: str, batch: int, tokens: int) -> int:
    """Bytes by which the highest resident size of a process of one side lies above that before the work."""
    code = MEASURE.format(side=side)
    command = [sys.executable, "-c", code, name, str(batch), str(tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the tables."""
    from trocr_jax.registry import OFFICIAL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="trocr-base-handwritten", choices=sorted(OFFICIAL))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--process-batch", type=int, default=8)
    parser.add_argument("--no-processes", action="store_true")
    options = parser.parse_args()
    from trocr_jax.decoding.shapes import length_bucket

    config = OFFICIAL[options.model]
    print(f"{options.model}, batch {options.batch}, {BEAMS} beams; GB without weights\n")
    print("| dtype | tokens | trocr_jax: cache length, all | its caches | transformers, all | its cross cache |")
    print("|---|---|---|---|---|---|")
    for dtype in options.dtypes:
        itemsize = 2 if dtype == "bfloat16" else 4
        cross = 2 * config.decoder.decoder_layers * options.batch * BEAMS
        cross *= config.encoder.num_tokens * config.decoder.d_model * itemsize
        for tokens in options.tokens:
            length = length_bucket(tokens + 1)
            ours = compiled(options.model, dtype, options.batch, length)
            theirs = torch_working(options.model, dtype, options.batch, tokens)
            total = ours["temporary"] + ours["output"] + ours["pixels"]
            print(
                f"| {dtype} | {tokens} | {length}, {total / GB:.2f} | {ours['cross'] / GB:.2f}, "
                f"{ours['self'] / GB:.2f} | {theirs / GB:.2f} | {cross / GB:.2f} |",
                flush=True,
            )
    if options.no_processes:
        return
    print(f"\nResident size of a process above that before the work, float32, batch {options.process_batch}, GB\n")
    print("| tokens | trocr_jax | transformers |\n|---|---|---|")
    for tokens in options.tokens:
        sizes = [resident(side, options.model, options.process_batch, tokens) for side in ("jax_side", "torch_side")]
        print(f"| {tokens} | " + " | ".join(f"{size / GB:.2f}" for size in sizes) + " |", flush=True)


if __name__ == "__main__":
    main()
