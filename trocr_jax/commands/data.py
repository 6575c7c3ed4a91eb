"""`trocr-jax data`: what is wrong with a dataset, what augmentations make of it, and one of synthetic lines."""

from __future__ import annotations

import argparse
import collections
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trocr_jax.commands.read import positive
from trocr_jax.datasets import FORMATS, Example, open_dataset
from trocr_jax.datasets.augmentation import AUGMENTATIONS, contact_sheet, keep, save_image
from trocr_jax.replacing import check_folder_of

if TYPE_CHECKING:
    from trocr_jax.datasets.checks import Finding, LineFacts
    from trocr_jax.processing.tokenizer import TrOCRTokenizer

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
    data = commands.add_parser(
        "data", help="check, show or make a dataset", description="Checks, shows or makes lines."
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")
    _add_check(actions)
    _add_show(actions)
    _add_synthesize(actions)


def _add_check(actions: Any) -> None:
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


def _add_show(actions: Any) -> None:
    show = actions.add_parser(
        "show",
        help="draw some lines as augmentations change them",
        description="Draws a contact sheet: some of a dataset's lines, a row for each kind of change.",
    )
    show.add_argument("path", metavar="PATH", help="the dataset, as for `trocr-jax data check`")
    show.add_argument("--data-format", choices=tuple(FORMATS), help="the format (default: told by what is there)")
    show.add_argument("--output", required=True, metavar="FILE.png", help="the picture to write")
    show.add_argument(
        "--augmentation", choices=tuple(AUGMENTATIONS), default="da2", help="whose kinds to show (default: da2)"
    )
    show.add_argument("--lines", type=positive, default=5, metavar="N", help="how many lines (default: 5)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="what is drawn (default: 0)")
    show.set_defaults(run=_show)


def _add_synthesize(actions: Any) -> None:
    make = actions.add_parser(
        "synthesize",
        help="make lines from text files and fonts",
        description="Draws lines with the words of text files, now and then in capitals or a number, a date or an "
        "amount instead, in fonts that have all of a line's characters, and writes them as a zip archive that `--data` "
        "and `--train` take. The same arguments make the same lines.",
    )
    make.add_argument("texts", nargs="+", metavar="TEXT", help="text files, UTF-8")
    make.add_argument("--output", required=True, metavar="FILE.zip", help="the archive to write")
    make.add_argument("--lines", type=positive, required=True, metavar="N", help="how many lines")
    make.add_argument("--fonts", nargs="+", metavar="PATH", help="fonts or folders of them (default: the system's)")
    make.add_argument(
        "--backgrounds", nargs="+", default=(), metavar="IMAGE", help="images of paper to draw on as well"
    )
    make.add_argument("--max-characters", type=positive, default=60, metavar="N", help="longest text (default: 60)")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="what is drawn (default: 0)")
    make.set_defaults(run=_synthesize)


def _show(options: argparse.Namespace) -> int:
    images = [example.open() for example in open_dataset(options.path, format=options.data_format)[: options.lines]]
    kinds = {"(as it is)": keep, **AUGMENTATIONS[options.augmentation]}
    rows = {
        name: [kind(image, np.random.default_rng([options.seed, i])) for i, image in enumerate(images)]
        for name, kind in kinds.items()
    }
    save_image(contact_sheet(rows), options.output)
    return 0


def _synthesize(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from trocr_jax.datasets.synthetic import check_archive_name, synthetic_lines, write_archive

    check_archive_name(options.output)
    if os.path.exists(options.output):
        raise FileExistsError(f"{options.output} is there already: name another archive, or move it away")
    chosen = {} if options.fonts is None else {"fonts": options.fonts}
    lines = synthetic_lines(
        options.texts,
        num_lines=options.lines,
        backgrounds=options.backgrounds,
        seed=options.seed,
        most_characters=options.max_characters,
        **chosen,
    )
    watched = tqdm(lines, total=len(lines), unit="line", file=sys.stderr, disable=not sys.stderr.isatty())
    write_archive(watched, options.output)
    print(f"{options.output}: {len(lines)} lines, each in one of {len(lines.faces)} fonts")
    return 0


def _check(options: argparse.Namespace) -> int:
    if twice := [path for path, count in collections.Counter(options.paths).items() if count > 1]:
        raise ValueError(f"{twice[0]} is named twice: all of its lines would be shared with itself")
    opened = {path: open_dataset(path, format=options.data_format) for path in options.paths}
    found, is_wrong = _findings(options, opened)
    print("\n".join(found))
    return 1 if is_wrong else 0


def _findings(options: argparse.Namespace, opened: Mapping[str, Sequence[Example]]) -> tuple[list[str], bool]:
    """(lines to print, whether something is wrong)"""
    # Imported only now, so that --help and mistakes in the paths answer at once.
    from tqdm import tqdm

    from trocr_jax.datasets.checks import examine, find_between_splits, find_in_split
    from trocr_jax.datasets.histograms import check_name, save_histograms

    if options.plot is not None:
        check_name(options.plot)
        check_folder_of(options.plot)
    tokenizer, most_tokens, num_special = _model(options.model)
    splits: dict[str, list[LineFacts]] = {}
    printed: list[str] = []
    findings: list[Finding] = []
    for path, examples in opened.items():
        facts = examine(examples, tokenizer, num_special=num_special)
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


def _model(source: str | None) -> tuple[TrOCRTokenizer, int, int]:
    """(tokenizer, tokens of the longest text with special ones, how many these are) of a model, no weights loaded."""
    from trocr_jax.checkpoints.hub import local_folder
    from trocr_jax.config import VisionEncoderDecoderConfig, read_json
    from trocr_jax.generation_config import GenerationConfig
    from trocr_jax.processing.tokenizer import TrOCRTokenizer
    from trocr_jax.recognizer import EMBEDDED
    from trocr_jax.training.labels import detect_label_format

    folder = local_folder(EMBEDDED if source is None else source, with_weights=False)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name the folder of a model")
    config = VisionEncoderDecoderConfig.from_dict(read_json(folder / "config.json"))
    tokenizer = TrOCRTokenizer.from_pretrained(folder)
    # As it will be trained: with the end's token, and in the format "hf" one in front of the text as well.
    try:
        label_format = detect_label_format(GenerationConfig.from_pretrained(folder), tokenizer)
    except ValueError:  # not every folder with a tokenizer says how a text starts
        label_format = "fairseq"
    num_special = 2 if label_format == "hf" else 1
    # A text's last token is no input: the start token has its place.
    return tokenizer, config.decoder.max_position_embeddings, num_special


def _told(findings: Iterable[Finding], most: int) -> list[str]:
    told = []
    for finding in findings:
        told.append(f"  {'wrong' if finding.is_wrong else 'note'}: {finding.what}: {len(finding.lines)}")
        told += [f"    {line}" for line in finding.lines[:most]]
        if len(finding.lines) > most:
            told.append(f"    and {len(finding.lines) - most} more (--show)")
    return told or ["  nothing found"]
