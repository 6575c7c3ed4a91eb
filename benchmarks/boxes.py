"""Boxes of words and characters against their true places, on rendered lines, as a Markdown table.

usage: python benchmarks/boxes.py [--lines N] [--seed S]

Lines of at most 30 characters are drawn in Pillow's own face and those of DejaVu that the system has; true boxes are
those of the pixels that a character adds to the picture. Only lines that are read without an error count, since others
have no true boxes. Beside the library's boxes stand

- equal division: the extent of the ink, cut into as many equal parts as there are characters;
- the same, each box then shrunk to the ink in it;
- the library's alignment without attention: by the ink and the common widths of characters alone.

All share the library's ink. The constants in trocr_jax/alignment.py were chosen on other lines than these.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import re
import statistics

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from trocr_jax import TrOCR
from trocr_jax.alignment import locate_characters
from trocr_jax.processing.ink import find_ink

FACES = (
    "DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSansCondensed.ttf", "DejaVuSans-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
)  # fmt: skip
CONDITIONS = {
    "plain": "black on white",
    "scanned": "other contrasts and polarity, blur, noise",
    "uneven": "spaces and letter-spacing of any width, a wide margin at times",
    "ruled": "a line below the text",
    "slanted": "sheared to either side",
}
VOCABULARY = """
the of and to a in that he was it his is with as had for at you not be on by which have from said one all are this but
they her she him my me so no when what were if there would who we out up them been its into more some could time then
do an only than very now about little can over any like these your such other new our man house under before where
after night made sea great long ship whale day good come old white head know well three first hand water line must
"""
LONGEST = 30  # characters
VISIBLE = 51  # of 255 grey levels: what a character must change a pixel by for the pixel to be its own
METHODS = ("equal division", "equal division, shrunk to ink", "ink and widths", "with attention")


def random_text(draw: random.Random) -> str:
    """A few words and numbers, now and then all capitals or as on a receipt."""
    words = VOCABULARY.split()
    if draw.random() < 0.15:
        amount = f"{draw.randint(1, 99)}.{draw.randint(0, 99):02}"
        return draw.choice([f"TOTAL RM {amount}", f"Date: {amount}.{draw.randint(1960, 2030)}", f"No. {amount} / pcs"])
    text = draw.choice(words)
    while draw.random() < 0.88:
        word = str(draw.randint(0, 9999)) if draw.random() < 0.1 else draw.choice(words)
        word = word.capitalize() if draw.random() < 0.1 else word
        word += draw.choice(".,;") if draw.random() < 0.08 else ""
        if len(text) + 1 + len(word) > LONGEST:
            break
        text += f" {word}"
    return text.upper() if draw.random() < 0.1 else text


def faces() -> dict[str, str | None]:
    """The faces there are, by name; None is Pillow's own."""
    found: dict[str, str | None] = {"Pillow's own": None}
    for name in FACES:
        try:
            ImageFont.truetype(name, 20)
        except OSError:
            continue
        found[name.removesuffix(".ttf")] = name
    return found


def places(text: str, font, draw: random.Random, is_uneven: bool) -> list[float]:
    """Where each character begins, in pixels from the first."""
    if not is_uneven:
        return [font.getlength(text[: i + 1]) - font.getlength(text[i]) for i in range(len(text))]
    x, found, spacing = 0.0, [], draw.uniform(-0.02, 0.12) * font.size
    for character in text:
        found.append(x)
        x += font.getlength(character) + spacing * draw.uniform(0.6, 1.4)
        if character == " ":
            x += font.getlength(" ") * draw.uniform(-0.3, 2)
    return found


def render(text: str, face: str | None, condition: str, draw: random.Random):
    """(a gray picture of the text, the true box of each character, None for spaces)."""
    size = draw.randint(18, 42)
    font = ImageFont.load_default(size) if face is None else ImageFont.truetype(face, size)
    begins = places(text, font, draw, condition == "uneven")
    _, top, _, bottom = font.getbbox(text)
    left, above, right, below = (draw.randint(1, size // 2) for _ in range(4))
    if condition == "uneven" and draw.random() < 0.3:
        right += draw.randint(0, 4 * size)
    height = bottom - top + above + below
    lean = draw.choice([-1, 1]) * draw.uniform(0.2, 0.4) if condition == "slanted" else 0.0
    room = round(abs(lean) * height / 2)
    width = round(begins[-1] + font.getlength(text[-1])) + left + right + 4 + 2 * room
    upright, before, boxes = Image.new("L", (width, height), 255), None, []
    for character, x in zip(text, begins, strict=True):
        before = sheared(upright, lean)
        ImageDraw.Draw(upright).text((left + 2 + room + x, above - top), character, font=font, fill=0)
        added = ImageChops.difference(sheared(upright, lean), before).point(lambda level: 255 * (level >= VISIBLE))
        boxes.append(added.getbbox())
    image = sheared(upright, lean)
    if condition == "scanned":
        image = scanned(image, draw)
    if condition == "ruled":
        image = ruled(image, max(box[3] for box in boxes if box), draw)
    return image, boxes


def sheared(image: Image.Image, lean: float) -> Image.Image:
    """The image with its rows shifted by `lean` pixels a row, the middle one staying."""
    if lean == 0:
        return image.copy()
    matrix = (1, lean, -lean * image.height / 2, 0, 1, 0)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=255)


def scanned(image: Image.Image, draw: random.Random) -> Image.Image:
    """The image with less contrast, some blur and noise, perhaps white on black."""
    if draw.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.2)))
    dark, light = draw.uniform(0, 90), draw.uniform(180, 255)
    levels = dark + (light - dark) * np.asarray(image, float) / 255
    levels += np.random.default_rng(draw.randrange(2**32)).normal(0, draw.uniform(0, 12), levels.shape)
    levels = 255 - levels if draw.random() < 0.2 else levels
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def ruled(image: Image.Image, bottom: int, draw: random.Random) -> Image.Image:
    """The image with a dark line across, below the row `bottom`."""
    gap, thickness = draw.randint(2, 6), draw.randint(1, 2)
    longer = Image.new("L", (image.width, max(image.height, bottom + gap + thickness + 2)), 255)
    longer.paste(image)
    row = bottom + gap
    ImageDraw.Draw(longer).rectangle((0, row, image.width, row + thickness - 1), fill=draw.randint(0, 60))
    return longer


