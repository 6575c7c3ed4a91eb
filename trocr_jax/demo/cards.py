"""Lines that were read, as HTML: everything is in it, pictures and the JSON too, so that no file is left anywhere."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence

from PIL import Image

from trocr_jax.demo.lines import Line
from trocr_jax.results import Recognition, Word

EMPTY = '<div class="lines"><p class="note">What is read will be here.</p></div>'
STYLE = """\
#lines .html-container, #lines .prose { padding: 0; }
.lines { display: flex; flex-direction: column; gap: 16px; }
.lines article { border: 1px solid #8884; border-radius: 8px; padding: 12px 16px; overflow-wrap: anywhere; }
.lines h3 { margin: 0 0 8px; font-size: 14px; font-weight: 600; }
.lines img { max-width: 100%; max-height: 240px; border: 1px solid #8884; background: #fff; margin: 0 0 10px; }
.lines .text { font-size: 22px; line-height: 1.6; }
.lines .word { color: #111; border-radius: 4px; padding: 0 6px; margin: 2px 4px 2px 0; display: inline-block; }
.lines .word small { font-size: 11px; color: #333; margin-left: 5px; }
.lines p { margin: 6px 0; } .lines .note { font-size: 13px; opacity: .8; }
.lines ol { margin: 4px 0 0 22px; font-size: 14px; list-style: decimal; } .lines ol span { opacity: .7; }
.lines .problem { border-color: #c92a2a; } .lines .problem p { color: #c92a2a; font-weight: 600; }
.dark .lines .problem p { color: #ff8787; }
.lines a.save { align-self: start; border: 1px solid #8888; border-radius: 8px; padding: 8px 14px; font-size: 14px; }
footer { display: none !important; }
"""


def to_html(lines: Sequence[Line]) -> str:
    """A card for each line, and a link that saves all of them as JSON."""
    content = json.dumps([line.result.to_dict() for line in lines], ensure_ascii=False, indent=1)
    address = f"data:application/json;base64,{base64.b64encode(content.encode()).decode()}"
    save = f'<a class="save" download="trocr-jax.json" href="{address}">Save as JSON</a>'
    return f'<div class="lines" role="status">{"".join(map(_card, lines))}{save}</div>'


def message(text: str) -> str:
    """A card that says what is wrong."""
    return f'<div class="lines" role="alert"><article class="problem"><p>{html.escape(text)}</p></article></div>'


def to_text(lines: Sequence[Line]) -> str:
    """The texts alone, one a line; an empty one for an image that could not be read."""
    return "\n".join(line.result.text for line in lines)


def _card(line: Line) -> str:
    result, name = line.result, html.escape(line.result.source or "")
    if result.error is not None:
        return f'<article class="problem"><h3>{name}</h3><p>{html.escape(result.error)}</p></article>'
    assert line.picture is not None
    words = "".join(map(_word, result.words)) or '<span class="note">no text</span>'
    confidence = f"the whole line: {_percent(result.confidence or 0)}{' (calibrated)' if result.is_calibrated else ''}"
    cut = "; cut off at the length limit" if result.is_truncated else ""
    return (
        f"<article><h3>{name}</h3>"
        f'<img src="{_picture(line.picture)}" alt="the image, with boxes around the words">'
        f'<div class="text">{words}</div><p class="note">Confidence of {confidence}{cut}</p>{_others(result)}</article>'
    )


def _word(word: Word) -> str:
    # Red at 0, yellow at a half, green at 1; light enough for dark letters on a dark page, too.
    colour = f"hsl({120 * word.confidence:.0f} 75% 80%)"
    percent = _percent(word.confidence)
    return (
        f'<span class="word" style="background:{colour}" title="confidence {percent}">'
        f"{html.escape(word.text)}<small>{percent}</small></span>"
    )


def _percent(probability: float) -> str:
    percent = 100 * probability
    return "&lt; 1 %" if percent < 1 else f"{min(percent, 99):.0f} %" if percent < 99.5 else "&gt; 99 %"


def _others(result: Recognition) -> str:
    """The list of hypotheses, best first, a text once only."""
    if not result.alternatives:
        return ""
    texts: dict[str, Recognition] = {}
    for reading in (result, *result.alternatives):
        texts.setdefault(reading.text, reading)
    rows = "".join(
        f"<li>{html.escape(text)} <span>{_percent(reading.confidence or 0)}</span></li>"
        for text, reading in texts.items()
    )
    return f"<p class='note'>Best texts, in the search's order, with their probabilities</p><ol>{rows}</ol>"


def _picture(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
