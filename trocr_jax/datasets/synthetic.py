"""Lines drawn from text files and the machine's fonts, each when it is asked for and always the same."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trocr_jax.datasets.example import Example
from trocr_jax.datasets.fonts import FOLDERS, Face, find_faces, find_fonts, load_font
from trocr_jax.processing.image import load_rgb
from trocr_jax.replacing import replacing

# Draws of a text until one is found that a face covers.
MOST_DRAWS = 100
SIZES = (18, 48)  # of fonts, in pixels
LEAST_CONTRAST = 70  # of 255 grey levels, between ink and paper
CURRENCIES = "$€£"  # the signs of amounts; nothing else in numbers is beyond ASCII


@dataclasses.dataclass(frozen=True)
class SyntheticLines(Sequence[Example]):
    """A dataset of `num_lines` lines. Line i depends on `seed`, i, the words, the faces and the backgrounds alone.

    A text is some neighbouring words, at most `most_characters` of them; now and then it is in capitals, or a number, a
    date or an amount. Its face draws every character. Paper is plain, shaded, or part of one of `backgrounds`.
    """

    words: Sequence[str]
    faces: Sequence[Face]
    num_lines: int
    seed: int = 0
    most_characters: int = 60
    backgrounds: Sequence[str] = ()

    def __len__(self) -> int:
        return self.num_lines

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num_lines))]
        i = index + self.num_lines if index < 0 else index
        if not 0 <= i < self.num_lines:
            raise IndexError(f"there are {self.num_lines} lines, and none of index {index}")
        text, face = self._drawn(np.random.default_rng([self.seed, i, 0]))
        # Without the words, so that it is sent to another process quickly.
        opener = functools.partial(_open, (self.seed, i, 1), text, face.path, self.backgrounds)
        return Example(f"synthetic line {i}", text, opener)

    def _drawn(self, random: np.random.Generator) -> tuple[str, Face]:
        """A text, and one of the faces that draw it."""
        text = ""
        for _ in range(MOST_DRAWS):
            text = _random_text(self.words, self.most_characters, random)
            covering = [face for face in self.faces if face.covers(text)]
            if covering:
                return text, covering[random.integers(len(covering))]
        raise ValueError(f"no face draws {text!r}, nor {MOST_DRAWS - 1} texts before it; pass fonts of its script")


def _open(seed: tuple[int, ...], text: str, font_path: str, backgrounds: Sequence[str]) -> Image.Image:
    random = np.random.default_rng(seed)
    return draw_line(text, font_path, int(random.integers(SIZES[0], SIZES[1] + 1)), random, backgrounds)


def synthetic_lines(
    texts: Iterable[str | os.PathLike[str]],
    *,
    num_lines: int,
    fonts: Iterable[str | os.PathLike[str]] = FOLDERS,
    backgrounds: Iterable[str | os.PathLike[str]] = (),
    seed: int = 0,
    most_characters: int = 60,
) -> SyntheticLines:
    """Lines with the words of text files (UTF-8), in the fonts at or below some files and folders.

    `backgrounds` are images of paper. A word is left out that has a character which no face draws, which is written
    from right to left, or which is a mark on another: all Arabic and Hebrew, most of Devanagari. Raises ValueError
    where no face or no word is left, FileNotFoundError for a text or a background that is not there.
    """
    if num_lines < 1 or most_characters < 1:
        raise ValueError(f"num_lines is {num_lines}, most_characters {most_characters}; both must be at least 1")
    words = [word for path in texts for word in _words(pathlib.Path(path))]
    letters = "".join(words)
    # All that a text may hold: a face counts as drawing nothing that it was not asked about.
    faces = list(find_faces(find_fonts(fonts), {*letters, *letters.upper(), *CURRENCIES}))
    if not faces:
        raise ValueError(
            "no font draws all of ASCII's letters and digits: install some, such as fonts-dejavu-core, or name a "
            "folder of them"
        )
    drawn = frozenset().union(*(face.characters for face in faces))
    words = [word for word in words if drawn.issuperset(word) and len(word) <= most_characters]
    if not words:
        raise ValueError(
            f"the texts hold no word of at most {most_characters} characters that the fonts draw, letter by letter "
            "from left to right"
        )
    paths = [os.fspath(path) for path in backgrounds]
    for path in paths:
        load_rgb(path)
    return SyntheticLines(words, faces, num_lines, seed, most_characters, paths)


def _words(path: pathlib.Path) -> list[str]:
    try:
        return unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig")).split()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it, as with iconv") from error


def _random_text(words: Sequence[str], most: int, random: np.random.Generator) -> str:
    if random.random() < 0.15:
        text = _random_number(random)
        if len(text) <= most:
            return text
    start, wanted = int(random.integers(len(words))), int(random.integers(1, most + 1))
    text = words[start]
    for word in words[start + 1 : start + 1 + most]:
        if len(text) + 1 + len(word) > wanted:
            break
        text += f" {word}"
    capitals = text.upper() if random.random() < 0.15 else text
    return capitals if len(capitals) <= most else text  # a capital may take two letters


def _random_number(random: np.random.Generator) -> str:
    """A date, an amount, a time, a telephone number or a serial number."""
    a, b, c, d = (int(number) for number in random.integers(0, 100, 4))
    amount = f"{a * 10 ** int(random.integers(0, 3)) + b:,}.{c:02}"
    day, month, year = a % 28 + 1, b % 12 + 1, 1900 + c + d % 2 * 30
    choices = (
        f"{day:02}/{month:02}/{year}",
        f"{year}-{month:02}-{day:02}",
        f"{day}.{month}.{year % 100:02}",
        f"{random.choice(list(CURRENCIES))}{amount}",
        f"{amount} {random.choice(['%', 'kg', 'EUR', 'RM', 'x'])}",
        f"{a % 24:02}:{b % 60:02}:{c % 60:02}",
        f"+{a} ({b}) {c:02} {d:02}-{a:02}",
        f"No. {a}{b:02}{c:02}-{random.choice(list('ABCDEFGHJKLMNPQRSTUVWXYZ'))}",
        f"{a}",
        f"#{b}{c}",
    )
    return choices[random.integers(len(choices))]


def draw_line(
    text: str, font_path: str, size: int, random: np.random.Generator, backgrounds: Sequence[str] = ()
) -> Image.Image:
    """An RGB image of a text in a font of `size` pixels, with the margins, paper, ink and wear of a scan."""
    font = load_font(font_path, size)
    left, top, right, bottom = (round(side) for side in font.getbbox(text))
    margins = [int(random.integers(1, max(size // 2, 2))) for _ in range(4)]
    width, height = right - left + margins[0] + margins[2], bottom - top + margins[1] + margins[3]
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((margins[0] - left, margins[1] - top), text, font=font, fill=255)
    if random.random() < 0.3:
        ink = ink.rotate(random.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, expand=True)
    if random.random() < 0.2:
        _rule(ink, margins[1] + bottom - top, random)
    share = np.asarray(ink, np.float32)[:, :, None] / 255
    paper = _paper(ink.size, random, backgrounds)
    colour = _ink_colour(float(paper.mean()), random)
    return _worn(paper * (1 - share) + colour * share, random)


def _rule(ink: Image.Image, baseline: int, random: np.random.Generator) -> None:
    """Draws the line of a form or a ruled page below the text."""
    row = min(baseline + int(random.integers(0, 4)), ink.height - 1)
    fill = int(random.integers(120, 256))
    ImageDraw.Draw(ink).rectangle((0, row, ink.width, row + int(random.integers(0, 2))), fill=fill)


def _paper(size: tuple[int, int], random: np.random.Generator, backgrounds: Sequence[str]) -> np.ndarray:
    """Paper, or a dark ground, float32 [height, width, 3] in [0, 255]."""
    width, height = size
    if backgrounds and random.random() < 0.5:
        return _cut(load_rgb(backgrounds[int(random.integers(len(backgrounds)))]), size, random)
    level = random.uniform(10, 80) if random.random() < 0.1 else random.uniform(170, 255)
    paper = np.full((height, width, 3), level, np.float32) + random.normal(0, 4, 3).astype(np.float32)
    if random.random() < 0.4:  # shade from one side to the other
        slope = random.uniform(-30, 30, 2)
        shade = slope[0] * np.linspace(-0.5, 0.5, width)[None] + slope[1] * np.linspace(-0.5, 0.5, height)[:, None]
        paper += shade[:, :, None].astype(np.float32)
    return paper


def _cut(page: Image.Image, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Some part of a page of that size, the page being enlarged where it is smaller."""
    scale = max(size[0] / page.width, size[1] / page.height, 1)
    page = page.resize((int(np.ceil(page.width * scale)), int(np.ceil(page.height * scale))))
    left = int(random.integers(page.width - size[0] + 1))
    top = int(random.integers(page.height - size[1] + 1))
    return np.asarray(page.crop((left, top, left + size[0], top + size[1])), np.float32)


