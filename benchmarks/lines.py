"""Pictures of lines with their texts: real ones where there are any, else drawn ones."""

from __future__ import annotations

import io
import pathlib
import random
import zipfile

from PIL import Image

from benchmarks.boxes import faces, random_text, render

FOLDER = pathlib.Path(__file__).parents[2] / "shared" / "data" / "lines"
SET, SPLIT = "sroie_en_receipts", "test"


def real_lines(folder: pathlib.Path, count: int) -> list[tuple[Image.Image, str]]:
    """As many lines of receipts, evenly spread over a set's test part."""
    with zipfile.ZipFile(folder / f"{SET}.zip") as archive:
        labels = archive.read(f"{SET}/{SPLIT}/labels.tsv").decode("utf-8").splitlines()
        pairs = [line.split("\t", 1) for line in labels if line.split("\t")[0].endswith((".jpg", ".png"))]
        chosen = [pairs[i * len(pairs) // count] for i in range(min(count, len(pairs)))]
        return [
            (Image.open(io.BytesIO(archive.read(f"{SET}/{SPLIT}/{name}"))).convert("RGB"), text)
            for name, text in chosen
        ]


def drawn_lines(count: int) -> list[tuple[Image.Image, str]]:
    """As many lines, drawn as in benchmarks/boxes.py."""
    draw, kinds, found = random.Random(7), list(faces().values()), []
    for i in range(count):
        text = random_text(draw)
        image, _ = render(text, kinds[i % len(kinds)], ["plain", "scanned"][i % 2], draw)
        found.append((image.convert("RGB"), text))
    return found


def some_lines(count: int, folder: pathlib.Path = FOLDER) -> tuple[list[tuple[Image.Image, str]], str]:
    """(lines, what they are)."""
    if (folder / f"{SET}.zip").is_file():
        return real_lines(folder, count), f"real lines ({SET}, {SPLIT})"
    return drawn_lines(count), "drawn lines"
