"""`trocr-jax completion`: what a shell needs to complete commands, options and paths."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

EXAMPLES = """\
examples:
  eval "$(trocr-jax completion bash)"                       in ~/.bashrc
  trocr-jax completion zsh > ~/.zfunc/_trocr-jax            in a folder of $fpath
"""
# Of arguments whose values are paths.
_PATHS = ("PATH", "FILE", "FOLDER", "DIR", "DATA", "LINES", "SOURCE", "OUTPUT", "TEXT", "IMAGE")


def add_completion(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Adds the command to a parser's; `parser` is what it completes."""
    completion = commands.add_parser(
        "completion",
        help="print a script that lets a shell complete",
        description="Prints a script by which a shell completes commands, options and paths (needs the package shtab).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh"), help="whose script")
    completion.set_defaults(run=functools.partial(_completion, parser))


def _completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise ValueError('completion needs the package shtab: pip install "trocr-jax[completion]"') from error
    for action in _actions(parser):
        if isinstance(action.metavar, str) and any(name in action.metavar for name in _PATHS):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                yield from _actions(command)
