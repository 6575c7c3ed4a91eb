"""`trocr-jax calibrate`: fits a model's confidences on lines with known texts, and stores that beside its weights."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trocr_jax.commands import Uninterrupted
from trocr_jax.datasets import FORMATS, Example, formats, open_dataset

if TYPE_CHECKING:
    from trocr_jax.calibration import Calibration

DESCRIPTION = f"""\
Reads lines whose texts are known and writes calibration.json into the model's folder, which every later read uses.
Some hundred lines that the model was not trained on are needed.

{formats.DESCRIPTION}"""
EXAMPLES = """\
examples:
  trocr-jax calibrate mine lines.zip/val
  trocr-jax read --model mine *.png --format tsv > lines.tsv   a list, whose texts are then corrected by hand
  trocr-jax calibrate mine lines.tsv                           its paths are relative to the file
"""
FEW = 100


def add_calibrate(commands: Any) -> None:
    """Adds the command to a parser's."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a model's confidences on lines with known texts",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="FOLDER", help="folder of the model")
    parser.add_argument("data", metavar="DATA", help="lines to read, with their texts")
    parser.add_argument("--data-format", choices=tuple(FORMATS), help="DATA's format (default: told by what is there)")
    parser.add_argument("--num-beams", type=int, metavar="N", help="beams that later reads will search with")
    parser.set_defaults(run=run_calibrate)


def run_calibrate(options: argparse.Namespace) -> int:
    """Calibrates as the parsed arguments say, and returns the exit status."""
    examples = open_dataset(options.data, format=options.data_format)
    if not pathlib.Path(options.model).is_dir():
        raise FileNotFoundError(f"{options.model} is no folder; `trocr-jax convert` makes one of a model on the hub")
    settings = {} if options.num_beams is None else {"num_beams": options.num_beams}
    calibration = _fit(options.model, examples, **settings)
    calibration.write_files(pathlib.Path(options.model))
    if len(examples) < FEW:
        print(f"trocr-jax: {len(examples)} lines are few to calibrate on; pass some hundred", file=sys.stderr)
    for name, scaling in (("lines", calibration.lines), ("words", calibration.words)):
        print(
            f"{name}: {scaling.right} of {scaling.count} right; temperature {scaling.temperature:.3f}, "
            f"bias {scaling.bias:.3f}; calibration error {scaling.ece[0]:.3f} before, {scaling.ece[1]:.3f} after"
        )
    return 0


def _fit(model: str, examples: Sequence[Example], **settings: Any) -> Calibration:
    with Uninterrupted():
        from trocr_jax.compilation_cache import enable_compilation_cache
        from trocr_jax.evaluation.reading import READ_AHEAD
        from trocr_jax.recognizer import TrOCR

    enable_compilation_cache()
    images = (example.open() for example in examples)
    return TrOCR.from_pretrained(model).calibrate(
        images, [example.text for example in examples], read_ahead=READ_AHEAD, **settings
    )
