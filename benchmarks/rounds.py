"""Contenders at one workload, asked in turn."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders.process import ContenderError

TIMES = ("seconds", "processor_seconds")


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds to wait for any answer, and those of a contender's first round behind which it takes part in no other."""

    limit: float = 600.0
    slow: float = 60.0


def measure(
    processes: Mapping[str, Any], request: Mapping[str, Any], runs: int, patience: Patience
) -> dict[str, dict[str, Any]]:
    """By contender: its first run's seconds and what it found, wall and processor seconds of each of `runs` rounds.

    A round asks every contender once, in order. A contender that fails has the reason as "error" and nothing else.
    """
    results: dict[str, dict[str, Any]] = {name: {kind: [] for kind in TIMES} for name in processes}
    for number in range(runs + 1):
        for name, process in processes.items():
            result = results[name]
            if "error" in result or (number > 1 and result["seconds"][0] > patience.slow):
                continue
            note(f"{name}, {'first run' if number == 0 else f'round {number} of {runs}'}")
            try:
                reply = process.ask(patience.limit, **request)
            except ContenderError as error:
                results[name] = {"error": str(error)}
                continue
            if number == 0:
                result["first_seconds"] = reply["seconds"]
                result |= {kind: value for kind, value in reply.items() if kind not in TIMES}
            else:
                for kind in TIMES:
                    result[kind].append(reply[kind])
    note("")
    return results


def note(text: str) -> None:
    """Shows what is being done, on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def share_equal(ids: list[list[int]], reference: list[list[int]]) -> float:
    """The share of rows that are equal."""
    return sum(a == b for a, b in zip(ids, reference, strict=True)) / len(reference)
