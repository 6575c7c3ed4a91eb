"""How few lines adapt a model: CER of unseen lines before training and behind it, by the number of training lines.

usage: python -m benchmarks.adaptation [--data ZIP] [--counts N ...] [--model ID_OR_FOLDER] [--output FOLDER] ...

ZIP/train, ZIP/val and ZIP/test are lines with known texts (see `trocr_jax.datasets`). Each count takes the first so
many training lines in a seeded order, trains anew with `trocr_jax.training.fit` and reads all test lines; the weights
are those that read the validation lines best. Error rates are micro averages with 95 % intervals (bootstrap over
lines). A count that is done is kept in the output folder and not trained again; more of them can be asked for later, if
all else is asked for as before.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import warnings
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import machine
from benchmarks.lines import FOLDER
from benchmarks.plots import save, write_text
from trocr_jax import TrOCR
from trocr_jax.allocator import keep_freed_memory
from trocr_jax.config import read_json
from trocr_jax.datasets import open_dataset
from trocr_jax.evaluation import evaluate
from trocr_jax.training import fit

BATCH = 16
# The options that every row depends on.
ASKED = ("data", "model", "epochs", "fewest", "most", "augment", "seed")


def measure(ocr: TrOCR, test, **found: Any) -> dict[str, Any]:
    """The test lines' error rates, beside what is known of the model."""
    rates = evaluate(ocr, test, batch_size=64).all.rates
    return found | {name: [rates[name].value, rates[name].low, rates[name].high] for name in ("cer", "wer")}


def trained(ocr: TrOCR, splits, count: int, options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Trains on so many lines and reads the test lines."""
    order = np.random.default_rng(options.seed).permutation(len(splits["train"]))[:count]
    lines = [splits["train"][index] for index in order]
    steps = min(max(options.epochs * count // BATCH, options.fewest), options.most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lines of more tokens than the model has positions for are left out
        result = fit(
            ocr, lines, splits["val"], folder, resume=True, max_steps=steps, batch_size=BATCH,
            augment="da2" if options.augment else None, seed=options.seed, eval_every=max(steps // 8, 1),
        )  # fmt: skip
    return measure(result.ocr, splits["test"], count=count, steps=result.num_steps, best_step=result.best_step)


def kept_rows(path: pathlib.Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an earlier run left there; none where there is no such file.

    Raises ValueError where they came of other options, since the table would show them as if they came of these.
    """
    if not path.exists():
        return []
    content = read_json(path)
    before = content.get("asked", {})
    differing = [
        f"{name} (was {before.get(name)!r}, is {value!r})" for name, value in asked.items() if before.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{path} holds results that differ in {', '.join(differing)}; ask for what was asked before, or name "
            "another folder (--output)"
        )
    return content["rows"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| training lines | steps | CER | WER |", "|---|---|---|---|"]
    for row in rows:
        rates = ["{:.1f} % ({:.1f} to {:.1f})".format(*(100 * value for value in row[name])) for name in ("cer", "wer")]
        lines.append(f"| {row['count']:,} | {row['steps']:,} | {rates[0]} | {rates[1]} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], name: str, path: pathlib.Path) -> None:
    """The error rate by the number of lines, with intervals."""
    figure = Figure(figsize=(6, 3.6))
    axes = figure.subplots()
    places = np.arange(len(rows))
    middle, low, high = 100 * np.array([row["cer"] for row in rows]).T
    axes.errorbar(places, middle, yerr=[middle - low, high - middle], marker="o", capsize=4)
    axes.set_xticks(places, ["before" if row["count"] == 0 else f"{row['count']:,}" for row in rows])
    axes.set_xlabel("training lines")
    axes.set_ylabel("CER of test lines, %")
    axes.set_ylim(bottom=0)
    axes.set_title(name, fontsize="medium")
    axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def main() -> None:
    """Prints the table, and keeps it with all numbers and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(FOLDER / "ehri_en_typed.zip"))
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--counts", nargs="+", type=int, default=[64, 256, 1379])
    parser.add_argument("--epochs", type=int, default=20, help="times each line, at the bounds of the next two")
    parser.add_argument("--fewest", type=int, default=400, help="steps at least")
    parser.add_argument("--most", type=int, default=4000, help="steps at most")
    parser.add_argument("--augment", action="store_true", help="change training lines by DA2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for models, table and plot")
    options = parser.parse_args()
    keep_freed_memory()
    kept, asked = options.output / "results.json", {name: getattr(options, name) for name in ASKED}
    rows = kept_rows(kept, asked)
    splits = {name: open_dataset(f"{options.data}/{name}") for name in ("train", "val", "test")}
    ocr = TrOCR.from_pretrained(options.model)
    options.output.mkdir(parents=True, exist_ok=True)
    for count in [0, *sorted({min(count, len(splits["train"])) for count in options.counts})]:
        if any(row["count"] == count for row in rows):
            continue
        if count == 0:
            rows.append(measure(ocr, splits["test"], count=0, steps=0, best_step=0))
        else:
            rows.append(trained(ocr, splits, count, options, options.output / f"lines-{count}"))
        rows.sort(key=lambda row: row["count"])
        content = {"machine": machine.describe("benchmarks.adaptation"), "asked": asked, "rows": rows}
        write_text(kept, json.dumps(content, indent=1))
        write_text(options.output / "results.md", table(rows))
        plot(rows, pathlib.Path(options.data).stem, options.output / "learning_curve.png")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
