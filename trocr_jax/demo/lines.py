"""What the page reads: images given by people, checked before anything is done with them, and lines for examples."""

from __future__ import annotations

import dataclasses
import functools
import operator
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from trocr_jax.constraints import AllowedCharacters, Constraint, Lexicon, Pattern
from trocr_jax.processing.image import ImageError, load_rgb
from trocr_jax.recognizer import TrOCR
from trocr_jax.results import Recognition

EMBEDDED = "embedded model"
MAX_IMAGES = 32
MAX_PIXELS = 20_000_000
# Pillow reads these itself; for others, such as EPS, it may start other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
PICTURE_SIZE = (1200, 600)  # pixels, at most
MAX_CHARACTERS = {"pattern": 500, "allowed": 2_000, "lexicon": 200_000}
MAX_BEAMS, MAX_HYPOTHESES = 8, 5
MARGIN = 12  # pixels around a drawing
EXAMPLES = ("Total 31.41 EUR", "12 October 1984", "a short example")


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a visitor chose: a model by its name, and how to search. Empty texts constrain nothing."""

    model: str = EMBEDDED
    num_beams: int = 1
    pattern: str = ""
    allowed: str = ""
    lexicon: str = ""  # a text a line

    def constraint(self) -> Constraint | None:
        """All constraints at once, or None. Raises ValueError for one that is too long or no constraint at all."""
        for name, most in MAX_CHARACTERS.items():
            if len(getattr(self, name)) > most:
                raise ValueError(f"{name}: at most {most} characters, please")
        texts = [line.rstrip("\r") for line in self.lexicon.split("\n") if line.strip()]
        asked: list[Constraint] = [
            *([Pattern(self.pattern)] if self.pattern else []),
            *([AllowedCharacters(self.allowed)] if self.allowed else []),
            *([Lexicon(texts)] if texts else []),
        ]
        return functools.reduce(operator.and_, asked) if asked else None


@dataclasses.dataclass(frozen=True)
class Line:
    """One image and what was read in it; `picture`, small enough to be shown, has the words' boxes.

    It is None if the image could not be read.
    """

    result: Recognition
    picture: Image.Image | None


class Reader:
    """The models of a page. Visitors take turns: a program is compiled once, and no two share the device."""

    def __init__(self, models: Sequence[str] = (), *, dtype: str = "auto") -> None:
        names = list(dict.fromkeys(models)) or [EMBEDDED]
        self._models = {name: TrOCR.from_pretrained(None if name == EMBEDDED else name, dtype=dtype) for name in names}
        self._turn = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The models' names, the first being the default."""
        return list(self._models)

    def warmup(self) -> None:
        """Compiles what the default choices need."""
        self.read([("example", draw_line(EXAMPLES[0]))], Choices(self.names[0]))

    def read(self, images: Sequence[tuple[str, Any]], choices: Choices) -> list[Line]:
        """A line for each (name, path or PIL image), in order; one that is no image has its `error`.

        Raises ValueError, for the visitor to read, for choices that cannot be followed.
        """
        if choices.model not in self._models:
            raise ValueError(f"there is no model {choices.model!r} here")
        if not 1 <= choices.num_beams <= MAX_BEAMS:
            raise ValueError(f"beams go from 1 to {MAX_BEAMS}")
        if len(images) > MAX_IMAGES:
            raise ValueError(f"{len(images)} images are too many: at most {MAX_IMAGES} at a time, please")
        options: dict[str, Any] = {"constraint": choices.constraint(), "num_beams": choices.num_beams}
        if choices.num_beams > 1:
            options["num_return_sequences"] = min(choices.num_beams, MAX_HYPOTHESES)
        with self._turn:
            # One image at a time: whatever number is given, nothing is compiled for it, and one is in memory.
            return [_line(name, image, self._models[choices.model], options) for name, image in images]


def _opened(name: str, image: Any) -> Image.Image | ImageError:
    """The upright image in RGB, or why it cannot be read; a file of too many pixels is not even decoded."""
    try:
        if isinstance(image, str | pathlib.Path):
            with Image.open(image) as file:
                _check_kind(name, file)
                _check_size(name, file)
        else:
            _check_size(name, image)
        return load_rgb(image, name=name)
    except ImageError as error:
        return error
    except Exception:  # Pillow reports damage by nearly any exception; its message may hold a path
        return ImageError(f"{name} is not an image that can be read; PNG, JPEG, TIFF, WebP and the like can")


def _check_kind(name: str, image: Image.Image) -> None:
    if image.format not in FORMATS:
        raise ImageError(f"{name} is a file of the kind {image.format}; read are {', '.join(FORMATS)}")


def _check_size(name: str, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels; the most is {MAX_PIXELS // 1_000_000} million: cut the "
            "line out, or make it smaller"
        )


def _line(name: str, image: Any, model: TrOCR, options: dict[str, Any]) -> Line:
    opened = _opened(name, image)
    if isinstance(opened, ImageError):
        return Line(Recognition("", finish_reason="error", error=str(opened), source=name), None)
    result = dataclasses.replace(model(opened, boxes=True, **options), source=name)
    picture = opened if result.error else result.draw(opened)
    picture.thumbnail(PICTURE_SIZE)
    return Line(result, picture)


def cropped_to_ink(drawing: Image.Image) -> Image.Image | None:
    """What was drawn on a canvas, with a margin, in RGB on white; None for an empty canvas."""
    image = load_rgb(drawing)
    box = ImageOps.invert(image.convert("L")).getbbox()
    return None if box is None else ImageOps.expand(image.crop(box), MARGIN, "white")


def draw_line(text: str) -> Image.Image:
    """A line of text as an image, black on white."""
    font = ImageFont.load_default(40)
    _, _, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (int(right) + 24, int(bottom) + 16), "white")
    ImageDraw.Draw(image).text((12, 6), text, font=font, fill="black")
    return image
