"""Compiles the whole of inference for TPUs that are not there, and says what it needs of each chip.

usage: python benchmarks/compile_ahead.py [--topology v5e:2x2] [--model trocr-base-handwritten] [--num-beams 4] ...

Needs libtpu (`pip install ".[tpu]"`, best in an environment of its own), no TPU and no weights: shapes are enough.
Every chip of the topology gets a batch. Ends with an error if a compiled loop talks to the host. For a chip whose peaks
are known, the compiler's counts are set beside these: an estimate, since nothing runs.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.decoding.generate import Inputs, make_search_options, run
from trocr_jax.decoding.parallel import specs
from trocr_jax.decoding.processor_list import make_processors
from trocr_jax.decoding.shapes import length_bucket
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params, prepare
from trocr_jax.modeling.policy import get_policy, prepared
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.registry import OFFICIAL
from trocr_jax.sharding import DATA, make_mesh, param_shardings

TO_HOST = re.compile(r"\b(outfeed|infeed|send|send-done|recv|recv-done)\(|callback|MoveToHost|MoveToDevice|S\(5\)")
# What libtpu would otherwise ask of a cloud machine; and several processes may compile at a time.
WITHOUT_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)|(?:branch|called)_computations=\{([^}]*)\}")


class Peaks(NamedTuple):
    """What a chip is published to have: bfloat16 flop/s, bytes/s of its memory, and that memory's bytes."""

    flops: float
    bandwidth: float
    memory: float


# As Google Cloud's documentation of TPU v5e and v6e has them, by the name that topologies begin with.
PEAKS = {"v5e": Peaks(197e12, 819e9, 16e9), "v6e": Peaks(918e12, 1640e9, 32e9)}


def program(
    config: VisionEncoderDecoderConfig, platform: str, *, dtype: str, batch: int, num_beams: int
) -> tuple[tuple, dict]:
    """(arguments, static arguments) of `generate.run`, shapes in the arguments' place, for a platform."""
    model = VisionEncoderDecoder(config, get_policy(dtype))
    params = jax.eval_shape(lambda params: prepare(params, model, platform=platform)[1], abstract_params(model))
    settings = GenerationConfig.from_model_config(config.to_dict())
    positions = config.decoder.max_position_embeddings
    settings = settings.resolve({"num_beams": num_beams}, prompt_length=1, max_positions=positions)
    options = make_search_options(
        settings, make_processors(settings, config.decoder.vocab_size, 1), None, is_image=np.ones(batch, bool)
    )
    pixels = jax.ShapeDtypeStruct((batch, config.encoder.num_channels, *config.encoder.image_shape), jnp.float32)
    inputs = Inputs(pixels, None, None, jax.ShapeDtypeStruct((batch, 1), jnp.int32))
    static = {
        "model": model.clone(policy=prepared(model.policy, platform)),
        "num_beams": num_beams,
        "num_samples": 1,
        "length": min(length_bucket(settings.max_length), positions + 1),
    }
    return (params, inputs, jax.eval_shape(lambda: options)), static


def on_mesh(arguments: tuple, mesh: Mesh) -> tuple:
    """The arguments' shapes with the places that the library gives them on a mesh."""
    params, inputs, options = arguments

    def put(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return (
        jax.tree.map(put, params, param_shardings(params, mesh)),
        jax.tree.map(lambda leaf: put(leaf, NamedSharding(mesh, P(DATA))), inputs),
        jax.tree.map(lambda leaf, spec: put(leaf, NamedSharding(mesh, spec)), options, specs(options)),
    )


def tpu_mesh(topology: str) -> Mesh:
    """The mesh of a topology such as v5e:2x2; of one chip for v5e:1x1."""
    os.environ.update(WITHOUT_TPU)
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return make_mesh(topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices)


def compile_for(topology: str, config: VisionEncoderDecoderConfig, *, dtype: str, batch: int, num_beams: int):
    """The compiled program, `batch` images a chip."""
    mesh = tpu_mesh(topology)
    arguments, static = program(config, "tpu", dtype=dtype, batch=batch * mesh.size, num_beams=num_beams)
    return run.lower(*on_mesh(arguments, mesh), mesh=mesh, **static).compile()


def loop_lines(hlo: str) -> list[str]:
    """The instructions inside the loops of a compiled program's text, those of computations called there included."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if start := COMPUTATION.match(line):
            lines = computations[start[1]] = []
        elif line.startswith(" "):
            # Metadata quotes source code and names scopes; what an instruction does stands before it.
            lines.append(re.split(", (?:metadata|backend_config|frontend_attributes)=", line)[0])
    loops = [line for lines in computations.values() for line in lines if " while(" in line]
    waiting, seen = [name for line in loops for name in _called(line)], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [called for line in computations[name] for called in _called(line)]
    return [line for name in sorted(seen) for line in computations[name]]


def _called(line: str) -> list[str]:
    return [name.strip("% ") for found in CALLED.findall(line) for name in (found[0] or found[1]).split(",")]


def host_transfers(hlo: str) -> list[str]:
    """What inside the loops talks to the host."""
    return [line for line in loop_lines(hlo) if TO_HOST.search(line)]


def cost_lines(topology: str, cost: Mapping[str, float], held: int) -> list[str]:
    """The compiler's counts, and where the chip's peaks are known what these, and the `held` bytes, are beside them.

    Bytes accessed are those of all operands and results, some of which may never leave the chip: no lower bound.
    """
    flops, moved, chip = cost["flops"], cost.get("bytes accessed"), topology.partition(":")[0]
    lines = [f"operations of the encoder and one step a chip: {flops:.3g}"]
    if moved is not None:
        lines.append(f"bytes that these access: {moved:.3g}")
    lines.append("these are the compiler's own counts: a loop's body is counted once")
    if moved is not None and chip in PEAKS:
        peaks = PEAKS[chip]
        computing, moving = flops / peaks.flops, moved / peaks.bandwidth
        lines.append(
            f"at {chip}'s peaks, {peaks.flops / 1e12:.0f} TFLOP/s in bfloat16 and {peaks.bandwidth / 1e9:.0f} GB/s: "
            f"operations {1000 * computing:.3g} ms, bytes {1000 * moving:.3g} ms; "
            f"{'operations' if computing > moving else 'bytes'} bind, and {held / peaks.memory:.1%} of "
            f"{peaks.memory / 1e9:.0f} GB are taken"
        )
    return lines


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    models = {"embedded": VisionEncoderDecoderConfig.from_pretrained(EMBEDDED), **OFFICIAL}
    parser.add_argument("--model", default="trocr-base-handwritten", choices=sorted(models))
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64, help="images a chip")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    start = time.perf_counter()
    compiled = compile_for(
        options.topology,
        models[options.model],
        dtype=options.dtype,
        batch=options.batch,
        num_beams=options.num_beams,
    )
    seconds = time.perf_counter() - start
    memory, cost, hlo = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    transfers, inside = host_transfers(hlo), loop_lines(hlo)
    print(
        f"{options.model}, {options.dtype}, {options.num_beams} beams, {options.batch} images a chip, "
        f"{options.topology}, jax {jax.__version__}: compiled in {seconds:.0f} s"
    )
    print(f"bytes a chip: {sum(parts.values()):,} ({', '.join(f'{name} {size:,}' for name, size in parts.items())})")
    print(*cost_lines(options.topology, cost, sum(parts.values())), sep="\n")
    print(f"host transfers inside loops: {len(transfers)} of {len(inside)} instructions")
    if transfers or not inside:
        raise SystemExit("\n".join(transfers) or "there is no loop in the program")


if __name__ == "__main__":
    main()
