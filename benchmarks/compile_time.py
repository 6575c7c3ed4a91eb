"""Time that compiling takes, and what the compilation cache leaves of it.

usage: python -m benchmarks.compile_time [--models base] [--batches 1 8] [--beams 1 4] [--tokens 24]

Random models of the official architectures under every precision policy. What compiling takes is the first run of a new
process less its second. Each program is made twice, in two new processes with one cache folder: empty, then filled.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import tempfile

from benchmarks import machine, twin
from benchmarks.contenders import Contender, interpreter
from benchmarks.contenders.process import Process
from benchmarks.field import policies
from benchmarks.report import machine_lines, table

LIMIT = 1800.0  # seconds


def seconds(contender: Contender, weights: pathlib.Path, request: dict, cache: str, device: str):
    """(first run, second run, versions) in a new process."""
    environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    process = Process([str(interpreter(contender)), "-m", "benchmarks.contenders", contender.side], environment)
    try:
        options = dict(contender.options)
        loaded = process.ask(
            LIMIT, do="load", folder=str(weights), device=device, dtype=contender.dtype, options=options
        )
        first, second = (process.ask(LIMIT, do="generate", **request)["seconds"] for _ in range(2))
    finally:
        process.close()
    return first, second, loaded["versions"]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=sorted(twin.MODELS), default=["base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    rows, versions = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for model, batch, beams in itertools.product(options.models, options.batches, options.beams):
            pixels = twin.random_pixels(model, batch, pathlib.Path(folder) / "pixels.npy")
            limits = {"num_beams": beams, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
            request = {"pixels": str(pixels), "batch": batch, "options": limits}
            for contender in policies():
                with tempfile.TemporaryDirectory() as cache:
                    for state in ("empty", "filled"):
                        first, second, found = seconds(contender, twin.make_twin(model), request, cache, options.device)
                        cells = [f"{first:.1f}", f"{second:.2f}", f"{max(first - second, 0):.1f}"]
                        rows.append([f"{model}, batch {batch}, {beams} beams", contender.name, state, *cells])
                        versions = {"trocr_jax": found}
    print(machine_lines(machine.describe("benchmarks.compile_time"), versions) + "\n")
    print(table(["", "", "cache", "first run, s", "second run, s", "compiling, s"], rows))


if __name__ == "__main__":
    main()
