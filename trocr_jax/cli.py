"""The command line: arguments in, recogniser out. Results go to stdout, all talk to stderr.

Almost nothing is imported before `main` can answer an interrupt.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from trocr_jax.commands import Uninterrupted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, 1 if an image could not be read, or 2 for anything else.

    Commands raise what is wrong with their input: here it is told in a line.
    """
    try:
        with Uninterrupted():
            parser = _parser()
        options = parser.parse_args(arguments)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # Text is Unicode whatever the locale; file names may hold bytes that are not.
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"trocr-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    import argparse

    import trocr_jax.version
    from trocr_jax.commands.calibrate import add_calibrate
    from trocr_jax.commands.checkpoints import add_checkpoints
    from trocr_jax.commands.completion import add_completion
    from trocr_jax.commands.data import add_data
    from trocr_jax.commands.demo import add_demo
    from trocr_jax.commands.doctor import add_doctor
    from trocr_jax.commands.evaluate import add_evaluate
    from trocr_jax.commands.finetune import add_finetune
    from trocr_jax.commands.read import add_read

    class Parser(argparse.ArgumentParser):
        """Takes options by their whole names only, as do its commands: a new option changes what no script means."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options, allow_abbrev=False)

        def parse_known_args(self, *given: Any, **named: Any) -> Any:
            # A command's parser tells what is unknown to it: the whole one would show the usage of no command.
            found, unknown = super().parse_known_args(*given, **named)
            if unknown:
                import difflib

                options = (option for action in self._actions for option in action.option_strings)
                near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
                meant = f"; is {near[0]} meant?" if near else ""
                self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
            return found, unknown

    parser = Parser(prog="trocr-jax", description="Reads images of text lines with TrOCR.")
    parser.add_argument("--version", action="version", version=f"trocr-jax {trocr_jax.version.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_read(commands)
    add_checkpoints(commands)
    add_evaluate(commands)
    add_data(commands)
    add_calibrate(commands)
    add_finetune(commands)
    add_doctor(commands)
    add_demo(commands)
    add_completion(commands, parser)
    return parser
