"""Transcribed pages, PAGE-XML and ALTO: each line's text, and its place in the image of the page."""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import re
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from trocr_jax.datasets.crops import Point, around_baseline, crop_polygon, page_image
from trocr_jax.datasets.example import Example
from trocr_jax.datasets.files import Files
from trocr_jax.processing.image import ImageError

# Part by which the proportions of a page's image may differ from those that its file names.
PROPORTIONS = 0.01


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a page: polygon or baseline in the file's units, and all of it None where there is neither."""

    name: str
    text: str
    polygon: tuple[Point, ...] | None
    baseline: tuple[Point, ...] | None


@dataclasses.dataclass(frozen=True)
class Page:
    """A page as its file describes it; `size` is width and height in the file's units, 0 where it does not say."""

    image: str
    size: tuple[float, float]
    lines: tuple[Line, ...]


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Builds trees of files that declare no document type, and so no entities: nothing is resolved or expanded."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it has a document type declaration, which may lead to other files; delete it")


def misfit_page(files: Files, name: str) -> str | None:
    """Why it is neither a PAGE-XML file nor a folder of some."""
    return _misfit(files, name, "PcGts")


def misfit_alto(files: Files, name: str) -> str | None:
    """Why it is neither an ALTO file nor a folder of some."""
    return _misfit(files, name, "alto")


def read_page(files: Files, name: str) -> list[Example]:
    """The transcribed lines of PAGE-XML files: the first text of each line that has one."""
    return _read(files, name, "PcGts", _parse_page)


def read_alto(files: Files, name: str) -> list[Example]:
    """The lines of ALTO files: their strings with a space between them."""
    return _read(files, name, "alto", _parse_alto)


def _misfit(files: Files, name: str, root: str) -> str | None:
    found = _xml_files(files, name)
    if not found:
        return "it is no .xml file" if files.is_file(name) else "no .xml file is in it, nor in page/ or alto/ in it"
    roots = {_tag(_parse(files, file)) for file in found[:20]}
    if root in roots:
        return None
    return f"the root of its XML is {' or '.join(sorted(roots))}, not {root}"


def _xml_files(files: Files, name: str) -> list[str]:
    """The file itself, or the XML files of a folder, those of its subfolders page/ and alto/ included."""
    if files.is_file(name):
        return [name] if name.lower().endswith(".xml") else []
    folders = [name, *(files.join(name, child) for child in ("page", "alto"))]
    children = [files.join(folder, child) for folder in folders for child in files.children(folder)]
    # METS files, beside the pages of most archives, say which there are.
    return [child for child in children if child.lower().endswith(".xml") and not child.lower().endswith("mets.xml")]


def _parse(files: Files, name: str) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_WithoutDoctype())
    try:
        parser.feed(files.read(name))
        return parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{files.where(name)}: {error}") from error


def _read(files: Files, name: str, root: str, parse: Callable[[ElementTree.Element, str], Page]) -> list[Example]:
    found = 0
    examples: list[Example] = []
    for file in _xml_files(files, name):
        tree = _parse(files, file)
        if _tag(tree) == root:
            found += 1
            try:
                page = parse(tree, files.where(file))
            except ValueError as error:
                raise ValueError(f"{files.where(file)}: {error}") from error
            examples += _examples(files, file, page)
    if not examples:
        raise ValueError(f"{files.where(name)}: its {found} pages hold no line with a text")
    return examples


def _examples(files: Files, file: str, page: Page) -> Iterator[Example]:
    image = _find_image(files, file, page.image)
    is_needed = any(line.polygon is None and line.baseline is not None for line in page.lines)
    spacing = _spacing(page) if is_needed else None  # compares all baselines with each other
    for line in page.lines:
        polygon = line.polygon
        if polygon is None and line.baseline is not None and spacing is not None:
            polygon = tuple(around_baseline(line.baseline, spacing))
        opener = functools.partial(_crop, files, image, page.size, polygon, line.name)
        yield Example(line.name, line.text, opener)


def _find_image(files: Files, file: str, image: str) -> str:
    """The image that a page's file names, beside the file or in the folder above it."""
    folder = posixpath.dirname(file)
    base = posixpath.basename(image.replace("\\", "/"))
    places = [files.join(folder, image), files.join(folder, base), files.join(files.join(folder, ".."), base)]
    return next((place for place in places if files.is_file(place)), places[0])


def _spacing(page: Page) -> float | None:
    """The usual distance from one baseline to the next below it, in the file's units; None where there is none.

    Only lines that share a part of their width count: those of another column stand at any height.
    """
    baselines = [np.asarray(line.baseline) for line in page.lines if line.baseline]
    gaps = []
    for upper in baselines:
        under = [
            lower[:, 1].mean() - upper[:, 1].mean()
            for lower in baselines
            if lower[:, 0].min() < upper[:, 0].max() and upper[:, 0].min() < lower[:, 0].max()
        ]
        if below := [gap for gap in under if gap > 0]:
            gaps.append(min(below))
    return float(np.median(gaps)) if gaps else None


