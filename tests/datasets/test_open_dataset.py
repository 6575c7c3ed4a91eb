"""Every format, on the disk and inside archives: the right image for each text, and errors that say where."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.datasets.files import grey, pack, write
from tests.datasets.test_pages import PAGE
from trocr_jax.datasets import FORMATS, open_dataset
from trocr_jax.processing.image import ImageError

# Texts that formats treat with care, and their images' grey levels.
LINES = {"a.png": ("an apple", 10), "b.png": ('a "comma", here', 80), "c.png": ("naïve café", 150)}


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


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("tsv", "l.tsv", "a.png\tone\nb.png two\n", r"l\.tsv: line 2 has no tab"),
        ("tsv", "l.tsv", "path\ttext\tn\na.png\tone\n", r"l\.tsv: line 2 has 2 columns; 3 were expected"),
        ("tsv", "l.tsv", "file\ttranscript\tn\na.png\tone\t1\n", r"l\.tsv: line 1 has 3 columns, .* names no path"),
        ("unilm", "gt.txt", "a.png\tone\n\nb.png two\n", r"gt\.txt: line 3 has no tab"),
        ("csv", "l.csv", 'path,text\na.png,"one\n', r"l\.csv: line 2 is no CSV"),
        ("csv", "l.csv", "a.png,one,1\n", r"l\.csv: line 1 has 3 columns, of which the first line names no path"),
        ("jsonl", "l.jsonl", '{"path": "a.png", "text": "x"}\n{"path": "a.png"}\n', r"l\.jsonl: line 2 is no object"),
        ("jsonl", "l.jsonl", '{"path": "a.png", "text": 3}\n', r"l\.jsonl: line 1 has a path or a text that is not"),
        ("jsonl", "l.jsonl", '{"path": "a.png", "text": "\\ud800"}\n', r"l\.jsonl: line 1 has half of a surrogate"),
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
    write(tmp_path, {"spaces/labels.tsv": "a.png a text\n"})
    with pytest.raises(ValueError, match=r"known format \(its list is .*/spaces/labels\.tsv\)"):
        open_dataset(tmp_path / "spaces")
    write(tmp_path, {"train/metadata.csv": "path,text\na.png,x\n"})
    with pytest.raises(ValueError, match=r"has labels\.tsv and metadata\.csv; name the one to open"):
        open_dataset(tmp_path / "train")
    with pytest.raises(ValueError, match="format is 'xls'; choose one of unilm, tsv"):
        open_dataset(tmp_path, format="xls")
    with pytest.raises(ValueError, match=r"is a folder without labels\.tsv"):
        open_dataset(tmp_path, format="tsv")


def test_a_list_that_may_be_two_things_is_not_guessed(tmp_path):
    write(tmp_path, {"l.txt": "a.png\tx\n", "a.png": grey(3), "image/a.png": grey(9)})
    with pytest.raises(ValueError, match="may be unilm or tsv: say which"):
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


def test_names_in_archives_may_begin_with_slash_or_dot(tmp_path):
    path = tmp_path / "lines.zip"
    with Image.new("L", (30, 10)) as image, io.BytesIO() as content:
        image.save(content, "png")
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("/train/a.png", content.getvalue())
            file.writestr("./train/b.png", content.getvalue())
            file.writestr("./train/labels.tsv", "a.png\tone\nb.png\ttwo\n")
            file.writestr("../outside.png", b"")
    lines = open_dataset(f"{path}/train")
    assert [line.text for line in lines] == ["one", "two"]
    assert [line.open().size for line in lines] == [(30, 10)] * 2


def test_an_archive_written_anew_is_read_anew(tmp_path):
    folder = write(tmp_path / "set", {"labels.tsv": "a.png\told\n", "a.png": grey(3)})
    assert open_dataset(pack(folder, tmp_path / "l.zip"))[0].text == "old"
    write(folder, {"labels.tsv": "a.png\tanother\n"})
    assert open_dataset(pack(folder, tmp_path / "l.zip"))[0].text == "another"


BEGINNINGS = (
    PAGE.encode(),
    b"a.png\tone\nb.png\ttwo\n",
    b'path,text\na.png,"one, two"\n',
    b'{"path": "a.png", "text": "one"}\n',
    b"a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE\n",
    b"10,5,30,5,30,15,10,15,TOTAL\n",
)


@given(st.data())
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_of_any_kind_is_an_error_that_names_the_file(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(BEGINNINGS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=6)) or b"\0"
    name = data.draw(st.sampled_from(["d.xml", "d.txt", "lines.txt", "d.zip"]))
    write(tmp_path, {name: bytes(content), "a.png": grey(3), "page.png": grey(5, (100, 60))})
    for kind in (None, *FORMATS):
        try:
            examples = open_dataset(tmp_path / name, format=kind)
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(tmp_path) in message
            continue
        for example in examples:
            with contextlib.suppress(ImageError):
                assert example.open().mode == "RGB"
