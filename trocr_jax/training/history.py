"""What happened in a training, step by step: a CSV file, and a picture of it."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trocr_jax.replacing import replacing

COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "images_per_second", "skipped_steps", "cer")
POINTS = 100


class History:
    """The rows of a training's log.csv: `rows`, each {column: number}, without what was not measured at that step."""

    def __init__(self, path: pathlib.Path, *, last_step: int, is_written: bool = True) -> None:
        """Goes on with the file as it was at `last_step`: rows behind it, of a run that was killed, are dropped.

        Unless it `is_written` here, by another process for one, the file is left alone.
        """
        self.path, self.is_written = path, is_written
        rows = _read(path) if path.exists() else []
        self.rows = [row for row in rows if row["step"] <= last_step]
        if not is_written:
            return
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: Mapping[str, float]) -> None:
        """Appends a row, to the file as well."""
        self.rows.append(dict(row))
        if not self.is_written:
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def _read(path: pathlib.Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        # A last row without a line end was cut off: its last number may be a part of one, "15" of "150".
        rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
    found = []
    for row in rows:
        # What a crash of the machine left may be no numbers at all.
        try:
            numbers = {name: value for name, value in row.items() if name in COLUMNS and value}
            found.append({name: int(text) if text.isdigit() else float(text) for name, text in numbers.items()})
        except ValueError:
            continue
    return [row for row in found if "step" in row]


def draw_curves(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes a PNG with the loss and the error rate of validation over the steps."""
    # Drawn without pyplot, which would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    left.set_xlabel("step")
    curves = (("loss", left, "tab:blue", "-"), ("cer", left.twinx(), "tab:red", "o-"))
    for name, axes, color, style in curves:
        points = np.array([(row["step"], row[name]) for row in rows if name in row])
        # A loss of every step is noise: means of neighbours are drawn.
        parts = (
            np.array_split(points, min(len(points), POINTS) if name == "loss" else len(points)) if len(points) else []
        )
        means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
        axes.plot(means[:, 0], means[:, 1], style, color=color, markersize=3)
        axes.set_ylabel({"loss": "training loss a token", "cer": "validation CER"}[name], color=color)
        axes.set_ylim(bottom=0)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
