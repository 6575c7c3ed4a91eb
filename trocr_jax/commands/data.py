"""`trocr-jax data check`: what is wrong with a dataset."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trocr_jax.commands.read import positive
from trocr_jax.datasets import FORMATS, Example, open_dataset

if TYPE_CHECKING:
    from trocr_jax.datasets.checks import Finding, LineFacts

DESCRIPTION = """\
Looks at every line of one or more splits of a dataset: images that cannot be read or look rotated, characters that the
model's tokenizer cannot spell, texts that are too long for it, images that come twice, and images and texts that one
split has from another. A split is whatever `trocr-jax evaluate --data` takes: a list, a folder, lines.zip/train.

The exit status is 0, 1 if something is wrong, 2 if nothing could be checked. What is only worth knowing, such as texts
that splits share, is marked "note" and does not count.
"""
EXAMPLES = """\
examples:
  trocr-jax data check lines.zip/train lines.zip/val lines.zip/test --plot lines.png
  trocr-jax data check --model microsoft/trocr-small-printed labels.tsv
"""


def add_data(commands: Any) -> None:
    """Adds the command to a parser's."""
    data = commands.add_parser("data", help="look at a dataset", description="Looks at datasets of lines.")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="say what is wrong with a dataset",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("paths", nargs="+", metavar="PATH", help="a split: file, folder, or either inside a zip archive")
    check.add_argument(
        "--model", metavar="ID_OR_FOLDER", help="whose tokenizer and length count (default: the small embedded model)"
    )
    check.add_argument("--data-format", choices=tuple(FORMATS), help="the format (default: told by what is there)")
    check.add_argument("--plot", metavar="FILE.png", help="draw histograms of lengths and sizes (or .svg, .pdf)")
    check.add_argument("--show", type=positive, default=5, metavar="N", help="lines named for each thing (default: 5)")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    try:
        opened = {path: open_dataset(path, format=options.data_format) for path in options.paths}
        found, is_wrong = _findings(options, opened)
    except (ValueError, OSError) as error:
        print(f"trocr-jax: {error}", file=sys.stderr)
        return 2
    print("\n".join(found))
    return 1 if is_wrong else 0


def _findings(options: argparse.Namespace, opened: Mapping[str, Sequence[Example]]) -> tuple[list[str], bool]:
    """(lines to print, whether something is wrong)"""
    # Imported only now, so that --help and mistakes in the paths answer at once.
    from tqdm import tqdm

    from trocr_jax.datasets.checks import examine, find_between_splits, find_in_split
    from trocr_jax.datasets.histograms import check_name, save_histograms
    from trocr_jax.processing.tokenizer import TrOCRTokenizer

    if options.plot is not None:
        check_name(options.plot)
    folder, most_tokens = _model(options.model)
    tokenizer = TrOCRTokenizer.from_pretrained(folder)
    splits: dict[str, list[LineFacts]] = {}
    printed: list[str] = []
    findings: list[Finding] = []
    for path, examples in opened.items():
        facts = examine(examples, tokenizer)
        is_hidden = not sys.stderr.isatty()
        splits[path] = list(tqdm(facts, total=len(examples), unit="line", file=sys.stderr, disable=is_hidden))
        own = find_in_split(splits[path], most_tokens)
        printed += [f"{path}: {len(examples)} lines", *_told(own, options.show)]
        findings += own
    shared = find_between_splits(splits)
    printed += ["between them", *_told(shared, options.show)] if len(splits) > 1 else []
    if options.plot is not None:
        save_histograms(splits, most_tokens, options.plot)
    return printed, any(finding.is_wrong for finding in [*findings, *shared])


def _model(source: str | None) -> tuple[str | os.PathLike[str], int]:
    """(folder with the tokenizer's files, tokens of the longest text with its end) of a model, no weights loaded."""
    from trocr_jax.checkpoints.hub import local_folder
    from trocr_jax.config import VisionEncoderDecoderConfig, read_json
    from trocr_jax.recognizer import EMBEDDED

    folder = local_folder(EMBEDDED if source is None else source, with_weights=False)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name the folder of a model")
    config = VisionEncoderDecoderConfig.from_dict(read_json(folder / "config.json"))
    # A text's last token is no input: the start token has its place.
    return folder, config.decoder.max_position_embeddings


def _told(findings: Iterable[Finding], most: int) -> list[str]:
    told = []
    for finding in findings:
        told.append(f"  {'wrong' if finding.is_wrong else 'note'}: {finding.what}: {len(finding.lines)}")
        told += [f"    {line}" for line in finding.lines[:most]]
        if len(finding.lines) > most:
            told.append(f"    and {len(finding.lines) - most} more (--show)")
    return told or ["  nothing found"]
