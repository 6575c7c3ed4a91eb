"""How the time of reading grows with batch, beams and tokens, and where it leaves the straight line, with a plot.

usage: python -m benchmarks.scaling [--model base] [--peers NAME ...] [--runs 5] [--output FOLDER]

As in benchmarks/run.py; one number grows while the others stay. The straight line goes through the first two sizes; it
is left at the first size whose median is a quarter above it, or below.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks import machine, twin
from benchmarks.contenders import OURS, REFERENCE, chosen
from benchmarks.field import Field, policies
from benchmarks.plots import save, write_text
from benchmarks.report import machine_lines, measured, milliseconds, table

SWEEPS = {
    "batch": {"batch": (1, 2, 4, 8, 16), "num_beams": 1, "tokens": 8},
    "beams": {"batch": 1, "num_beams": (1, 2, 4, 8, 12), "tokens": 8},
    "tokens": {"batch": 1, "num_beams": 1, "tokens": (8, 16, 32, 64, 128)},
}
TOLERANCE = 0.25


def leaves_line(sizes: Sequence[int], seconds: Sequence[float]) -> int | None:
    """The first size whose time is off the line through the first two by more than TOLERANCE of it; None if none is."""
    slope = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    for size, found in zip(sizes[2:], seconds[2:], strict=True):
        expected = seconds[0] + slope * (size - sizes[0])
        if abs(found - expected) > TOLERANCE * expected:
            return size
    return None


def sweep(field: Field, model: str, fixed: Mapping[str, Any], runs: int, scratch: pathlib.Path) -> dict[str, Any]:
    """Results by size, and the sizes."""
    grows = next(name for name, value in fixed.items() if isinstance(value, tuple))
    found: dict[str, Any] = {"sizes": list(fixed[grows]), "results": []}
    for size in found["sizes"]:
        given = {**fixed, grows: size}
        pixels = twin.random_pixels(model, given["batch"], scratch / "pixels.npy")
        options = {
            "num_beams": given["num_beams"],
            "max_new_tokens": given["tokens"],
            "min_new_tokens": given["tokens"],
        }
        found["results"].append(field.measure(pixels, given["batch"], options, runs))
    return found


def medians(found: Mapping[str, Any], name: str) -> list[float]:
    """A contender's median at each size that it could do, from the first on."""
    values = [measured(results).get(name) for results in found["results"]]
    whole = values[: values.index(None)] if None in values else values
    return [statistics.median(result["seconds"]) for result in whole if result]


def sweep_table(found: Mapping[str, Any]) -> str:
    """A row each contender, a column each size."""
    rows = []
    for name in found["results"][0]:
        cells = []
        for results in found["results"]:
            result = results[name]
            cells.append(result["error"] if "error" in result else milliseconds(result["seconds"]))
        values = medians(found, name)
        left = leaves_line(found["sizes"], values) if len(values) == len(found["sizes"]) else None
        rows.append([name, *cells, str(left or "")])
    return table(["ms", *map(str, found["sizes"]), "leaves the line at"], rows)


def plot(sweeps: Mapping[str, Any], path: pathlib.Path) -> None:
    """A panel for each sweep, with the line through a contender's first two sizes."""
    figure = Figure(figsize=(5 * len(sweeps), 4))
    for axes, (grows, found) in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items(), strict=True):
        for name in found["results"][0]:
            values = medians(found, name)
            sizes = found["sizes"][: len(values)]
            line = axes.plot(sizes, values, "o-" if name.startswith(OURS) else "s--", label=name)
            if len(values) > 2:
                slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
                ends = [values[0], values[0] + slope * (sizes[-1] - sizes[0])]
                axes.plot([sizes[0], sizes[-1]], ends, ":", color=line[0].get_color(), linewidth=1)
        axes.set_xlabel(grows)
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.tight_layout()
    save(figure, path)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--model", choices=sorted(twin.MODELS), default="base")
    parser.add_argument("--peers", nargs="*", metavar="NAME", default=[REFERENCE])
    parser.add_argument("--sweeps", nargs="+", choices=sorted(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="folder for tables, JSON and the plot")
    options = parser.parse_args()
    field = Field(chosen(options.device, policies(), options.peers), twin.make_twin(options.model), options.device)
    sweeps = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name in options.sweeps:
                sweeps[name] = sweep(field, options.model, SWEEPS[name], options.runs, pathlib.Path(scratch))
    finally:
        field.close()
    described = machine.describe("benchmarks.scaling")
    parts = [f"# How the time of trocr-{options.model} grows", machine_lines(described, field.versions)]
    for name, found in sweeps.items():
        fixed = ", ".join(f"{key} {value}" for key, value in SWEEPS[name].items() if not isinstance(value, tuple))
        parts += [f"## By {name} ({fixed})", sweep_table(found)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / "scaling.md", text)
        write_text(options.output / "scaling.json", json.dumps({"machine": described, "sweeps": sweeps}, indent=1))
        plot(sweeps, options.output / "scaling.png")


if __name__ == "__main__":
    main()
