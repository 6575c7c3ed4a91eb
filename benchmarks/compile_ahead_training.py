"""Compiles a step of training for TPUs that are not there, and says what it needs of each chip.

usage: python -m benchmarks.compile_ahead_training [--topology v5e:2x2] [--model trocr-base-handwritten] [--remat] ...

Needs libtpu (`pip install ".[tpu]"`, best in an environment of its own), no TPU and no weights: shapes are enough.
Every chip of the topology gets a batch, and whole weights and the optimizer's state in float32, or with --fsdp its part
of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.compile_ahead import tpu_mesh
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.modeling.policy import get_policy
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.registry import OFFICIAL
from trocr_jax.sharding import DATA
from trocr_jax.training import StateLayout, create_state, make_optimizer, make_train_step


def compile_for(topology: str, config: VisionEncoderDecoderConfig, options: argparse.Namespace):
    """The compiled step, `options.batch` images a chip."""
    mesh = tpu_mesh(topology)
    model = VisionEncoderDecoder(config, dataclasses.replace(get_policy(options.dtype), remat=options.remat))
    optimizer = make_optimizer(5e-5, weight_decay=1e-4)
    state = jax.eval_shape(lambda params: create_state(params, optimizer), abstract_params(model))
    batch = options.batch * mesh.size
    pixels = jax.ShapeDtypeStruct((batch, config.encoder.num_channels, *config.encoder.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch, options.tokens), jnp.int32)

    layout = StateLayout(mesh, is_divided=options.fsdp)

    def on(sharding, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(lambda leaf: on(layout.sharding(leaf), leaf), state)
    batches = NamedSharding(mesh, P(DATA))
    step = make_train_step(model, optimizer, layout=layout)
    return step.lower(state, on(batches, pixels), on(batches, labels)).compile()


def main() -> None:
    """Compiles one program and prints what the compiler says of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="such as v5e:2x2 or v6e:2x2")
    parser.add_argument("--model", default="trocr-base-handwritten", choices=("embedded", *OFFICIAL))
    parser.add_argument("--batch", type=int, default=8, help="images a chip")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--remat", action="store_true", help="compute what is inside a block twice")
    parser.add_argument("--fsdp", action="store_true", help="divide weights and optimizer state among the chips")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    is_official = options.model in OFFICIAL
    config = OFFICIAL[options.model] if is_official else VisionEncoderDecoderConfig.from_pretrained(EMBEDDED)
    start = time.perf_counter()
    compiled = compile_for(options.topology, config, options)
    needs = compiled.memory_analysis()
    # The state is given away: what comes out lies where it lay.
    total = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    print(
        f"{options.model} on {options.topology}, {options.batch} images of {options.tokens} tokens a chip, "
        f"{options.dtype}, remat {options.remat}, fsdp {options.fsdp}; "
        f"jax {jax.__version__}, {time.perf_counter() - start:.0f} s to compile"
    )
    print(f"bytes a chip: {total:,}, of which state and images {needs.argument_size_in_bytes:,}")


if __name__ == "__main__":
    main()