def _ink_colour(paper: float, random: np.random.Generator) -> np.ndarray:
    """Ink that is darker than the paper, or lighter than a dark ground: float32 [3]."""
    level = random.uniform(0, paper - LEAST_CONTRAST) if paper > 128 else random.uniform(paper + LEAST_CONTRAST, 255)
    tint = random.uniform(-20, 20, 3) if random.random() < 0.3 else np.zeros(3)
    return np.clip(level + tint, 0, 255).astype(np.float32)


def _worn(levels: np.ndarray, random: np.random.Generator) -> Image.Image:
    """[height, width, 3] with blur, a lower resolution, noise and JPEG's traces, each at times, as an image."""
    if random.random() < 0.4:
        levels = levels + random.normal(0, random.uniform(1, 12), (*levels.shape[:2], 1)).astype(np.float32)
    image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0)))
    if random.random() < 0.2:
        factor = random.uniform(0.5, 0.9)
        small = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
        image = small.resize(image.size, Image.Resampling.BILINEAR)
    if random.random() < 0.3:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=int(random.integers(35, 90)))
        image = Image.open(content).convert("RGB")
    return image


def check_archive_name(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a name that datasets would not be read from."""
    if pathlib.Path(path).suffix != ".zip":
        raise ValueError(f"{path} does not end in .zip")


def write_archive(examples: Iterable[Example], path: str | os.PathLike[str]) -> None:
    """Writes lines as a zip archive of PNG images and a labels.tsv, to a temporary name first.

    Raises ValueError for a text that a line of labels.tsv cannot hold, ImageError for an image that cannot be read.
    """
    check_archive_name(path)
    labels = []
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:  # stored: PNG is compressed
        for i, example in enumerate(examples):
            if "\n" in example.text or "\r" in example.text:
                raise ValueError(f"{example.name} has a text of several lines: {example.text!r}")
            content = io.BytesIO()
            example.open().save(content, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{i:06}.png"), content.getvalue())
            labels.append(f"{i:06}.png\t{example.text}\n")
        archive.writestr(zipfile.ZipInfo("labels.tsv"), "".join(labels))
