"""Lines cut out of pages: IAM, SROIE, PAGE-XML and ALTO."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from tests.datasets.files import grey, pack, write
from trocr_jax.datasets import open_dataset
from trocr_jax.processing.image import ImageError

LINES_TXT = """\
#--- lines.txt ---------------------------------------------------------------#
# a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to|stop|Mr.|Gaitskell|from
a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to|stop
a01-000u-01 err 156 19 395 932 1850 105 nominating|,|any
r06-022-00 ok 202 10 455 734 1594 108 Mr.|Brown
"""
PAGE = """\
<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">
  <Page imageFilename="page.png" imageWidth="100" imageHeight="60"><TextRegion id="r">
    <TextLine id="l1"><Coords points="10,10 49,10 49,19 10,19"/>
      <TextEquiv index="1"><Unicode>worse</Unicode></TextEquiv>
      <TextEquiv index="0"><Unicode>first &amp; best</Unicode></TextEquiv>
      <Word id="w"><TextEquiv><Unicode>a word alone</Unicode></TextEquiv></Word></TextLine>
    <TextLine id="l2"><Coords points="0,0 0,0"/><Baseline points="10,38 90,38"/>
      <TextEquiv><Unicode>second</Unicode></TextEquiv></TextLine>
    <TextLine id="l3"><Coords points="1,1 9,1 9,9"/></TextLine>
    <TextLine id="l4"><Coords points="10,50 60,50 60,59 10,59"/><Baseline points="10,58 60,58"/>
      <TextEquiv><Unicode>third</Unicode></TextEquiv></TextLine>
  </TextRegion></Page>
</PcGts>
"""
ALTO = """\
<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#">
  <Description><MeasurementUnit>{unit}</MeasurementUnit>
    <sourceImageInformation><fileName>scans/page.png</fileName></sourceImageInformation></Description>
  <Layout><Page WIDTH="{width}" HEIGHT="{height}"><PrintSpace><TextBlock>
    <TextLine ID="l1" HPOS="{x}" VPOS="{x}" WIDTH="{w}" HEIGHT="{x}" BASELINE="19">
      <String CONTENT="first"/><SP/><String CONTENT="line"/><HYP CONTENT="-"/></TextLine>
    <TextLine ID="l2" HPOS="0" VPOS="0" WIDTH="1" HEIGHT="1"><Shape><Polygon POINTS="{x} {x} {w} {x} {w} {w}"/></Shape>
      <String CONTENT="second"/></TextLine>
    <TextLine ID="l3" BASELINE="{x} {b} {e} {b}"><String CONTENT="third"/></TextLine>
    <TextLine ID="l4" BASELINE="{x},{c} {e},{c}"><String CONTENT="fourth"/></TextLine>
  </TextBlock></PrintSpace></Page></Layout>
</alto>
"""


def test_iam(tmp_path):
    image = {"lines/a01/a01-000u/a01-000u-01.png": grey(7), "lines/r06/r06-022/r06-022-00.png": grey(9)}
    ids = {"tasks/testset.txt": "# test\nr06-022-00\na01-000u\n"}
    folder = write(tmp_path / "iam", {"ascii/lines.txt": LINES_TXT, **image, **ids})
    whole = [example.text for example in open_dataset(folder)]
    assert whole == ["A MOVE to stop", "nominating , any", "Mr. Brown"]
    assert [example.text for example in open_dataset(folder / "ascii/lines.txt")] == whole
    for place in (folder, pack(folder, tmp_path / "iam.zip")):
        test = open_dataset(f"{place}/tasks/testset.txt")
        assert [example.text for example in test] == [whole[2], whole[0], whole[1]]
        assert [np.asarray(example.open()).max() for example in (test[0], test[2])] == [9, 7]
        with pytest.raises(ImageError, match=r"lines/a01/a01-000u/a01-000u-00\.png does not exist"):
            test[1].open()
    write(folder, {"tasks/testset.txt": "r06-022-00\nr06-023-00\n"})
    with pytest.raises(ValueError, match=r"testset\.txt: line 2: .*no 'r06-023-00'"):
        open_dataset(folder / "tasks/testset.txt")
    write(folder, {"ascii/lines.txt": LINES_TXT + "a01-000u-02 ok 1 2\n"})
    with pytest.raises(ValueError, match=r"lines\.txt: line 6 "):
        open_dataset(folder)


def receipt():
    levels = np.full((40, 60), 255, np.uint8)
    levels[5:15, 10:30] = 40
    levels[20:30, 10:30] = 90
    return Image.fromarray(levels)


def test_sroie(tmp_path):
    boxes = "10,5,30,5,30,15,10,15,TOTAL, RM 9.00 \r\n\r\n10,20,30,21,30,30,10,29,CASH\n4,4,4,9,4,9,4,4,NO AREA\n"
    folder = write(tmp_path, {"r/X1.jpg": b"", "r/X1.png": receipt(), "r/X1.txt": boxes, "r/other.txt": "no boxes"})
    (folder / "r/X1.jpg").unlink()
    examples = open_dataset(folder / "r")
    assert [example.text for example in examples] == ["TOTAL, RM 9.00", "CASH"]
    assert [np.unique(np.asarray(example.open())).tolist() for example in examples] == [[40], [90]]
    assert examples[0].open().size == (20, 10)
    assert examples[1].name.endswith("X1.txt:3")
    write(folder, {"r/X1.txt": boxes + "1,2,3 no\n"})
    with pytest.raises(ValueError, match=r"X1\.txt: line 5 has no eight coordinates"):
        open_dataset(folder / "r")
    write(folder, {"r/X1.txt": "900,5,930,5,930,15,900,15,FAR\n"})
    with pytest.raises(ImageError, match="outside"):
        open_dataset(folder / "r")[0].open()


def page():
    """White paper of 100x60 with a grey bar for each line, and another's black just outside the first polygon."""
    levels = np.full((60, 100), 255, np.uint8)
    levels[12:18, 15:30] = 40
    levels[20, :] = 0
    levels[30:38, 15:80] = 90
    levels[52:57, 15:55] = 120
    return Image.fromarray(levels)


