"""Training lines opened a second, by threads of one process as `fit` does it, and by processes, as a Markdown table.

usage: python -m benchmarks.opening [--cores 1 2 ...] [--augment none da2 randaugment] [--steps N]

Lines of receipts, else drawn ones, are opened from files, changed and brought to the size of trocr-base's images, in
batches of 16. On as many cores, one process with its threads stands beside as many processes with theirs: what threads
lose to Python's lock, processes would gain. Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.lines import some_lines
from trocr_jax.datasets import open_dataset
from trocr_jax.datasets.augmentation import NAMED
from trocr_jax.processing.image import ImageProcessor
from trocr_jax.training import Batches

BATCH = 16
LINES = 256
SIZE = (384, 384)
TIMEOUT = 600  # seconds, behind which a process that has failed is no longer waited for
AUGMENTATIONS = {"none": None, **NAMED}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all processes together open, and on which cores."""

    folder: str
    augment: str
    cores: tuple[int, ...]
    steps: int


def open_lines(work: Work, processes: int, number: int, all_ready: Any, found: Any) -> None:
    """Opens one process's share of the batches, and puts when it began and ended into the queue."""
    os.sched_setaffinity(0, work.cores)
    lines = open_dataset(work.folder)
    labels, processor = np.zeros((len(lines), 1), np.int32), ImageProcessor(size=SIZE)
    batches = Batches(lines, labels, processor, BATCH, seed=number, augment=AUGMENTATIONS[work.augment])
    for _ in batches.stream(0, 2):
        pass
    all_ready.wait(TIMEOUT)
    start = time.time()
    for _ in batches.stream(2, 2 + work.steps // processes):
        pass
    found.put((start, time.time()))


def rate(work: Work, processes: int) -> float:
    """Lines a second of so many processes together."""
    context = multiprocessing.get_context("spawn")
    all_ready, found = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=open_lines, args=(work, processes, number, all_ready, found))
        for number in range(processes)
    ]
    for process in started:
        process.start()
    starts, ends = zip(*(found.get(timeout=TIMEOUT) for _ in started), strict=True)
    for process in started:
        process.join()
    return work.steps // processes * processes * BATCH / (max(ends) - min(starts))


def write_lines(folder: pathlib.Path) -> str:
    """Writes a dataset of lines and returns what they are."""
    lines, what = some_lines(LINES)
    for number, (image, _) in enumerate(lines):
        image.save(folder / f"{number}.png")
    rows = (f"{number}.png\t{text}\n" for number, (_, text) in enumerate(lines))
    (folder / "labels.tsv").write_text("".join(rows), encoding="utf-8")
    return what


def main() -> None:
    """Prints the table."""
    available = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", nargs="+", type=int, default=sorted({1, len(available)}))
    parser.add_argument("--augment", nargs="+", default=list(AUGMENTATIONS), choices=list(AUGMENTATIONS))
    parser.add_argument("--steps", type=int, default=40, help="batches opened for a number")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{write_lines(pathlib.Path(folder))}, lines/s\n")
        print("| augmentation | cores | threads of one process | processes |\n|---|---|---|---|")
        for augment in options.augment:
            for count in options.cores:
                work = Work(folder, augment, tuple(available[:count]), options.steps)
                print(f"| {augment} | {count} | {rate(work, 1):.0f} | {rate(work, count):.0f} |", flush=True)


if __name__ == "__main__":
    main()
