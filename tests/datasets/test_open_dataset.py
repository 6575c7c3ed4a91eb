"""Every format, on the disk and inside archives: the right image for each text, and errors that say where."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from trocr_jax.datasets import FORMATS, open_dataset
from trocr_jax.processing.image import ImageError

# Texts that formats treat with care, and their images' grey levels.
LINES = {"a.png": ("an apple", 10), "b.png": ('a "comma", here', 80), "c.png": ("naïve café", 150)}
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
  </TextBlock></PrintSpace></Page></Layout>
</alto>
"""


def write(folder, contents):
    """Files of these names: text, bytes, or an image."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pack(folder, archive):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    return archive


def grey(level, size=(30, 12)):
    return Image.new("L", size, level)


def images(under=""):
    return {f"{under}{name}": grey(level) for name, (_, level) in LINES.items()}


def listed(to_line, under="", header=""):
    return header + "".join(to_line(f"{under}{name}", text) + "\n" for name, (text, _) in LINES.items())


def tabs(path, text):
    return f"{path}\t{text}"


def quoted(path, text):
    doubled = text.replace('"', '""')
    return f'{path},3,"{doubled}"'


# Format -> (what to open, the files of a dataset with LINES)
LISTS = {
    "unilm": ("gt_train.txt", {"gt_train.txt": listed(tabs), **images("image/")}),
    "tsv": ("some.tsv", {"some.tsv": listed(tabs, "x/"), **images("x/")}),
    "tsv with names": (
        "some.tsv",
        {"some.tsv": listed(lambda p, t: f"{t}\t1\t{p}", header="Text\tn\tfile_name\n"), **images()},
    ),
    "tsv in a folder": ("", {"labels.tsv": listed(tabs), "sources.tsv": "a.png\tb\n", **images()}),
    "csv": ("some.csv", {"some.csv": listed(quoted, header="image,writer,label\r\n"), **images()}),
    "csv without names": (
        "some.csv",
        {"some.csv": 'a.png,an apple\nb.png,"a ""comma"", here"\nc.png,naïve café\n', **images()},
    ),
    "jsonl": ("", {"metadata.jsonl": listed(lambda p, t: json.dumps({"file_name": p, "text": t})), **images()}),
}


def check_lines(examples):
    assert [example.text for example in examples] == [text for text, _ in LINES.values()]
    assert [np.asarray(example.open()).mean() for example in examples] == [level for _, level in LINES.values()]


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_told_and_read(tmp_path, kind):
    opened, contents = LISTS[kind]
    folder = write(tmp_path / "set", contents)
    examples = open_dataset(folder / opened)
    check_lines(examples)
    assert examples[0].name.startswith(str(folder))
    check_lines(open_dataset(folder / opened, format=kind.split(" ")[0]))


@pytest.mark.parametrize("kind", LISTS)
def test_lists_in_archives(tmp_path, kind):
    opened, contents = LISTS[kind]
    archive = pack(write(tmp_path / "set", contents), tmp_path / "lines.zip")
    check_lines(open_dataset(f"{archive}/set/{opened}"))
    without_top = open_dataset(f"{archive}/{opened}")
    check_lines(without_top)
    assert without_top[0].name.startswith(f"{archive}/set/")
    check_lines(pickle.loads(pickle.dumps(without_top)))


def test_unilm_cuts_trailing_spaces_and_tsv_does_not(tmp_path):
    write(tmp_path, {"gt.txt": "a.png\tword \t\n", "b.tsv": "image/a.png\tword \t\n", **images("image/")})
    assert open_dataset(tmp_path / "gt.txt")[0].text == "word"
    assert open_dataset(tmp_path / "b.tsv")[0].text == "word \t"


def test_iam(tmp_path):
    image = {"lines/a01/a01-000u/a01-000u-01.png": grey(7), "lines/r06/r06-022/r06-022-00.png": grey(9)}
    ids = {"tasks/testset.txt": "r06-022-00\na01-000u\n"}
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


def test_a_page_of_another_size_is_scaled_and_of_other_proportions_refused(tmp_path):
    folder = write(tmp_path, {"one.xml": PAGE, "page.png": page().resize((200, 120), Image.Resampling.NEAREST)})
    assert open_dataset(folder / "one.xml")[0].open().size == (79, 19)
    write(folder, {"two.xml": PAGE.replace("page.png", "other.png"), "other.png": page().resize((200, 100))})
    with pytest.raises(ImageError, match=r"drawn on a page of 100x60, but .*other\.png has 200x100"):
        open_dataset(folder / "two.xml")[0].open()


@pytest.mark.parametrize(("unit", "scale"), [("pixel", 1), ("mm10", 5)])
def test_alto(tmp_path, unit, scale):
    alto = ALTO.format(unit=unit, width=100 * scale, height=60 * scale, x=10 * scale, w=39 * scale)
    write(tmp_path, {"one.xml": alto, "page.png": page()})
    lines = open_dataset(tmp_path)
    assert [line.text for line in lines] == ["first line-", "second"]
    first = lines[0].open()
    assert first.size == (40, 11)
    assert (np.asarray(first)[:, :, 0] == 40).sum() == 6 * 15


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


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("tsv", "l.tsv", "a.png\tone\nb.png two\n", r"l\.tsv: line 2 has no tab"),
        ("tsv", "l.tsv", "path\ttext\tn\na.png\tone\n", r"l\.tsv: line 2 has 2 columns; 3 were expected"),
        ("unilm", "gt.txt", "a.png\tone\n\nb.png two\n", r"gt\.txt: line 3 has no tab"),
        ("csv", "l.csv", 'path,text\na.png,"one\n', r"l\.csv: line 2 is no CSV"),
        ("csv", "l.csv", "a.png,one,1\n", r"l\.csv: line 1 has 3 columns, of which the first line names no path"),
        ("jsonl", "l.jsonl", '{"path": "a.png", "text": "x"}\n{"path": "a.png"}\n', r"l\.jsonl: line 2 is no object"),
        ("jsonl", "l.jsonl", '{"path": "a.png", "text": 3}\n', r"l\.jsonl: line 1 has a path or a text that is not"),
        ("jsonl", "l.jsonl", "[\n", r"l\.jsonl: line 1 is no JSON"),
        ("tsv", "l.tsv", b"a.png\tone\nb.png\t\xff\n", r"l\.tsv: line 2 is not UTF-8"),
        (
            "tsv",
            "l.tsv",
            "z.png\tone\ny.png\ttwo\n",
            r"l\.tsv: none of its 2 images is there, the first being .*z\.png",
        ),
        ("page", "p.xml", "<PcGts><Page></PcGts>", r"p\.xml: mismatched tag: line 1"),
        ("page", "p.xml", PAGE.replace("10,10", "10,x"), r"p\.xml: .*#l1 has points that are no numbers"),
        ("page", "p.xml", "<PcGts><Page/></PcGts>", r"p\.xml: its 1 pages hold no line with a text"),
        ("alto", "p.xml", "<alto/>", r"p\.xml: it has no Page"),
    ],
)
def test_errors_name_file_and_line(tmp_path, kind, name, content, message):
    write(tmp_path, {name: content, "a.png": grey(3), "image/a.png": grey(3)})
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path / name, format=kind)


def test_where_no_format_fits_each_says_why(tmp_path):
    write(
        tmp_path, {"notes.md": "# Notes\n", "train/labels.tsv": "a.png\tx\n", "train/a.png": grey(3), "empty.tsv": ""}
    )
    with pytest.raises(ValueError, match="no dataset of a known format") as raised:
        open_dataset(tmp_path / "notes.md")
    assert all(kind in str(raised.value) for kind in FORMATS)
    with pytest.raises(ValueError, match=r"it has train, each of which may be one, as .*/train"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="it is empty"):
        open_dataset(tmp_path / "empty.tsv")
    write(tmp_path, {"train/metadata.csv": "path,text\na.png,x\n"})
    with pytest.raises(ValueError, match=r"has labels\.tsv and metadata\.csv; name the one to open"):
        open_dataset(tmp_path / "train")
    with pytest.raises(ValueError, match="format is 'xls'; choose one of unilm, tsv"):
        open_dataset(tmp_path, format="xls")
    with pytest.raises(ValueError, match=r"is a folder without labels\.tsv"):
        open_dataset(tmp_path, format="tsv")


def test_a_list_that_may_be_two_things_is_not_guessed(tmp_path):
    write(tmp_path, {"l.txt": "a.png\tx\n", "a.png": grey(3), "image/a.png": grey(9)})
    with pytest.raises(ValueError, match="may be unilm or tsv: pass format="):
        open_dataset(tmp_path / "l.txt")
    assert np.asarray(open_dataset(tmp_path / "l.txt", format="unilm")[0].open()).max() == 9


def test_one_bad_image_stops_no_other(tmp_path):
    contents = {"labels.tsv": listed(tabs), **images(), "b.png": b"\x89PNG broken"}
    folder = write(tmp_path / "set", contents)
    (folder / "c.png").unlink()
    for place in (folder, pack(folder, tmp_path / "lines.zip")):
        good, broken, missing = open_dataset(place)
        assert np.asarray(good.open()).max() == 10
        with pytest.raises(ImageError, match=r"set/b\.png is not an image"):
            broken.open()
        with pytest.raises(ImageError, match=r"set/c\.png does not exist"):
            missing.open()


def test_archives_that_are_damaged_or_lack_what_is_asked_for(tmp_path):
    archive = pack(write(tmp_path / "set", {"train/labels.tsv": listed(tabs), **images("train/")}), tmp_path / "l.zip")
    with pytest.raises(FileNotFoundError, match=r"l\.zip has no test; it has train"):
        open_dataset(f"{archive}/test")
    with pytest.raises(FileNotFoundError, match=r"nothing\.zip/a does not exist"):
        open_dataset(tmp_path / "nothing.zip/a")
    content = archive.read_bytes()
    at = content.index(b"IDAT")  # inside the first image: its checksum no longer fits
    (tmp_path / "m.zip").write_bytes(content[: at + 8] + b"\x00\x00" + content[at + 10 :])
    first, second, _ = open_dataset(tmp_path / "m.zip/train")
    with pytest.raises(ImageError, match=r"a\.png cannot be read: Bad CRC-32"):
        first.open()
    assert np.asarray(second.open()).max() == 80


def test_an_archive_written_anew_is_read_anew(tmp_path):
    folder = write(tmp_path / "set", {"labels.tsv": "a.png\told\n", "a.png": grey(3)})
    assert open_dataset(pack(folder, tmp_path / "l.zip"))[0].text == "old"
    write(folder, {"labels.tsv": "a.png\tanother\n"})
    assert open_dataset(pack(folder, tmp_path / "l.zip"))[0].text == "another"
