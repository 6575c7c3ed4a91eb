"""Fonts of this machine, and which characters each of them has."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SUFFIXES = (".ttf", ".otf")
# What a face must have to be used at all: others are of symbols, or of another script alone.
BASIC = frozenset(string.ascii_letters + string.digits)
ASCII = BASIC | frozenset(string.punctuation)
# Where distributions and users keep fonts.
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")
_TRIAL_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Face:
    """A font file and the characters that it draws, the space included."""

    path: str
    characters: frozenset[str]

    def covers(self, text: str) -> bool:
        """Whether it draws every character of a text."""
        return self.characters.issuperset(text)


def find_fonts(places: Iterable[str | os.PathLike[str]] = FOLDERS) -> list[str]:
    """The paths of all .ttf and .otf files at or below some files and folders, sorted by name."""
    found: set[pathlib.Path] = set()
    for place in places:
        path = pathlib.Path(place).expanduser()
        found |= set(path.rglob("*")) if path.is_dir() else {path}
    return sorted(str(path) for path in found if path.suffix.lower() in SUFFIXES and path.is_file())


def find_faces(paths: Iterable[str], alphabet: Iterable[str] = ASCII) -> Iterator[Face]:
    """The faces that draw all of ASCII's letters and digits, with what they draw of the rest and of `alphabet`.

    Others are left out, those of capitals alone among them, and so are files that are no fonts. Characters written from
    right to left, and marks on others, count as not drawn: the basic layout sets them wrongly.
    """
    wanted = sorted(character for character in {*alphabet, *ASCII} if _is_set_alone(character))
    for path in paths:
        drawn = _drawn(path, wanted)
        if drawn >= BASIC and _has_small_letters(path):
            yield Face(path, frozenset(drawn | {" "}))


def _drawn(path: str, characters: Iterable[str]) -> set[str]:
    """Those that the file draws.

    A face's table of characters is not enough: some have empty glyphs, or the box of a missing character, where there
    should be a letter; some have one box for many letters; and some of symbols have other signs.
    """
    from matplotlib.ft2font import FT2Font

    try:
        tables = FT2Font(path)
        font = load_font(path, _TRIAL_SIZE)
    except (OSError, RuntimeError):
        return set()
    glyphs = {chr(code): glyph for code, glyph in tables.get_charmap().items() if glyph}
    times = collections.Counter(glyphs[character] for character in ASCII & glyphs.keys())
    missing = _ink(font, "\uffff")
    return {
        character
        for character in characters
        if character in glyphs
        and (
            character not in ASCII
            or (times[glyphs[character]] == 1 and _is_named(tables, glyphs[character], character))
        )
        and _ink(font, character) not in (None, missing)
    }


def _is_set_alone(character: str) -> bool:
    """Whether it is neither written from right to left nor a mark on another character."""
    is_mark = unicodedata.category(character).startswith("M")
    return not is_mark and unicodedata.bidirectional(character) not in ("R", "AL")


def _has_small_letters(path: str) -> bool:
    """Whether h is higher than x: where it is not, small letters are capitals."""
    h, x = (_ink(load_font(path, _TRIAL_SIZE), letter) for letter in "hx")
    return h is not None and x is not None and x[0][1] - h[0][1] > 1


def _is_named(tables: Any, glyph: int, character: str) -> bool:
    """Whether a glyph's name is a character's of ASCII, or says nothing."""
    from fontTools.agl import toUnicode

    name = tables.get_glyph_name(glyph)
    if re.fullmatch("uni[0-9a-f]{8}", name):
        return True  # which FT2Font calls glyphs without a name, by their number
    meant = unicodedata.normalize("NFKC", toUnicode(name))
    return meant in ("", character) or (character, meant) == ("-", "\xad")


def _ink(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int, int, int], bytes] | None:
    """Where a character has ink, and which; None where it has none."""
    image = Image.new("L", (3 * _TRIAL_SIZE, 3 * _TRIAL_SIZE))
    ImageDraw.Draw(image).text((_TRIAL_SIZE, _TRIAL_SIZE), character, font=font, fill=255)
    box = image.getbbox()
    return None if box is None else (box, image.crop(box).tobytes())


@functools.lru_cache(maxsize=256)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels. The layout is Pillow's basic one, which is the same on every machine."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
