"""`python -m convert {to-flax,to-torch,inspect,verify}`: checkpoints in other formats, and proof that they are right.

All but `verify` are also `trocr-jax convert` and `trocr-jax inspect`; `verify` needs torch and transformers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trocr_jax.commands import checkpoints


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; the exit status is 0, 1 if something differs or is refused, or 2 if it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, target in (("to-flax", "flax"), ("to-torch", "torch")):
        command = commands.add_parser(
            name, help=f"write a folder for {'this library' if target == 'flax' else 'torch'}"
        )
        checkpoints.add_convert_arguments(command)
        command.set_defaults(run=checkpoints.run_convert, to=target)
    inspect = commands.add_parser("inspect", help="say what a checkpoint is")
    checkpoints.add_inspect_arguments(inspect)
    verify = commands.add_parser("verify", help="compare with transformers, block by block")
    verify.add_argument("source", metavar="SOURCE", help="folder, hub id, or a weights file")
    verify.add_argument("images", nargs="*", metavar="IMAGE", help="images to read; without any, random pixels")
    verify.add_argument("--tokenizer", metavar="PATH", help="of a fairseq file: its tokenizer's folder or model")
    verify.set_defaults(run=_verify)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _verify(options: argparse.Namespace) -> int:
    try:
        from convert.verify import verify

        report = verify(options.source, options.images, tokenizer=options.tokenizer)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise ImportError(f'{error}; verify compares with torch: pip install -e ".[convert]"') from error
    print(report)
    return 0 if report.is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
