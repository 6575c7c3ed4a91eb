"""`trocr-jax calibrate`: fits a model's confidences on lines with known texts, and stores that beside its weights."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from trocr_jax.printing import unescape

DESCRIPTION = """\
Reads lines whose texts are known and writes calibration.json into the model's folder, which every later read uses.
LINES holds a path, a tab and the true text on each line, as `trocr-jax read --format tsv` prints them: correct such a
file by hand. Some hundred lines that the model was not trained on are needed.
"""
FEW = 100


def add_calibrate(commands: Any) -> None:
    """Adds the command to a parser's."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a model's confidences on lines with known texts",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="FOLDER", help="folder of the model")
    parser.add_argument("lines", metavar="LINES", help="file of paths and texts")
    parser.add_argument("--num-beams", type=int, metavar="N", help="beams that later reads will search with")
    parser.set_defaults(run=run_calibrate)


def run_calibrate(options: argparse.Namespace) -> int:
    """Calibrates as the parsed arguments say, and returns the exit status."""
    paths, texts = read_lines(pathlib.Path(options.lines))
    if not pathlib.Path(options.model).is_dir():
        raise FileNotFoundError(f"{options.model} is no folder; `trocr-jax convert` makes one of a model on the hub")
    from trocr_jax.compilation_cache import enable_compilation_cache
    from trocr_jax.recognizer import TrOCR

    enable_compilation_cache()
    ocr = TrOCR.from_pretrained(options.model)
    settings = {} if options.num_beams is None else {"num_beams": options.num_beams}
    calibration = ocr.calibrate(paths, texts, **settings)
    calibration.write_files(pathlib.Path(options.model))
    if len(paths) < FEW:
        print(f"trocr-jax: {len(paths)} lines are few to calibrate on; pass some hundred", file=sys.stderr)
    for name, scaling in (("lines", calibration.lines), ("words", calibration.words)):
        print(
            f"{name}: {scaling.right} of {scaling.count} right; temperature {scaling.temperature:.3f}, "
            f"bias {scaling.bias:.3f}; calibration error {scaling.ece[0]:.3f} before, {scaling.ece[1]:.3f} after"
        )
    return 0


def read_lines(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """(paths, texts) of a file with both on each line, a tab between; ValueError says which line has none."""
    paths, texts = [], []
    # Only \\n ends a line: a text may hold one of the rarer separators of str.splitlines.
    for i, line in enumerate(path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n"), 1):
        if line.rstrip("\r"):
            image, tab, text = line.rstrip("\r").partition("\t")
            if not tab:
                raise ValueError(f"{path}: line {i} has no tab between a path and a text")
            paths.append(unescape(image))
            texts.append(unescape(text))
    return paths, texts
