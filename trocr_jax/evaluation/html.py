"""A report as one HTML page: the rates, and the worst lines with their pictures and the differences marked."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator, Sequence

from rapidfuzz.distance import Levenshtein

from trocr_jax.evaluation.normalization import Normalization
from trocr_jax.evaluation.report import Compared, Report, Score
from trocr_jax.processing.image import ImageError
from trocr_jax.replacing import replacing

# Pixels that a picture is made to fit.
PICTURE_SIZE = (900, 120)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums }
article { border-top: 1px solid #bbb; padding: .8rem 0 }
article img { max-width: 100%; display: block; border: 1px solid #ddd; margin: .3rem 0 }
.text { font: 15px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.text b { display: inline-block; width: 4rem; font: 13px system-ui, sans-serif; color: #666 }
del { background: #ffd2d2; text-decoration: none } ins { background: #c9ecc9; text-decoration: none }
.name { color: #666; font-size: 13px; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } del { background: #722 } ins { background: #264 }
  th, td, article, article img { border-color: #444 } article img { background: #fff }
}
"""
LEGEND = (
    "<p><del>Marked so</del> is what was not read, <ins>so</ins> what was read in error; texts are shown as they were "
    "compared.</p>"
)
NAMES = {
    "cer": "character error rate",
    "wer": "word error rate",
    "line_accuracy": "lines without error",
    "word_precision": "precision of words",
    "word_recall": "recall of words",
    "word_f1": "F1 of words",
    "word_accuracy": "words right (letters and digits, case ignored)",
}


def write_html(report: Report, path: str | os.PathLike[str], *, worst: int = 50) -> None:
    """Writes the page, with that many of the worst lines, to a temporary name first."""
    with replacing(path) as partial:
        # Half of a surrogate pair, which a label may hold, is no UTF-8.
        partial.write_bytes(to_html(report, worst=worst).encode("utf-8", "replace"))


def to_html(report: Report, *, worst: int = 50) -> str:
    """The page: it needs no other file and runs no script. Images are opened again for it."""
    title = f"{report.model or 'TrOCR'}: {report.all.lines} lines"
    lines = report.worst(worst)
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>',
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_setup(report))}</p>",
        _rates(report),
        "<h2>By length of the text, in characters</h2>",
        _by_length(report),
        *_confusions(report),
        *_unreadable(report),
        f"<h2>The {len(lines)} worst lines</h2>" if lines else "<h2>No line has an error</h2>",
        LEGEND if lines else "",
        *(_line(line, report.normalization) for line in lines),
        "</html>",
    ]
    return "\n".join(part for part in parts if part)


def _setup(report: Report) -> str:
    options = ", ".join(f"{name}={value}" for name, value in report.options.items()) or "the model's own settings"
    return f"Read with {options}. Compared: {report.normalization}."


def _rates(report: Report) -> str:
    scores = {"all": report.all, **({} if report.unseen is None else {"unseen texts": report.unseen})}
    header = ["", *(f"{name} ({score.lines} lines)" for name, score in scores.items())]
    return _table(header, ([NAMES[m], *(_rate(s, m) for s in scores.values())] for m in report.all.rates))


def _rate(score: Score, metric: str) -> str:
    rate = score.rates.get(metric)
    return "" if rate is None else f"{rate.value:.2%} [{rate.low:.2%}, {rate.high:.2%}]"


def _by_length(report: Report) -> str:
    rows = ([name, str(s.lines), _rate(s, "cer"), _rate(s, "wer")] for name, s in report.by_length.items())
    return _table(["characters", "lines", NAMES["cer"], NAMES["wer"]], rows)


def _confusions(report: Report) -> list[str]:
    if not report.confusions:
        return []
    rows = ([_visible(stands), _visible(read), str(count)] for stands, read, count in report.confusions[:20])
    return ["<h2>What is mistaken for what</h2>", _table(["stands there", "was read", "times"], rows)]


def _visible(character: str) -> str:
    return {"": "(nothing)", " ": "(space)"}.get(character, character)


def _table(header: Sequence[str], rows: Iterator[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}\n{body}</table>"


def _unreadable(report: Report) -> list[str]:
    if not report.unreadable:
        return []
    errors = "\n".join(f"<li>{html.escape(error)}" for _, error in report.unreadable)
    return [f"<h2>Images that could not be read and count nowhere: {len(report.unreadable)}</h2>", f"<ul>{errors}</ul>"]


def _line(line: Compared, normalization: Normalization) -> str:
    stands, read = mark(normalization(line.example.text), normalization(line.text))
    confidence = "" if line.confidence is None else f", confidence {line.confidence:.2g}"
    cut = ", cut off at the length limit" if line.is_truncated else ""
    return (
        f"<article>{_picture(line)}\n"
        f'<div class="text"><b>text</b>{stands}</div>\n<div class="text"><b>read</b>{read}</div>\n'
        f'<div class="name">{html.escape(line.example.name)}: {line.edits} edits{confidence}{cut}</div></article>'
    )


def mark(reference: str, text: str) -> tuple[str, str]:
    """(reference, text) as HTML: what was not read in <del>, what was read in error in <ins>, all else escaped."""
    stands, read = [], []
    for step in Levenshtein.opcodes(reference, text):
        left = html.escape(reference[step.src_start : step.src_end])
        right = html.escape(text[step.dest_start : step.dest_end])
        is_equal = step.tag == "equal"
        stands.append(left if is_equal or not left else f"<del>{left}</del>")
        read.append(right if is_equal or not right else f"<ins>{right}</ins>")
    return "".join(stands), "".join(read)


def _picture(line: Compared) -> str:
    try:
        image = line.example.open().copy()  # it is made smaller below
    except ImageError as error:  # it was there when it was read
        return f"<p>{html.escape(str(error))}</p>"
    image.thumbnail(PICTURE_SIZE)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    code = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{code}">'
