"""Drawn lines as a typewriter and a worn carbon copy leave them, which the faces of printing do not look like."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.fonts import load_font
from trocr_jax.datasets.synthetic import SIZES, SyntheticLines

# Files of upright faces that look like a typewriter's.
TYPEWRITERS = re.compile(
    r"(GNUTypewriter|Courier Prime( Bold)?|FreeMono(Bold)?|NimbusMonoPS-(Regular|Bold)|TlwgTypewriter(-Bold)?|cmuntt"
    r"|cmuntb)\.(otf|ttf)"
)
LONGEST_SPACED = 12  # characters of a heading that is typed with spaces between its letters


def typed_lines(lines: SyntheticLines) -> list[Example]:
    """As many lines as `lines` has, with its texts, typed. Raises ValueError where no face is a typewriter's."""
    faces = [face for face in lines.faces if TYPEWRITERS.fullmatch(pathlib.Path(face.path).name)]
    if not faces:
        raise ValueError("no face is a typewriter's: install fonts-gnutypewriter or fonts-courier-prime")
    found = []
    for i, example in enumerate(dataclasses.replace(lines, faces=faces)):
        covering = [face for face in faces if face.covers(example.text)]
        face = covering[np.random.default_rng([lines.seed, i, 2]).integers(len(covering))]
        opener = functools.partial(_open, (lines.seed, i, 3), example.text, face.path)
        found.append(Example(f"typed line {i}", example.text, opener))
    return found


def _open(seed: tuple[int, ...], text: str, font_path: str) -> Image.Image:
    return type_line(text, font_path, np.random.default_rng(seed))


def type_line(text: str, font_path: str, random: np.random.Generator) -> Image.Image:
    """An RGB image of a text, each letter struck by itself: higher or lower, fainter or fatter than the one before.

    Now and then it is underlined, has gaps of many spaces, parts of the lines above and below or specks, and is scanned
    in black and white.
    """
    size = int(random.integers(SIZES[0], SIZES[1] + 1))
    font = load_font(font_path, size)
    ink = _worn_ribbon(_strokes(_spaced(text, random), font, size, random), size, random)
    if random.random() < 0.25:
        ink = ink.rotate(random.uniform(-1, 1), Image.Resampling.BICUBIC)
    share = np.asarray(ink, np.float32) / 255
    if random.random() < 0.3:  # a scan in black and white
        limit = random.uniform(0.25, 0.6) * share.max()
        return Image.fromarray(np.where(share > limit, 0, 255).astype(np.uint8)).convert("RGB")
    paper = random.uniform(190, 255) + _grain(ink.size, random) * random.uniform(0, 14)
    darkest = random.uniform(0, 90)
    levels = paper * (1 - share) + darkest * share
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")


def _spaced(text: str, random: np.random.Generator) -> str:
    """The text with the spaces that typists put: two after a sentence, many in a table, one in a word of capitals."""
    if len(text) <= LONGEST_SPACED and text.isupper() and random.random() < 0.3:
        return " ".join(text)
    after_sentence = random.random() < 0.5
    gap = random.random() < 0.06
    words = text.split(" ")
    typed = words[0]
    for before, word in itertools.pairwise(words):
        number = 2 if after_sentence and before.endswith((".", "?", "!", ":")) else 1
        if gap and random.random() < 0.2:
            number = int(random.integers(3, 10))
        typed += " " * number + word
    return typed


def _strokes(text: str, font: ImageFont.FreeTypeFont, size: int, random: np.random.Generator) -> Image.Image:
    """Ink, mode L: 255 where it is black."""
    pitch = font.getlength("n") * random.uniform(0.97, 1.2)
    left, right, top, bottom = (int(random.integers(0, max(size // 2, 2))) for _ in range(4))
    width, height = left + round(pitch * len(text)) + right, top + round(size * 1.25) + bottom
    ink = Image.new("L", (width, height))
    draw = ImageDraw.Draw(ink)
    baseline = top + size
    if random.random() < 0.15:  # what hangs down from the line above, and what stands up from the one below
        for shift in (-1.1 * size - top, size + bottom):
            places = range(int(random.integers(0, 3)), len(text), int(random.integers(2, 8)))
            other = "".join(text[-place] if place in places else " " for place in range(1, len(text) + 1))
            draw.text((left, baseline + shift), other, font=font, fill=int(random.integers(90, 256)), anchor="ls")
    _underline(draw, text, pitch, left, baseline, size, random)
    unsteady, faint, usual = random.uniform(0, 0.05) * size, random.uniform(0, 0.7), random.uniform(0.6, 1)
    is_struck_twice = random.random() < 0.1
    strength = usual
    for i, character in enumerate(text):
        if character == " ":
            continue
        strength = 0.5 * strength + 0.5 * usual * (1 - faint * random.random() ** 2)
        x = left + i * pitch + random.normal(0, unsteady * 0.5)
        y = baseline + random.normal(0, unsteady)
        fill = round(255 * strength)
        draw.text((x, y), character, font=font, fill=fill, anchor="ls")
        if is_struck_twice:
            draw.text((x + 1, y), character, font=font, fill=fill, anchor="ls")
    for _ in range(int(random.integers(1, 15)) if random.random() < 0.3 else 0):
        x, y, radius = random.integers(width), random.integers(height), int(random.integers(0, 2))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(random.integers(90, 256)))
    return ink


def _underline(
    draw: ImageDraw.ImageDraw,
    text: str,
    pitch: float,
    left: int,
    baseline: int,
    size: int,
    random: np.random.Generator,
) -> None:
    """Below the whole text, below some of it, or not at all."""
    if random.random() > 0.2:
        return
    first, last = (0, len(text)) if random.random() < 0.5 else sorted(random.integers(0, len(text) + 1, 2))
    y = baseline + round(random.uniform(0.02, 0.2) * size)
    fill = int(random.integers(120, 256))
    thick = int(random.integers(0, max(size // 12, 2)))
    draw.rectangle((left + first * pitch, y, left + last * pitch, y + thick), fill=fill)


def _worn_ribbon(ink: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Letters fatter, filled with ink or blurred, and here and there without it, as on carbon copies."""
    kind = random.random()
    if kind < 0.4 and size >= 28:
        ink = ink.filter(ImageFilter.MaxFilter(3))
    if kind < 0.7:
        ink = ink.filter(ImageFilter.GaussianBlur(random.uniform(0.01, 0.045) * size))
    if random.random() < 0.4:
        holes = np.clip(1 + _grain(ink.size, random) * random.uniform(0, 0.5), 0, 1.2)
        ink = Image.fromarray(np.clip(np.asarray(ink, np.float32) * holes, 0, 255).astype(np.uint8))
    return ink


def _grain(size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and standard deviation 1, in grains of one to four pixels: float32 [height, width]."""
    grain = int(random.integers(1, 5))
    coarse = random.normal(0, 1, (size[1] // grain + 1, size[0] // grain + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR))
