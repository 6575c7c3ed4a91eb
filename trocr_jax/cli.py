"""The command line: arguments in, recogniser out. Results go to stdout, all talk to stderr."""

from __future__ import annotations

import argparse
import functools
import glob
import json
import operator
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import trocr_jax.version
from trocr_jax.commands.calibrate import add_calibrate

if TYPE_CHECKING:
    from trocr_jax.constraints import Constraint
    from trocr_jax.results import Recognition

IMAGE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)

EXAMPLES = """\
examples:
  trocr-jax read line.png                          print the text of one image
  trocr-jax read scans/ --format tsv > texts.tsv   every image below a folder
  ls *.png | trocr-jax read - --format jsonl       a list of paths on stdin
  trocr-jax read scans/ --save-overlay seen/       and pictures with boxes around the words
  trocr-jax read --model microsoft/trocr-base-printed --num-beams 4 line.png
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, 1 if an image could not be read, or 2 for anything else."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Text is Unicode whatever the locale; file names may hold bytes that are not.
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trocr-jax", description="Reads images of text lines with TrOCR.")
    parser.add_argument("--version", action="version", version=f"trocr-jax {trocr_jax.version.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    read.add_argument("--num-beams", type=_positive, metavar="N", help="beams to search with; 1 is greedy")
    read.add_argument("--preset", choices=("fairseq",), help="decode and resize as the original TrOCR's code did")
    read.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest text, in tokens")
    read.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="precision (default: auto, which is float32 on CPU and bfloat16 on GPU and TPU)",
    )
    read.add_argument(
        "--reject-below", type=_probability, metavar="P", help="no text where the model's confidence is lower, 0 to 1"
    )
    read.add_argument("--skip-blank", action="store_true", help="no text for images without ink")
    read.add_argument("--boxes", action="store_const", const="word", help="with jsonl: a box around each word")
    read.add_argument(
        "--char-boxes", action="store_const", dest="boxes", const="char", help="around each character as well"
    )
    read.add_argument("--save-overlay", metavar="DIR", help="draw the boxes: NAME.overlay.png for each image, in DIR")
    read.add_argument("--allow", metavar="CHARACTERS", help="texts of these characters only, such as 0123456789")
    read.add_argument("--pattern", metavar="REGEX", help="texts that match a regular expression as a whole")
    read.add_argument("--lexicon", metavar="FILE", help="texts that are a line of this file")
    read.add_argument("--batch-size", type=_positive, metavar="N", help="images read at a time")
    read.add_argument(
        "--format",
        default="text",
        choices=("text", "tsv", "jsonl"),
        help="text: the text, behind its path where there are several images; tsv: path, tab, text, with \\t, \\n "
        "and \\\\ for tab, newline and backslash; jsonl: one JSON object an image, errors included",
    )
    _add_conversion(commands)
    add_calibrate(commands)
    return parser


def _add_conversion(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint in another format",
        description="Writes a checkpoint as a folder for this library or for transformers. Nothing in it is executed.",
    )
    convert.add_argument("--to", default="flax", choices=("flax", "torch"), help="this library or transformers")
    add_convert_arguments(convert)
    convert.set_defaults(run=run_convert)
    inspect = commands.add_parser(
        "inspect", help="say what a checkpoint is", description="Says what a checkpoint is, also one that is refused."
    )
    add_inspect_arguments(inspect)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a conversion, but its direction."""
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id, or a weights file")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as stored")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="of a fairseq file: the folder with encoder.json, vocab.bpe and dict.txt, or the SentencePiece model",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="of a fairseq file: what it does not say itself, as its errors ask for",
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="split larger weights (default: 5GB)")
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a look at a checkpoint, and what to run with them."""
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id, or a weights file")
    parser.set_defaults(run=_inspect)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _setting(text: str) -> tuple[str, Any]:
    name, is_given, value = text.partition("=")
    if not name or not is_given:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _boxes(options: argparse.Namespace) -> str | None:
    """What to draw boxes around, "word" or "char"; ValueError for boxes that nobody would see."""
    if options.save_overlay is not None:
        return options.boxes or "word"
    if options.boxes and options.format != "jsonl":
        raise ValueError("boxes are printed with --format jsonl, or drawn with --save-overlay DIR")
    return options.boxes


def _constraint(options: argparse.Namespace) -> dict[str, Constraint]:
    """The setting, if there is one."""
    from trocr_jax.constraints import AllowedCharacters, Lexicon, Pattern

    makers = ((AllowedCharacters, options.allow), (Pattern, options.pattern), (Lexicon.from_file, options.lexicon))
    asked: list[Constraint] = [make(value) for make, value in makers if value is not None]
    return {"constraint": functools.reduce(operator.and_, asked)} if asked else {}


def _read(options: argparse.Namespace) -> int:
    try:
        paths, count = find_images(options.paths)
        if count == 0:
            raise FileNotFoundError(f"no images in {', '.join(options.paths)}")
        boxes = _boxes(options)
        # Imported only now, so that --help and mistakes in the paths answer at once.
        from trocr_jax.compilation_cache import enable_compilation_cache
        from trocr_jax.overlays import Overlays
        from trocr_jax.recognizer import TrOCR

        save = None if options.save_overlay is None else Overlays(options.save_overlay).save
        enable_compilation_cache()
        ocr = TrOCR.from_pretrained(options.model, dtype=options.dtype)
        names = ("num_beams", "max_new_tokens", "preset", "reject_below")
        settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        settings |= {} if boxes is None else {"boxes": boxes}
        settings |= _constraint(options)
        results = ocr.stream(paths, batch_size=options.batch_size, skip_blank=options.skip_blank, **settings)
        to_line = FORMATS["plain" if options.format == "text" and count == 1 else options.format]
        return _print(results, count, to_line, save)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"trocr-jax: {error}", file=sys.stderr)
        return 2


def run_convert(options: argparse.Namespace) -> int:
    """Converts as the parsed arguments say; the exit status is 0, or 2 with the reason on stderr."""
    from trocr_jax.checkpoints.conversion import convert

    try:
        checkpoint = convert(
            options.source,
            options.output,
            to=options.to,
            dtype=options.dtype,
            tokenizer=options.tokenizer,
            overrides=dict(options.set),
            max_shard_size=options.max_shard_size,
            dry_run=options.dry_run,
            show_progress=True,
        )
    except (ValueError, OSError) as error:
        print(f"trocr-jax: {error}", file=sys.stderr)
        return 2
    done = "fits; nothing was written" if options.dry_run else f"written to {options.output}"
    print(f"{checkpoint.path}: {checkpoint.kind}, {done}")
    if checkpoint.kind == "fairseq" and options.tokenizer is None:
        print("trocr-jax: no tokenizer was written: pass --tokenizer to be able to read text", file=sys.stderr)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from trocr_jax.checkpoints.inspection import inspect

    try:
        found = inspect(options.source)
    except (ValueError, OSError) as error:
        print(f"trocr-jax: {error}", file=sys.stderr)
        return 2
    print(found)
    return 0 if found.problem is None else 1


def find_images(arguments: Iterable[str]) -> tuple[Iterable[str], int | None]:
    """(paths of images, how many). A path that is not there is kept, to be reported in its place.

    The number is None where paths come from stdin: those are taken one by one, as they arrive.
    """
    arguments = list(arguments)
    if "-" in arguments:
        return _from_stdin(arguments), None
    paths = [path for argument in arguments for path in _expand(argument)]
    return paths, len(paths)


def _from_stdin(arguments: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        lines = (line.rstrip("\r\n") for line in sys.stdin) if argument == "-" else (argument,)
        for line in lines:
            if line:
                yield from _expand(line)


def _expand(argument: str) -> list[str]:
    # os.path answers False where pathlib raises, as for a name that is too long: that image is reported like any other.
    if os.path.isdir(argument):
        found = pathlib.Path(argument).rglob("*")
        return sorted(str(p) for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not os.path.exists(argument) and glob.has_magic(argument):
        return sorted(found for found in glob.glob(argument, recursive=True) if os.path.isfile(found))
    return [argument]


def _escape(field: str) -> str:
    return field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


FORMATS: dict[str, Callable[[Recognition], str | None]] = {
    "plain": lambda result: None if result.error else result.text,
    "text": lambda result: None if result.error else f"{result.source}: {result.text}",
    "tsv": lambda result: None if result.error else f"{_escape(result.source or '')}\t{_escape(result.text)}",
    "jsonl": lambda result: json.dumps(result.to_dict(), ensure_ascii=False),
}


def _print(
    results: Iterable[Recognition],
    count: int | None,
    to_line: Callable[[Recognition], str | None],
    save: Callable[[Recognition], None] | None,
) -> int:
    from tqdm import tqdm

    status = 0
    # A bar only where somebody watches, and not for one image.
    progress = tqdm(total=count, unit="line", file=sys.stderr, disable=count == 1 or not sys.stderr.isatty())
    with progress:
        for result in results:
            if result.error is not None:
                status = 1
                tqdm.write(f"trocr-jax: {result.error}", file=sys.stderr)
            line = to_line(result)
            if line is not None:
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            try:
                if save is not None:
                    save(result)
            except (ValueError, OSError) as error:
                status = 1
                tqdm.write(f"trocr-jax: {result.source} cannot be drawn: {error}", file=sys.stderr)
            progress.update()
    return status
