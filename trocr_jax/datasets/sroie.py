"""SROIE task 2: receipts, and beside each a text file with a box and a text on every line."""

from __future__ import annotations

import functools
import re

from PIL import Image

from trocr_jax.datasets.crops import page_image
from trocr_jax.datasets.example import Example
from trocr_jax.datasets.files import Files, read_lines
from trocr_jax.processing.image import ImageError

# x and y of four corners, then the text, which may hold commas.
_LINE = re.compile(r"((?:\s*-?\d+\s*,){8})(.*)")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def misfit_sroie(files: Files, name: str) -> str | None:
    """Why it is no folder of receipts, each with a text file of boxes."""
    if not files.is_folder(name):
        return "it is no folder"
    pairs = _pairs(files, name)
    if not pairs:
        return "it has no image with a .txt of the same name"
    first = next((line for _, line in read_lines(files, pairs[0][1])), "")
    if not _LINE.fullmatch(first):
        return f"{files.where(pairs[0][1])} does not begin with eight coordinates and a text"
    return None


def read_sroie(files: Files, name: str) -> list[Example]:
    """Every text of every receipt: what unilm crops, the upright box around the four corners.

    Spaces at the ends of texts are left out and boxes without area skipped, as there.
    """
    return [example for image, boxes in _pairs(files, name) for example in _receipt(files, image, boxes)]


def _pairs(files: Files, folder: str) -> list[tuple[str, str]]:
    """(image, its text file)"""
    children = files.children(folder)
    texts = {child.removesuffix(".txt") for child in children if child.endswith(".txt")}
    stems = [(child, child.rpartition(".")[0]) for child in children if child.lower().endswith(IMAGE_SUFFIXES)]
    return [(files.join(folder, child), files.join(folder, f"{stem}.txt")) for child, stem in stems if stem in texts]


def _receipt(files: Files, image: str, boxes: str) -> list[Example]:
    examples = []
    for number, line in read_lines(files, boxes):
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            if not line.strip():
                continue
            raise ValueError(f"{files.where(boxes)}: line {number} has no eight coordinates and a text: {line[:60]!r}")
        corners = [int(number) for number in match[1].split(",")[:8]]
        left, top, right, bottom = min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])
        if right > left and bottom > top:
            opener = functools.partial(
                _crop, files, image, (left, top, right, bottom), f"{files.where(boxes)}:{number}"
            )
            examples.append(Example(f"{files.where(boxes)}:{number}", match[2], opener))
    return examples


def _crop(files: Files, image: str, box: tuple[int, int, int, int], name: str) -> Image.Image:
    page = page_image(files, image)
    inside = max(box[0], 0), max(box[1], 0), min(box[2], page.width), min(box[3], page.height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ImageError(f"{name} lies outside {files.where(image)}")
    return page.crop(inside)