def test_page_xml(tmp_path):
    folder = write(tmp_path / "p", {"page/one.xml": PAGE, "page.png": page(), "mets.xml": "<mets/>"})
    for place in (folder, folder / "page/one.xml", pack(folder, tmp_path / "p.zip")):
        lines = open_dataset(place)
        assert [line.text for line in lines] == ["first & best", "second", "third"]
        first, second, third = (np.asarray(line.open())[:, :, 0] for line in lines)
        assert set(np.unique(first)) == {40, 255}
        # From the baseline at 38, of which the next is 20 lower, 15 up and 5 down.
        assert second.shape == (21, 81)
        assert (second == 90).sum() == 8 * 65
        assert third.shape == (10, 51)
        assert lines[1].name.endswith("one.xml#l2")


def test_page_xml_of_2010_has_an_element_for_each_point(tmp_path):
    def elements(match):
        points = (point.split(",") for point in match[2].split())
        return f"<{match[1]}>" + "".join(f'<Point x="{x}" y="{y}"/>' for x, y in points) + f"</{match[1]}>"

    older = re.sub(r'<(Coords|Baseline) points="([^"]+)"/>', elements, PAGE)
    assert older.count("<Point ") == 17
    write(tmp_path, {"new.xml": PAGE, "old.xml": older, "page.png": page()})
    new, old = (open_dataset(tmp_path / name) for name in ("new.xml", "old.xml"))
    assert [line.open().tobytes() for line in old] == [line.open().tobytes() for line in new]


def test_alto_of_several_pages_is_refused(tmp_path):
    two = ALTO.replace("</Layout>", '<Page WIDTH="9" HEIGHT="9"/></Layout>').replace("{unit}", "pixel")
    write(tmp_path, {"two.xml": re.sub(r"\{\w\w*\}", "5", two), "page.png": page()})
    with pytest.raises(ValueError, match=r"two\.xml: it describes 2 pages but names one image"):
        open_dataset(tmp_path / "two.xml")


def test_lines_of_columns_side_by_side_have_the_spacing_of_their_own(tmp_path):
    lines = [
        f'<TextLine id="c{column}r{row}"><Baseline points="{x},{y} {x + 35},{y}"/>'
        f"<TextEquiv><Unicode>c{column}r{row}</Unicode></TextEquiv></TextLine>"
        for column, x in enumerate((5, 55))
        for row in range(3)
        for y in (18 + 20 * row + 3 * column,)
    ]
    content = f'<PcGts><Page imageFilename="page.png" imageWidth="100" imageHeight="80">{"".join(lines)}</Page></PcGts>'
    write(tmp_path, {"one.xml": content, "page.png": Image.new("L", (100, 80), 255)})
    # 15 up and 5 down of 20, as where there is one column.
    assert {line.open().size for line in open_dataset(tmp_path / "one.xml")} == {(36, 21)}


def test_a_page_of_another_size_is_scaled_and_of_other_proportions_refused(tmp_path):
    folder = write(tmp_path, {"one.xml": PAGE, "page.png": page().resize((200, 120), Image.Resampling.NEAREST)})
    assert open_dataset(folder / "one.xml")[0].open().size == (79, 19)
    write(folder, {"two.xml": PAGE.replace("page.png", "other.png"), "other.png": page().resize((200, 100))})
    with pytest.raises(ImageError, match=r"drawn on a page of 100x60, but .*other\.png has 200x100"):
        open_dataset(folder / "two.xml")[0].open()


@pytest.mark.parametrize(("unit", "scale"), [("pixel", 1), ("mm10", 5)])
def test_alto(tmp_path, unit, scale):
    numbers = {"width": 100, "height": 60, "x": 10, "w": 39, "b": 38, "c": 58, "e": 90}
    alto = ALTO.format(unit=unit, **{name: number * scale for name, number in numbers.items()})
    write(tmp_path, {"one.xml": alto, "page.png": page()})
    lines = open_dataset(tmp_path)
    assert [line.text for line in lines] == ["first line-", "second", "third", "fourth"]
    first = lines[0].open()
    assert first.size == (40, 11)
    assert (np.asarray(first)[:, :, 0] == 40).sum() == 6 * 15
    # Of the triangle's square the part below its diagonal is paper, though the page has ink there.
    second = np.asarray(lines[1].open())[:, :, 0]
    assert second.shape == (30, 30)
    assert (second[25, 26:] == 90).all()
    assert (second[25, 5:24] == 255).all()
    third = np.asarray(lines[2].open())[:, :, 0]
    assert third.shape == (21, 81)
    assert (third == 90).sum() == 8 * 65


@pytest.mark.parametrize(
    "dtd",
    [
        '<!DOCTYPE PcGts SYSTEM "http://127.0.0.1:9/a.dtd">',
        '<!DOCTYPE PcGts [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE PcGts [<!ENTITY a "aaaa"><!ENTITY x "&a;&a;&a;&a;">]>',
    ],
)
def test_nothing_outside_an_xml_file_is_read(tmp_path, dtd):
    xml = PAGE.replace("<PcGts", dtd + "<PcGts", 1).replace("second", "&x;")
    write(tmp_path, {"one.xml": xml, "page.png": page()})
    for kind in (None, "page"):
        with pytest.raises(ValueError, match=r"one\.xml: it has a document type declaration"):
            open_dataset(tmp_path / "one.xml", format=kind)
