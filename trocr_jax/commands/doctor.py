"""`trocr-jax doctor`: what this machine is like for reading text lines, and what to do about it."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from trocr_jax.commands.read import add_dtype

if TYPE_CHECKING:
    from trocr_jax.findings import Finding

DESCRIPTION = """\
Looks at versions, devices, precision, the folder of compiled programs, memory, this machine's arithmetic (the embedded
model's logits against stored ones), the time a line takes, and whether the hub can be reached. The exit status is 1 if
something is broken.
"""
WIDTH = 120


def add_doctor(commands: Any) -> None:
    """Adds the command to a parser's."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine and say what to do",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", metavar="ID_OR_FOLDER", help="load it, too, and compare an official one with its published logits"
    )
    add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    # Imported only now, so that --help answers at once.
    from trocr_jax.doctor import diagnose

    findings = []
    for finding in diagnose(options.model, dtype=options.dtype):
        findings.append(finding)
        if not options.json:
            print("\n".join(to_lines(finding)), flush=True)
    is_broken = any(finding.status == "broken" for finding in findings)
    if options.json:
        content = {"schema": 1, "is_broken": is_broken, "findings": [finding.to_dict() for finding in findings]}
        json.dump(content, sys.stdout, ensure_ascii=False, indent=2)
        print()
    return 1 if is_broken else 0


def to_lines(finding: Finding) -> list[str]:
    """A finding for people: how it is, and below, behind an arrow, what to do."""
    indent = " " * 24
    lines = textwrap.wrap(
        f"{finding.status:8}{finding.name:16}{' '.join(finding.text.split())}",
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if finding.advice:
        lines += textwrap.wrap(
            finding.advice, WIDTH, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return lines
