"""`trocr-jax read`: the text in images, printed or added to a file."""

from __future__ import annotations

import argparse
import functools
import itertools
import operator
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from trocr_jax.commands import Uninterrupted
from trocr_jax.printing import FORMATS, printer, report
from trocr_jax.sources import Shard, find_images, no_images, share

if TYPE_CHECKING:
    from trocr_jax.constraints import Constraint
    from trocr_jax.results import Recognition

EXAMPLES = """\
examples:
  trocr-jax read line.png                          print the text of one image
  trocr-jax read scans/ --format tsv > texts.tsv   every image below a folder
  ls *.png | trocr-jax read - --format jsonl       a list of paths on stdin
  trocr-jax read scans/ --output results.jsonl --resume
                                                   start or go on with a long run
  trocr-jax read scans/ --save-overlay seen/       and pictures with boxes around the words
  trocr-jax read --model microsoft/trocr-base-printed --num-beams 4 line.png
"""


def add_read(commands: Any) -> None:
    """Adds the command to a parser's."""
    read = commands.add_parser(
        "read",
        help="print the text in images of single lines",
        description="Prints the text in images of single text lines, in order, as soon as it is read.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    read.set_defaults(run=_read)
    read.add_argument(
        "paths", nargs="+", metavar="PATH", help="image, folder (all images below it), glob, or - for stdin"
    )
    read.add_argument("--model", metavar="ID_OR_FOLDER", help="hub id or folder (default: the small embedded model)")
    add_search(read)
    add_dtype(read)
    read.add_argument("--batch-size", type=positive, metavar="N", help="images read at a time")
    _add_results(read)
    _add_output(read)


def add_dtype(read: argparse.ArgumentParser) -> None:
    """Adds the option that chooses the precision."""
    read.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "int8"),
        help="precision (default: auto, which is float32 on CPU and bfloat16 on GPU and TPU)",
    )


def add_search(read: argparse.ArgumentParser) -> None:
    """The arguments that say how texts are searched for."""
    read.add_argument("--num-beams", type=positive, metavar="N", help="beams to search with; 1 is greedy")
    read.add_argument("--preset", choices=("fairseq",), help="decode and resize as the original TrOCR's code did")
    read.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest text, in tokens")
    read.add_argument("--allow", metavar="CHARACTERS", help="texts of these characters only, such as 0123456789")
    read.add_argument("--pattern", metavar="REGEX", help="texts that match a regular expression as a whole")
    read.add_argument("--lexicon", metavar="FILE", help="texts that are a line of this file")


def _add_results(read: argparse.ArgumentParser) -> None:
    read.add_argument(
        "--reject-below", type=_probability, metavar="P", help="no text where the model's confidence is lower, 0 to 1"
    )
    read.add_argument("--skip-blank", action="store_true", help="no text for images without ink")
    read.add_argument("--boxes", action="store_const", const="word", help="with jsonl: a box around each word")
    read.add_argument(
        "--char-boxes", action="store_const", dest="boxes", const="char", help="around each character as well"
    )
    read.add_argument("--save-overlay", metavar="DIR", help="draw the boxes: NAME.overlay.png for each image, in DIR")
    read.add_argument(
        "--format",
        choices=("text", "tsv", "jsonl"),
        help="text (the default): the text, behind its path where there are several images; tsv: path, tab, text, with "
        "\\t, \\n and \\\\ for tab, newline and backslash; jsonl: one JSON object an image, errors included",
    )


