"""`trocr-jax evaluate`: reads lines with known texts and says how well."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from trocr_jax.commands import Uninterrupted
from trocr_jax.commands.read import add_dtype, add_search, constraint_of, positive
from trocr_jax.datasets import FORMATS, Example, formats, open_dataset
from trocr_jax.replacing import check_folder_of

if TYPE_CHECKING:
    from trocr_jax.evaluation.report import Report, Score

DESCRIPTION = f"""\
Reads lines whose texts are known and prints error rates with their 95 % intervals.

{formats.DESCRIPTION}"""
EXAMPLES = """\
examples:
  trocr-jax evaluate --data lines.zip/test --html worst.html
  trocr-jax evaluate --model microsoft/trocr-base-handwritten --data IAM/gt_test.txt --protocol iam --preset fairseq
  trocr-jax evaluate --data lines.zip/test --train lines.zip/train --ignore-case --output report.json
"""
LABELS = {
    "cer": "CER",
    "wer": "WER",
    "line_accuracy": "lines right",
    "word_precision": "word precision",
    "word_recall": "word recall",
    "word_f1": "word F1",
    "word_accuracy": "word accuracy",
}


def add_evaluate(commands: Any) -> None:
    """Adds the command to a parser's."""
    parser = commands.add_parser(
        "evaluate",
        help="read lines with known texts and print error rates",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_evaluate)
    parser.add_argument("--data", required=True, metavar="DATA", help="lines to read, with their texts")
    parser.add_argument("--model", metavar="ID_OR_FOLDER", help="hub id or folder (default: the small embedded model)")
    parser.add_argument("--data-format", choices=tuple(FORMATS), help="DATA's format (default: told by what is there)")
    parser.add_argument(
        "--protocol",
        choices=("iam", "sroie", "str"),
        help="as published: iam, the CER of texts as they are; sroie, precision, recall and F1 of words too; str, the "
        "accuracy of words too, letters and digits alone and case ignored",
    )
    parser.add_argument(
        "--train", action="append", metavar="DATA", help="training lines: report lines apart whose text is none of them"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="read the first N lines only")
    _add_comparison(parser)
    parser.add_argument("--output", metavar="FILE", help="write everything, each line's text included, as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with the worst lines, their pictures in it")
    parser.add_argument("--worst", type=positive, default=50, metavar="N", help="lines on that page (default: 50)")
    add_search(parser)
    add_dtype(parser)
    parser.add_argument("--batch-size", type=positive, metavar="N", help="images read at a time")


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("comparison", "what is done to both texts before they are compared")
    group.add_argument("--ignore-case", action="store_true", help="compare in lower case")
    group.add_argument("--nfc", action="store_true", help="bring letters and their accents to one form, Unicode's NFC")
    group.add_argument(
        "--clean-up",
        action="store_true",
        help="no spaces before punctuation marks, as transformers decoded until 4.45; CERs published with it need this",
    )


def _evaluate(options: argparse.Namespace) -> int:
    examples = open_dataset(options.data, format=options.data_format)[: options.limit]
    train = [example.text for path in options.train or () for example in open_dataset(path, format=options.data_format)]
    for path in (options.output, options.html):
        if path is not None:
            check_folder_of(path)
    report = _report(options, examples, train if options.train else None)
    print("\n".join(to_lines(report, options.data)))
    if options.output is not None:
        from trocr_jax.config import write_json

        write_json(options.output, report.to_dict())
    if options.html is not None:
        from trocr_jax.evaluation.html import write_html

        write_html(report, options.html, worst=options.worst)
    for _, reason in report.unreadable:
        print(f"trocr-jax: {reason}", file=sys.stderr)
    return 1 if report.unreadable else 0


def _report(options: argparse.Namespace, examples: Sequence[Example], train: Sequence[str] | None) -> Report:
    with Uninterrupted():
        # Imported only now, so that --help and mistakes in the paths answer at once.
        from tqdm import tqdm

        from trocr_jax.compilation_cache import enable_compilation_cache
        from trocr_jax.evaluation import Normalization, evaluate
        from trocr_jax.recognizer import TrOCR

    enable_compilation_cache()
    ocr = TrOCR.from_pretrained(options.model, dtype=options.dtype)
    names = ("num_beams", "max_new_tokens", "preset")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings |= constraint_of(options)
    watched: Iterable[Example] = tqdm(examples, unit="line", file=sys.stderr, disable=not sys.stderr.isatty())
    return evaluate(
        ocr,
        watched,
        protocol=options.protocol,
        train_texts=train,
        normalization=Normalization(compose=options.nfc, clean_up=options.clean_up, ignore_case=options.ignore_case),
        batch_size=options.batch_size,
        **settings,
    )


def to_lines(report: Report, data: str) -> Iterable[str]:
    """The report as a small table, line by line."""
    yield f"{report.model or 'model'} on {data}; {report.normalization}"
    columns = {"all": report.all} | ({} if report.unseen is None else {"unseen": report.unseen})
    yield f"{'':16}" + "".join(f"{f'{name}, {score.lines} lines':28}" for name, score in columns.items()).rstrip()
    for metric in report.all.rates:
        cells = (f"{_rate(score, metric):28}" for score in columns.values())
        yield f"{LABELS[metric]:16}{''.join(cells)}".rstrip()
    if report.unreadable:
        yield f"{len(report.unreadable)} images could not be read and count nowhere"


def _rate(score: Score, metric: str) -> str:
    rate = score.rates.get(metric)
    return "" if rate is None else f"{100 * rate.value:.2f} % [{100 * rate.low:.2f}, {100 * rate.high:.2f}]"
