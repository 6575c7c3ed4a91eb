"""Lines a second from a folder of PNG files, by how far ahead of the device images are opened, as a Markdown table.

usage: python benchmarks/engine.py [--lines N] [--batch-size B] [--num-beams K] [--runs R] [--scale S]

Lines are drawn as in benchmarks/boxes.py, enlarged by `--scale` as a scan would be, and read by the embedded model. The
ways are asked in turn, `--runs` times behind a first that is not counted. Beside lines a second stands the processor
time of all threads, which other work on the machine disturbs less.

The last way sorts several batches of images by width before it divides them, so that fewer rows wait for the longest of
their batch. A last table counts that waiting: the share of the steps of all rows, by the number of batches sorted
together.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import statistics
import tempfile
import time

import jax
import numpy as np
from boxes import faces, random_text, render

from trocr_jax import TrOCR
from trocr_jax.processing.image import load_rgb

WINDOWS = (1, 2, 4, 8)  # batches


def draw_lines(folder: pathlib.Path, num_lines: int, scale: float) -> list[str]:
    """The paths of new pictures of lines."""
    draw, kinds, paths = random.Random(7), list(faces().values()), []
    for i in range(num_lines):
        image, _ = render(random_text(draw), kinds[i % len(kinds)], ["plain", "scanned"][i % 2], draw)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        paths.append(str(folder / f"{i:05}.png"))
        image.save(paths[-1])
    return paths


def serially(ocr: TrOCR, paths: list[str], batch_size: int, **options):
    """Without threads, floats sent to the device, one thing after the other."""
    for start in range(0, len(paths), batch_size):
        pixels = ocr.processor(paths[start : start + batch_size]).pixel_values
        output = ocr.generate(pixels, **options)
        for path, row, count in zip(paths[start:], output.sequences, output.num_tokens, strict=False):
            yield path, tuple(row[1 : 1 + count].tolist())


def wasted(lengths: list[np.ndarray]) -> float:
    """The share of steps x rows of batches that is behind the end of a row."""
    return 1 - sum(batch.sum() for batch in lengths) / sum(len(batch) * batch.max() for batch in lengths)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("lines", 384), ("batch-size", 8), ("num-beams", 1), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scale", type=float, default=2.0)
    options = parser.parse_args()
    ocr, size, search = TrOCR.from_pretrained(), options.batch_size, {"num_beams": options.num_beams}
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_lines(pathlib.Path(folder), options.lines, options.scale)
        ratios = np.array([width / height for width, height in (load_rgb(path).size for path in paths)])

        def stream(read_ahead: int | None = None):
            for line in ocr.stream(paths, batch_size=size, read_ahead=read_ahead, **search):
                yield line.source, line.token_ids

        ways = {
            "one after the other": lambda: serially(ocr, paths, size, **search),
            "threads within a batch (`read_ahead=0`)": lambda: stream(0),
            "one batch ahead": lambda: stream(1),
            "two batches ahead": lambda: stream(2),
            "seven, and of like width, the default": stream,
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        texts = {}
        for run in range(options.runs + 1):
            for name, way in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                texts[name] = dict(way())
                if run > 0:
                    seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
        if any(found != texts["one after the other"] for found in texts.values()):
            raise SystemExit("the ways read differently")
        lengths = np.array([len(texts["one after the other"][path]) for path in paths])
    print(f"{options.lines} lines, batch {size}, {options.num_beams} beams, {jax.devices()[0].device_kind}\n")
    print("| way | lines/s, median | range | processor ms/line, median |")
    print("|---|---|---|---|")
    for name, found in seconds.items():
        rates = [options.lines / wall for wall, _ in found]
        used = statistics.median(processor for _, processor in found) / options.lines * 1000
        print(f"| {name} | {statistics.median(rates):.1f} | {min(rates):.1f} to {max(rates):.1f} | {used:.1f} |")
    print("\n| batches sorted together | decoding behind the end of rows | steps |\n|---|---|---|")
    for window in WINDOWS:
        starts = range(0, len(ratios), window * size)
        order = np.concatenate([i + np.argsort(ratios[i : i + window * size], kind="stable") for i in starts])
        batches = [lengths[order[i : i + size]] for i in range(0, len(order), size)]
        print(f"| {window} | {wasted(batches):.0%} | {sum(batch.max() for batch in batches)} |")


if __name__ == "__main__":
    main()