def overlap(box, true) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(box[2], true[2]) - max(box[0], true[0]))
    height = max(0.0, min(box[3], true[3]) - max(box[1], true[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, true)]
    return width * height / (sum(areas) - width * height)


def around(boxes):
    """The box around boxes."""
    lows, highs = ([f(box[i] for box in boxes) for i in at] for f, at in ((min, (0, 1)), (max, (2, 3))))
    return (*lows, *highs)


def division(text: str, ink: np.ndarray, is_shrunk: bool):
    """The extent of the ink in equal parts, one a character."""
    columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
    cuts = np.linspace(columns[0], columns[-1] + 1, len(text) + 1)
    boxes = []
    for left, right in itertools.pairwise(cuts):
        box = (left, rows[0], right, rows[-1] + 1)
        part = ink[:, round(left) : round(right)] if is_shrunk else np.zeros((0, 0), bool)
        if part.any():
            inside, high = np.flatnonzero(part.any(0)) + round(left), np.flatnonzero(part.any(1))
            box = (inside[0], high[0], inside[-1] + 1, high[-1] + 1)
        boxes.append(box)
    return boxes


def found_boxes(line, image: Image.Image):
    """The boxes of every character by each method."""
    text, ink = line.text, find_ink(image.convert("RGB"))
    nowhere = np.ones((1, 2))  # attention of one token, which holds the whole text, says nothing
    own = [None] * len(text)
    for word in line.words:
        own[word.start : word.end] = word.char_boxes
    return (
        division(text, ink, is_shrunk=False),
        division(text, ink, is_shrunk=True),
        locate_characters(text, [(0, len(text))], nowhere, np.array([0.0, image.width]), ink),
        own,
    )


def measure(ocr: TrOCR, num_lines: int, seed: int):
    """({condition: [mean overlap of words and of characters by method]}, {condition: (lines read right, lines)})."""
    draw, kinds, drawn = random.Random(seed), list(faces().values()), []
    for i in range(num_lines):
        condition = list(CONDITIONS)[i // len(kinds) % len(CONDITIONS)]
        text = random_text(draw)
        drawn.append((text, condition, *render(text, kinds[i % len(kinds)], condition, draw)))
    words, characters, right = (collections.defaultdict(list) for _ in range(3))
    for line, (text, condition, image, true) in zip(ocr([row[2] for row in drawn], boxes="char"), drawn, strict=True):
        right[condition].append(line.text == text)
        if line.text != text:
            continue
        for method, boxes in zip(METHODS, found_boxes(line, image), strict=True):
            visible = [i for i, own in enumerate(true) if own is not None]
            characters[condition, method] += [overlap(boxes[i], true[i]) for i in visible]
            for start, end in (match.span() for match in re.finditer(r"\S+", text)):
                at = [i for i in visible if start <= i < end]
                words[condition, method].append(overlap(around([boxes[i] for i in at]), around([true[i] for i in at])))
    return words, characters, right


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=700)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    words, characters, right = measure(TrOCR.from_pretrained(), options.lines, options.seed)
    print(f"Mean intersection over union, words / characters; {options.lines} lines in {', '.join(faces())}.\n")
    print("| lines | read right |", " | ".join(METHODS), "|")
    print("|---|---|" + "---|" * len(METHODS))
    for condition, description in CONDITIONS.items():
        cells = [
            f"{statistics.mean(words[condition, m]):.3f} / {statistics.mean(characters[condition, m]):.3f}"
            for m in METHODS
        ]
        score = f"{sum(right[condition])} of {len(right[condition])}"
        print(f"| {condition}: {description} | {score} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
