"""Histograms of a dataset's splits as a picture."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trocr_jax.datasets.checks import LineFacts
from trocr_jax.replacing import replacing

BINS = 40
SUFFIXES = (".png", ".svg", ".pdf")


def save_histograms(splits: Mapping[str, Sequence[LineFacts]], most_tokens: int, path: str | os.PathLike[str]) -> None:
    """Writes a picture of the lengths of texts and the shapes of images, as part of each split's lines.

    Its format is the file's suffix, see `check_name`. It is written to a temporary name first.
    """
    check_name(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).ravel()
    seen = {name: [line.size for line in facts if line.size is not None] for name, facts in splits.items()}
    tokens = {name: [line.tokens for line in facts] for name, facts in splits.items()}
    _draw(axes[0], "characters of the text", {name: [len(line.text) for line in fs] for name, fs in splits.items()})
    # Texts that are too long are seen to be.
    is_over = any(count > most_tokens for counts in tokens.values() for count in counts)
    _draw(axes[1], "tokens, the end's included", tokens, least_high=most_tokens + 2 if is_over else 0)
    axes[1].axvline(most_tokens + 0.5, color="black", linestyle=":", linewidth=1)
    axes[1].text(
        most_tokens,
        0.99,
        "the model's limit ",
        transform=axes[1].get_xaxis_transform(),
        ha="right",
        va="top",
        fontsize=8,
    )
    _draw(
        axes[2], "width of the image over its height", {name: [w / h for w, h in sizes] for name, sizes in seen.items()}
    )
    _draw(axes[3], "height of the image, pixels", {name: [h for _, h in sizes] for name, sizes in seen.items()})
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, format=pathlib.Path(path).suffix.removeprefix("."), dpi=120)


def check_name(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a name that does not say what kind of picture it shall be."""
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path} is no name of a picture; let it end in {', '.join(SUFFIXES)}")


def _draw(axes: Any, label: str, values: Mapping[str, Sequence[float]], *, least_high: float = 0) -> None:
    """One histogram for each split in the same bins, which reach `least_high` at least; in percent of its lines."""
    everything = np.concatenate([np.asarray(numbers, float) for numbers in values.values()])
    axes.set_xlabel(label)
    axes.set_ylabel("% of the lines")
    if not len(everything):
        return
    # The few that are far out would leave no room for the others: they are in the last bin.
    low = everything.min()
    high = max(np.quantile(everything, 0.995), low + 1, least_high)
    is_whole = bool((everything == everything.round()).all())
    step = max(1, np.ceil((high - low + 1) / BINS)) if is_whole else (high - low) / BINS
    edges = np.arange(low - (0.5 if is_whole else 0), high + step, step)
    for name, numbers in values.items():
        if len(numbers):
            counted = np.clip(np.asarray(numbers, float), None, edges[-1] - step / 2)
            counts, _ = np.histogram(counted, edges)
            axes.stairs(100 * counts / len(numbers), edges, label=f"{name} ({len(numbers)})", linewidth=1.4)