def _add_output(read: argparse.ArgumentParser) -> None:
    read.add_argument(
        "--output", metavar="FILE", help="add the results, as jsonl, to this file instead of printing them"
    )
    read.add_argument(
        "--resume",
        action="store_true",
        help="go on with an --output file that is there: images that it has a line of, errors included, are not read "
        "again, and a last line that a crash cut off is",
    )
    read.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="read every N-th image from the I-th on, 0 being the first; an --output of r.jsonl then is "
        "r-0000I-of-0000N.jsonl",
    )


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _shard(text: str) -> Shard:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, a process's index from 0 to N - 1 and their number N")
    return int(index), int(count)


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _check_output(options: argparse.Namespace) -> None:
    """Completes what depends on other options; ValueError for what would not be seen or would not be whole."""
    if options.resume and options.output is None:
        raise ValueError("--resume goes with --output FILE, the file to go on with")
    if options.output is not None and options.format not in (None, "jsonl"):
        raise ValueError(f"an --output file is jsonl, but --format is {options.format}")
    if options.save_overlay is not None and (options.resume or options.shard):
        raise ValueError("--save-overlay draws all images of a run: leave out --resume and --shard")
    options.format = options.format or ("text" if options.output is None else "jsonl")
    if options.save_overlay is not None:
        options.boxes = options.boxes or "word"
    elif options.boxes and options.format != "jsonl":
        raise ValueError("boxes are printed with --format jsonl, or drawn with --save-overlay DIR")


def constraint_of(options: argparse.Namespace) -> dict[str, Constraint]:
    """What parsed arguments say texts may be: the setting, if there is one."""
    from trocr_jax.constraints import AllowedCharacters, Lexicon, Pattern

    makers = ((AllowedCharacters, options.allow), (Pattern, options.pattern), (Lexicon.from_file, options.lexicon))
    asked: list[Constraint] = [make(value) for make, value in makers if value is not None]
    return {"constraint": functools.reduce(operator.and_, asked)} if asked else {}


def _read(options: argparse.Namespace) -> int:
    paths, count = find_images(options.paths)
    if count == 0:
        raise FileNotFoundError(no_images(options.paths))
    _check_output(options)
    if options.output is not None:
        return _read_to_file(options, paths, count)
    is_alone = options.format == "text" and count == 1
    numbered = share(paths, options.shard or (0, 1))
    results, count = _results(options, numbered if count is None else list(numbered))
    write = printer(FORMATS["plain" if is_alone else options.format])
    return report(results, count, write, _overlays(options), options.reject_below)


def _read_to_file(options: argparse.Namespace, paths: Iterable[str], count: int | None) -> int:
    from trocr_jax.journal import open_journal

    with open_journal(options.output, paths, options.shard, resume=options.resume) as journal:
        numbered = journal.pending(share(paths, options.shard or (0, 1)))
        try:
            results, count = _results(options, numbered if count is None else list(numbered))
            status = report(results, count, journal.write, _overlays(options), options.reject_below)
        except KeyboardInterrupt:
            print(f"trocr-jax: {journal.interrupted(can_resume=options.save_overlay is None)}", file=sys.stderr)
            raise
        if journal.num_errors:
            print(
                f"trocr-jax: {journal.num_errors} images could not be read in an earlier run; to try them again, "
                f"delete their lines from {journal.path}",
                file=sys.stderr,
            )
        for note in journal.notes():
            print(f"trocr-jax: {note}", file=sys.stderr)
        return 1 if journal.num_errors else status


def _results(
    options: argparse.Namespace, numbered: Iterable[tuple[int, str]]
) -> tuple[Iterable[Recognition], int | None]:
    """(what is read in images, each given behind its place in the whole input; how many images, None if not known)."""
    count = len(numbered) if isinstance(numbered, list) else None
    if count == 0:
        return [], count  # no need for a model
    with Uninterrupted():
        # Imported only now, so that --help and mistakes in the paths answer at once.
        from trocr_jax.compilation_cache import enable_compilation_cache
        from trocr_jax.recognizer import TrOCR

    enable_compilation_cache()
    ocr = TrOCR.from_pretrained(options.model, dtype=options.dtype)
    names = ("num_beams", "max_new_tokens", "preset", "reject_below", "boxes")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings |= constraint_of(options)
    first, second = itertools.tee(numbered)
    images: Iterable[str] = (path for _, path in first)
    if options.resume or options.shard:
        settings["image_numbers"] = (number for number, _ in second)
    images = images if count is None else list(images)
    return ocr.stream(images, batch_size=options.batch_size, skip_blank=options.skip_blank, **settings), count


def _overlays(options: argparse.Namespace) -> Callable[[Recognition], None] | None:
    if options.save_overlay is None:
        return None
    from trocr_jax.overlays import Overlays

    return Overlays(options.save_overlay).save
