"""Time of reading, pixels to ids, beside what a user would pick instead, with the same weights and pixels.

usage: python -m benchmarks.run [--device cpu] [--suite quick] [--peers NAME ...] [--output FOLDER] ...

Random models of the official architectures, as many tokens as asked for in every text; then the embedded model over
lines of text with natural stops. Each contender is a process of its own, and they are asked in turn, one at a time,
behind a first run that is not counted (it compiles). Medians and ranges over rounds; a ratio's range is that of the
ratios within rounds. Ids are compared with transformers' in float32. The floor is benchmarks/floor.py's.

A peer that is not set up is a row that says how: python -m benchmarks.environments NAME
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import floor, machine, twin
from benchmarks.contenders import PEERS, chosen
from benchmarks.field import POLICIES, Field, policies
from benchmarks.lines import FOLDER, some_lines
from benchmarks.plots import plot_workloads, write_text
from benchmarks.report import report
from benchmarks.rounds import Patience
from trocr_jax import TrOCRProcessor
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.registry import OFFICIAL

NANO = "nano"  # the embedded model, over lines of text
SUITES = {
    "quick": {"models": ["base", NANO], "batches": [1, 8], "beams": [1, 4]},
    "full": {"models": ["small", "base", "large", NANO], "batches": [1, 8, 32], "beams": [1, 4]},
}
LINES, LINES_BATCH = 256, 32


def twin_workloads(field: Field, model: str, rates: floor.Rates, options: argparse.Namespace, scratch: pathlib.Path):
    """Yields a workload with its results for every batch and number of beams."""
    config, tokens = OFFICIAL[twin.MODELS[model]], options.tokens
    for batch, num_beams in itertools.product(options.batches, options.beams):
        pixels = twin.random_pixels(model, batch, scratch / "pixels.npy")
        generate = {"num_beams": num_beams, "max_new_tokens": tokens, "min_new_tokens": tokens}
        results = field.measure(pixels, batch, generate, options.runs)
        for name, result in results.items():
            contender = field.contenders[name]
            if "ids" in result:
                result["floor_seconds"] = floor.floor_seconds(
                    config, rates, batch=batch, num_beams=num_beams, new_tokens=tokens,
                    dtype=contender.dtype, weight_bytes=contender.weight_bytes,
                )  # fmt: skip
        workload = {"model": model, "batch": batch, "num_images": batch, "num_beams": num_beams, "new_tokens": tokens}
        yield workload | {"results": results}


def line_workloads(field: Field, options: argparse.Namespace, scratch: pathlib.Path):
    """Yields the same for the embedded model over lines of text, with error rates instead of floors."""
    lines, source = some_lines(LINES, options.lines)
    processor = TrOCRProcessor.from_pretrained(EMBEDDED)
    np.save(scratch / "lines.npy", np.asarray(processor([image for image, _ in lines]).pixel_values))
    references = [text.upper() for _, text in lines]  # receipts' labels are upper case whatever the image shows
    for num_beams in options.beams:
        results = field.measure(scratch / "lines.npy", LINES_BATCH, {"num_beams": num_beams}, options.runs)
        for result in results.values():
            if "ids" in result:
                texts = [text.upper() for text in processor.batch_decode(result["ids"], skip_special_tokens=True)]
                result["character_error_rate"] = character_error_rate(texts, references)
        workload = {"model": f"nano over {source}", "batch": LINES_BATCH, "num_images": len(lines)}
        yield workload | {"num_beams": num_beams, "new_tokens": None, "results": results}


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields everything measured so far, ready for JSON, after each workload."""
    patience = Patience(options.limit, options.slow)
    contenders = chosen(options.device, policies(options.policies), options.peers)
    done: dict[str, Any] = {
        "machine": machine.describe("benchmarks.run"),
        "versions": {},
        "peak_memory": {},
        "workloads": [],
    }
    rates: floor.Rates | None = None
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        for model in options.models:
            weights = twin.embedded_in_torch() if model == NANO else twin.make_twin(model)
            field = Field(contenders, weights, options.device, patience)
            try:
                rates = rates or field.rates()
                done["rates"] = dataclasses.asdict(rates)
                done["versions"] |= field.versions
                if model == NANO:
                    workloads = line_workloads(field, options, scratch)
                else:
                    workloads = twin_workloads(field, model, rates, options, scratch)
                for workload in workloads:
                    done["workloads"].append(workload)
                    done["peak_memory"][model] = field.peaks()
                    yield done
            finally:
                field.close()


def arguments() -> argparse.Namespace:
    """The options, a suite's where none are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--suite", choices=sorted(SUITES), default="quick")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES, help="of this library")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"default: all of {', '.join(PEERS)}")
    parser.add_argument("--models", nargs="+", choices=[*twin.MODELS, NANO])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--beams", nargs="+", type=int)
    parser.add_argument("--tokens", type=int, default=24, help="in every text")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=Patience.limit, help="seconds to wait for an answer")
    parser.add_argument("--slow", type=float, default=Patience.slow, help="contenders slower are measured once")
    parser.add_argument("--lines", type=pathlib.Path, default=FOLDER, help="folder of zip files of lines")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the tables, JSON and plots")
    options = parser.parse_args()
    for name, value in SUITES[options.suite].items():
        if getattr(options, name) is None:
            more = [64, 256] if (options.device, options.suite, name) == ("gpu", "full", "batches") else []
            setattr(options, name, [*value, *more])
    return options


def main() -> None:
    """Prints the tables, and writes them with all numbers and plots."""
    options = arguments()
    text = ""
    for done in run(options):
        text = report(done)
        if options.output:  # what was measured is kept if the rest cannot be
            options.output.mkdir(parents=True, exist_ok=True)
            write_text(options.output / "results.md", text)
            write_text(options.output / "results.json", json.dumps(done, indent=1))
            plot_workloads(done["workloads"], options.output)
    print(text)


if __name__ == "__main__":
    main()
