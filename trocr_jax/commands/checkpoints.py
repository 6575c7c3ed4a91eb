"""`trocr-jax convert` and `trocr-jax inspect`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from trocr_jax.commands import Uninterrupted


def add_checkpoints(commands: Any) -> None:
    """Adds the commands to a parser's."""
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
    parser.add_argument("--overwrite", action="store_true", help="replace a model of the same format that is in OUTPUT")
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a look at a checkpoint, and what to run with them."""
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id, or a weights file")
    parser.set_defaults(run=_inspect)


def _setting(text: str) -> tuple[str, Any]:
    name, is_given, value = text.partition("=")
    if not name or not is_given:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word


def run_convert(options: argparse.Namespace) -> int:
    """Converts as the parsed arguments say, and returns the exit status."""
    with Uninterrupted():
        from trocr_jax.checkpoints.conversion import convert

    if not options.overwrite:
        _check_no_model(options.output, options.to)
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
    done = "fits; nothing was written" if options.dry_run else f"written to {options.output}"
    print(f"{checkpoint.path}: {checkpoint.kind}, {done}")
    if checkpoint.kind == "fairseq" and options.tokenizer is None:
        print("trocr-jax: no tokenizer was written: pass --tokenizer to be able to read text", file=sys.stderr)
    return 0


def _check_no_model(output: str, to: str) -> None:
    """Raises FileExistsError where a folder holds a model, of this library or of transformers, or a part of one."""
    from trocr_jax.checkpoints.folder import check_output
    from trocr_jax.checkpoints.hub import NATIVE_NAMES, TORCH_NAMES
    from trocr_jax.config import CONFIG_NAME

    folder = check_output(output)
    replaced, others = (NATIVE_NAMES, TORCH_NAMES) if to == "flax" else (TORCH_NAMES, NATIVE_NAMES)
    found = [name for name in (*replaced, *others, CONFIG_NAME) if (folder / name).is_file()]
    if found:
        # One of the other format is never replaced: see `convert`.
        advice = "" if any(name in others for name in found) else ", or pass --overwrite to replace it"
        raise FileExistsError(f"{output} holds a model ({', '.join(found)}): name another folder{advice}")


def _inspect(options: argparse.Namespace) -> int:
    with Uninterrupted():
        from trocr_jax.checkpoints.inspection import inspect

    found = inspect(options.source)
    print(found)
    return 0 if found.problem is None else 1
