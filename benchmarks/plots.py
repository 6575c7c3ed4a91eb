"""What benchmarks found, as files: plots and texts."""

from __future__ import annotations

import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.contenders import OURS
from benchmarks.report import measured, title

COLOURS = {True: "tab:blue", False: "tab:gray"}  # ours, peers


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure whole or not at all."""
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=110, bbox_inches="tight")
    os.replace(part, path)


def plot_workloads(workloads: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[pathlib.Path]:
    """A file for each model, NAME.png: medians of all contenders as bars, with ranges, a panel each workload."""
    paths = []
    for model in dict.fromkeys(workload["model"] for workload in workloads):
        panels = [workload for workload in workloads if workload["model"] == model]
        figure = Figure(figsize=(8, 2.2 * len(panels)))
        for axes, workload in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            _bars(axes, workload)
        figure.tight_layout()
        paths.append(folder / f"{model.split()[0]}.png")
        save(figure, paths[-1])
    return paths


def _bars(axes: Any, workload: Mapping[str, Any]) -> None:
    results = measured(workload["results"])
    for place, (name, result) in enumerate(reversed(results.items())):
        seconds = result["seconds"]
        middle = statistics.median(seconds)
        spread = [[middle - min(seconds)], [max(seconds) - middle]]
        axes.barh(place, middle, xerr=spread, color=COLOURS[name.startswith(OURS)], ecolor="black", capsize=3)
        if "floor_seconds" in result:
            axes.plot([result["floor_seconds"]] * 2, [place - 0.4, place + 0.4], color="tab:red")
    axes.set_yticks(range(len(results)), reversed(list(results)))
    axes.set_xlabel("seconds; black: range, red: floor")
    axes.set_title(title(workload), fontsize="medium")
