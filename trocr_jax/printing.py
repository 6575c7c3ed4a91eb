"""Results on their way out: the formats of lines, the progress bar, and what is said on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trocr_jax.results import Recognition


_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _escape(field: str) -> str:
    return field.translate({ord(character): escape for character, escape in _ESCAPES.items()})


def to_json_line(result: Recognition) -> str:
    """The result as JSON in one line, a path that is not Unicode by JSON's escapes."""
    content = result.to_dict()
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(content)
    return line


FORMATS: dict[str, Callable[[Recognition], str | None]] = {
    "plain": lambda result: None if result.error else result.text,
    "text": lambda result: None if result.error else f"{result.source}: {result.text}",
    "tsv": lambda result: None if result.error else f"{_escape(result.source or '')}\t{_escape(result.text)}",
    "jsonl": to_json_line,
}


def printer(to_line: Callable[[Recognition], str | None]) -> Callable[[Recognition], None]:
    """What prints a result's line to stdout at once, if it has one."""
    from tqdm import tqdm

    def write(result: Recognition) -> None:
        line = to_line(result)
        if line is not None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    return write


def report(
    results: Iterable[Recognition],
    count: int | None,
    write: Callable[[Recognition], None],
    save: Callable[[Recognition], None] | None,
    reject_below: float | None,
) -> int:
    """Writes every result as it comes, and how many were cut off or rejected; the status is 1 if there was an error."""
    from tqdm import tqdm

    status = num_cut = num_rejected = num_lines = 0
    # A bar only where somebody watches, and not for one image.
    progress = tqdm(total=count, unit="line", file=sys.stderr, disable=count == 1 or not sys.stderr.isatty())
    with progress:
        for result in results:
            if result.error is not None:
                status = 1
                tqdm.write(f"trocr-jax: {result.error}", file=sys.stderr)
            num_lines += 1
            num_cut += result.is_truncated
            num_rejected += result.finish_reason == "rejected"
            write(result)
            try:
                if save is not None:
                    save(result)
            except (ValueError, OSError) as error:
                status = 1
                tqdm.write(f"trocr-jax: {result.source} cannot be drawn: {error}", file=sys.stderr)
            progress.update()
    if num_cut:
        print(f"trocr-jax: texts cut off at the length limit (--max-new-tokens): {num_cut}", file=sys.stderr)
    if num_rejected:
        told = f"lines of a confidence below {reject_below:g} (--reject-below), whose text comes back empty"
        print(f"trocr-jax: {told}: {num_rejected} of {num_lines}", file=sys.stderr)
    return status
