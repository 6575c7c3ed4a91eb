"""How well the model inside the package reads lines it was not trained on: a table, and a picture of what it misreads.

usage: python -m benchmarks.model_card --data FOLDER --texts FILE ... --output FOLDER [--models ID_OR_FOLDER ...]

FOLDER holds uw3_en_print.zip, ehri_en_typed.zip and sroie_en_receipts.zip, whose test/ is read; so are lines drawn with
the words of the texts in this machine's fonts of the families that benchmarks/embedded_model.py holds out. Error rates
are micro averages with 95 % intervals (bootstrap over lines), greedy, in float32.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks import machine
from benchmarks.embedded_model import MOST_CHARACTERS, some_faces
from benchmarks.plots import write_text
from trocr_jax import TrOCR
from trocr_jax.datasets import open_dataset
from trocr_jax.datasets.augmentation import save_image
from trocr_jax.datasets.example import Example
from trocr_jax.datasets.fonts import FOLDERS
from trocr_jax.datasets.synthetic import synthetic_lines
from trocr_jax.evaluation import Report, evaluate
from trocr_jax.evaluation.metrics import estimate
from trocr_jax.evaluation.report import Compared

SCANS = {
    "UW-III, printed scans": "uw3_en_print",
    "EHRI, typewritten reports": "ehri_en_typed",
    "SROIE, receipts": "sroie_en_receipts",
}
REPEATING = "SROIE, receipts"  # many of its texts, such as CASH, come again and again
DRAWN, NUM_DRAWN, DRAWN_SEED = "drawn, fonts and texts unseen", 500, 2
SHOWN, WIDTH, HEIGHT, STRIP = 4, 900, 44, 52  # lines of each set in the picture, and pixels of an image and its texts


def lines_to_read(data: pathlib.Path, texts: Sequence[str], fonts: Sequence[str]) -> dict[str, Sequence[Example]]:
    """The lines of each test set."""
    drawn = synthetic_lines(texts, num_lines=NUM_DRAWN, fonts=fonts, seed=DRAWN_SEED, most_characters=MOST_CHARACTERS)
    scans = {name: open_dataset(f"{data}/{archive}.zip/test") for name, archive in SCANS.items()}
    return {**scans, DRAWN: some_faces(drawn, held_out=True)}


def rates(lines: Sequence[Compared]) -> dict[str, list[float]]:
    """CER [value, low, high], as the texts are and with case ignored."""
    found = {}
    for name, change in (("cer", str), ("cer, case ignored", str.lower)):
        rate = estimate("cer", [change(line.text) for line in lines], [change(line.example.text) for line in lines])
        assert rate is not None
        found[name] = [rate.value, rate.low, rate.high]
    return found


def rows_of(model: str, reports: Mapping[str, Report], trained: Container[str]) -> list[dict[str, Any]]:
    """A row for each set, and one for those of SROIE's lines whose texts in small letters are not among `trained`."""
    rows = []
    for name, report in reports.items():
        chosen = {name: report.compared}
        if name == REPEATING:
            chosen[f"{name}, texts unseen"] = [x for x in report.compared if x.example.text.lower() not in trained]
        rows += [{"model": model, "lines": key, "number": len(x), **rates(x)} for key, x in chosen.items() if x]
    return rows


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| model | lines | number | CER | CER, case ignored |", "|---|---|---|---|---|"]
    for row in rows:
        told = [
            "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * x for x in row[name])) for name in ("cer", "cer, case ignored")
        ]
        lines.append(f"| {row['model']} | {row['lines']} | {row['number']:,} | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


def misread(reports: Mapping[str, Report]) -> Image.Image:
    """The lines of each set with the most edits for their length, what stands there and what was read below each."""
    lines = [(name, line) for name, report in reports.items() for line in report.worst(SHOWN)]
    picture = Image.new("RGB", (WIDTH, len(lines) * (HEIGHT + STRIP)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for i, (name, line) in enumerate(lines):
        image, top = line.example.open(), i * (HEIGHT + STRIP)
        scale = min(HEIGHT / image.height, WIDTH / image.width)
        picture.paste(image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1))), (0, top))
        draw.text((0, top + HEIGHT + 2), f"{name}: {line.example.text}", font=font, fill="#495057")
        draw.text((0, top + HEIGHT + 22), f"read: {line.text}", font=font, fill="#c92a2a")
    return picture


def main() -> None:
    """Prints the table, and keeps it with all numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--texts", nargs="+", required=True, help="of the words to draw, UTF-8, not trained on")
    parser.add_argument("--fonts", nargs="+", default=FOLDERS, help="files and folders (default: this machine's)")
    parser.add_argument("--models", nargs="*", default=[], help="others, read before the one inside the package")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    sets = lines_to_read(options.data, options.texts, options.fonts)
    trained = {line.text.lower() for line in open_dataset(f"{options.data}/{SCANS[REPEATING]}.zip/train")}
    rows, reports = [], {}
    for model in (*options.models, None):
        ocr = TrOCR.from_pretrained(model, dtype="float32")
        reports = {name: evaluate(ocr, lines, batch_size=64, samples=1) for name, lines in sets.items()}
        rows += rows_of(model or "embedded", reports, trained)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.describe("benchmarks.model_card"), "rows": rows}
    write_text(options.output / "results.json", json.dumps(content, indent=1))
    write_text(options.output / "results.md", table(rows))
    if any(report.worst(1) for report in reports.values()):
        save_image(misread(reports), options.output / "misread.png")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