def _crop(
    files: Files, image: str, size: tuple[float, float], polygon: tuple[Point, ...] | None, name: str
) -> Image.Image:
    page = page_image(files, image)
    if polygon is None:
        raise ImageError(f"{name} has neither a polygon nor a baseline that others show the height of")
    x_scale, y_scale = (page.width / size[0], page.height / size[1]) if all(size) else (1.0, 1.0)
    if abs(x_scale / y_scale - 1) > PROPORTIONS:
        raise ImageError(
            f"{name} was drawn on a page of {size[0]:g}x{size[1]:g}, but {files.where(image)} has "
            f"{page.width}x{page.height} pixels"
        )
    return crop_polygon(page, [(x * x_scale, y * y_scale) for x, y in polygon], name)


def _parse_page(tree: ElementTree.Element, where: str) -> Page:
    page = _first(tree, "Page")
    lines = []
    for i, line in enumerate(_all(page, "TextLine"), 1):
        name = f"{where}#{line.get('id', i)}"
        texts = sorted(
            (child for child in line if _tag(child) == "TextEquiv"), key=lambda child: int(child.get("index", 0))
        )
        text = next((found.text or "" for equiv in texts for found in _all(equiv, "Unicode")), "")
        if text.strip():
            points = {_tag(child): _page_points(child) for child in line if _tag(child) in ("Coords", "Baseline")}
            polygon = _points(points.get("Coords", ""), name, least=3)
            lines.append(Line(name, text.strip(), polygon, _points(points.get("Baseline", ""), name, least=2)))
    size = float(page.get("imageWidth", 0)), float(page.get("imageHeight", 0))
    return Page(page.get("imageFilename", ""), size, tuple(lines))


def _page_points(shape: ElementTree.Element) -> str:
    """As "x,y x,y": an attribute, or as PAGE had them until 2010 an element each."""
    points = (f"{point.get('x')},{point.get('y')}" for point in shape if _tag(point) == "Point")
    return shape.get("points") or " ".join(points)


def _parse_alto(tree: ElementTree.Element, where: str) -> Page:
    page = _first(tree, "Page")
    if (count := sum(1 for _ in _all(tree, "Page"))) > 1:
        raise ValueError(f"it describes {count} pages but names one image; divide it into a file a page")
    unit = next((element.text for element in _all(tree, "MeasurementUnit")), "pixel")
    size = float(page.get("WIDTH", 0)), float(page.get("HEIGHT", 0))
    if unit != "pixel" and not all(size):
        raise ValueError(f"its places are in {unit} and its page has no WIDTH and HEIGHT to compare with the image's")
    lines = []
    for i, line in enumerate(_all(page, "TextLine"), 1):
        name = f"{where}#{line.get('ID', i)}"
        text = " ".join(content for string in _all(line, "String") if (content := string.get("CONTENT", "").strip()))
        text += next((hyphen.get("CONTENT", "") for hyphen in _all(line, "HYP")), "")
        if text:
            shapes = (shape.get("POINTS", "") for child in line if _tag(child) == "Shape" for shape in child)
            polygon = _points(next(shapes, ""), name, least=3) or _rectangle(line)
            lines.append(Line(name, text, polygon, _points(line.get("BASELINE", ""), name, least=2)))
    image = next((element.text or "" for element in _all(tree, "fileName")), "")
    return Page(image.strip(), size, tuple(lines))


def _rectangle(line: ElementTree.Element) -> tuple[Point, ...] | None:
    values = [float(line.get(name, 0)) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT")]
    left, top, width, height = values
    if not width or not height:
        return None
    return ((left, top), (left + width, top), (left + width, top + height), (left, top + height))


def _points(text: str, name: str, *, least: int) -> tuple[Point, ...] | None:
    """The points of "x,y x,y" or "x y x y"; None for fewer than `least` of them, or all in one place."""
    numbers = [part for part in re.split(r"[\s,]+", text) if part]
    try:
        values = [float(number) for number in numbers]
    except ValueError as error:
        raise ValueError(f"{name} has points that are no numbers: {text[:60]!r}") from error
    if len(values) % 2:
        values = []  # ALTO 2 and 3 have a baseline as one height: it says nothing that the line's box does not
    points = tuple(zip(values[::2], values[1::2], strict=True))
    return points if len(set(points)) >= least else None


def _tag(element: ElementTree.Element) -> str:
    """The name without its namespace, which has the format's version in it."""
    return element.tag.rpartition("}")[2]


def _all(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (found for found in element.iter() if _tag(found) == tag)


def _first(tree: ElementTree.Element, tag: str) -> ElementTree.Element:
    found = next(_all(tree, tag), None)
    if found is None:
        raise ValueError(f"it has no {tag}")
    return found
