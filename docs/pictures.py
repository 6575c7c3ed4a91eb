"""Draws docs/images/boxes.png: sample lines as the model inside the package reads them.

usage: python docs/pictures.py
"""

from __future__ import annotations

import pathlib

from PIL import Image, ImageDraw, ImageFont

import trocr_jax
from trocr_jax.replacing import replacing

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("words.png", "date.png", "receipt-line.png")
SCALE, MARGIN, STRIP = 3, 16, 34  # STRIP: of the confidences, in pixels


def captioned(image: Image.Image, line: trocr_jax.Recognition) -> Image.Image:
    """The image with its boxes and words above, and each word's confidence in a strip below."""
    drawn = line.draw(image)
    canvas = Image.new("RGB", (drawn.width, drawn.height + STRIP), "white")
    canvas.paste(drawn)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(22)
    for word in line.words:
        assert word.box is not None
        draw.text((word.box[0], drawn.height + 4), f"{word.confidence:.3f}", font=font, fill="#495057")
    return canvas


def main(output: pathlib.Path = ROOT / "docs" / "images" / "boxes.png") -> None:
    """Reads the samples, enlarged so that the labels have room, and writes the picture."""
    ocr = trocr_jax.TrOCR.from_pretrained()
    rows = []
    for name in NAMES:
        sample = Image.open(ROOT / "notebooks" / "samples" / name)
        image = sample.resize((sample.width * SCALE, sample.height * SCALE), Image.Resampling.LANCZOS).convert("RGB")
        rows.append(captioned(image, ocr(image, boxes=True)))
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    picture = Image.new("RGB", (width + 2 * MARGIN, height + (len(rows) + 1) * MARGIN), "white")
    top = MARGIN
    for row in rows:
        picture.paste(row, (MARGIN, top))
        top += row.height + MARGIN
    with replacing(output) as partial:
        picture.save(partial, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
