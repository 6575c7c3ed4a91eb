from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from PIL import Image, ImageDraw, ImageFont

import trocr_jax
from tests.conftest import SAMPLES
from trocr_jax import cli
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.results import Recognition

WORDS = {"a.png": "TOTAL 39", "b.png": "12.50", "c.png": "The quick brown fox"}
pytestmark = pytest.mark.usefixtures("cache_home")


def draw(path, text):
    font = ImageFont.load_default(24)
    _, _, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (right + 16, bottom + 12), "white")
    ImageDraw.Draw(image).text((8, 4), text, font=font, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return str(path)


@pytest.fixture(scope="module")
def ocr():
    return trocr_jax.TrOCR.from_pretrained()


@pytest.fixture
def images(tmp_path):
    return [draw(tmp_path / "images" / name, text) for name, text in WORDS.items()]


@pytest.fixture
def read(capsys):
    """Runs `trocr-jax read` in this process -> (exit status, stdout, stderr)."""

    def run(*arguments):
        status = cli.main(["read", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


class Stub:
    """Stands in for the recogniser where reading is not the point: an image's text is its path, reversed."""

    def __init__(self):
        self.calls = []

    def from_pretrained(self, source=None, **options):
        self.calls.append(("load", source, options))
        return self

    def stream(self, paths, **options):
        self.calls.append(("stream", options))
        for path in paths:
            yield Recognition(text=path[::-1], source=path)


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    monkeypatch.setattr("trocr_jax.recognizer.TrOCR", made)
    return made


def subprocess_environment(cache):
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}


def test_one_image_prints_its_text_alone(read, images, ocr):
    assert read(images[0]) == (0, f"{ocr(images[0]).text}\n", "")


def test_several_images_print_path_and_text_in_the_order_given(read, images, ocr):
    given = [images[2], images[0], images[1], images[0]]
    expected = "".join(f"{path}: {ocr(path).text}\n" for path in given)
    assert read(*given, "--batch-size", 2) == (0, expected, "")


def test_the_samples_are_read(read):
    samples = {"price.png": "RM3.01", "printed.png": "such a structure."}
    if not all((SAMPLES / name).is_file() for name in samples):
        pytest.skip("needs notebooks/samples")
    expected = "".join(f"{SAMPLES / name}\t{text}\n" for name, text in samples.items())
    assert read("--format", "tsv", *(SAMPLES / name for name in samples)) == (0, expected, "")


def test_jsonl_is_the_recognition(read, images, ocr):
    status, out, err = read("--format", "jsonl", "--batch-size", 2, *images)
    found = [json.loads(line) for line in out.splitlines()]
    expected = ocr(images, batch_size=2)
    assert (status, err) == (0, "")
    assert found == [result.to_dict() for result in expected]
    assert [Recognition.from_dict(content) for content in found] == expected
    assert [content["source"] for content in found] == images


def test_search_options_are_followed(read, images, ocr):
    status, out, err = read("--format", "jsonl", "--num-beams", 2, "--max-new-tokens", 3, images[2])
    assert (status, err) == (0, "trocr-jax: texts cut off at the length limit (--max-new-tokens): 1\n")
    assert json.loads(out) == ocr(images[2], num_beams=2, max_new_tokens=3).to_dict()
    assert json.loads(out)["finish_reason"] == "length"
    assert json.loads(out)["sequence_score"] is not None


def test_boxes_are_in_jsonl(read, images, ocr):
    status, out, _ = read("--format", "jsonl", "--boxes", images[2])
    assert status == 0
    assert json.loads(out) == ocr(images[2], boxes=True).to_dict()
    assert all(len(word["box"]) == 4 and word["char_boxes"] is None for word in json.loads(out)["words"])
    status, out, _ = read("--format", "jsonl", "--char-boxes", images[2])
    assert json.loads(out) == ocr(images[2], boxes="char").to_dict()


def test_boxes_that_would_not_be_seen_end_with_status_2(read, images):
    for option in ("--boxes", "--char-boxes"):
        status, out, err = read(option, images[0])
        assert (status, out) == (2, "")
        assert "--format jsonl" in err


def test_overlays_are_saved_and_named_after_their_images(read, images, ocr, tmp_path):
    other = draw(tmp_path / "other" / "a.png", "12.50")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    status, out, err = read("--save-overlay", tmp_path / "new" / "seen", images[0], broken, images[1], other)
    assert (status, err.count("\n")) == (1, 1)
    assert out == "".join(f"{path}: {ocr(path).text}\n" for path in (images[0], images[1], other))
    saved = {path.name: path for path in (tmp_path / "new" / "seen").iterdir()}
    assert sorted(saved) == ["a-2.overlay.png", "a.overlay.png", "b.overlay.png"]
    for name, path in (("a.overlay.png", images[0]), ("a-2.overlay.png", other)):
        with Image.open(saved[name]) as picture:
            assert picture.format == "PNG"
            assert picture.tobytes() == ocr(path, boxes=True).draw().tobytes()
    # Once more into the same folder: nothing is added.
    assert read("--save-overlay", tmp_path / "new" / "seen", images[0])[0] == 0
    assert len(list((tmp_path / "new" / "seen").iterdir())) == 3


def test_overlays_that_cannot_be_saved_lose_no_text(read, images, monkeypatch, tmp_path):
    status, out, err = read("--save-overlay", images[0], images[1])  # a file, not a folder
    assert (status, out) == (2, "")
    told = f"{images[0]} is no folder and cannot be made one (File exists); choose another for --save-overlay"
    assert err == f"trocr-jax: {told}\n"
    folder = tmp_path / "seen"
    (folder / "a.overlay.png").mkdir(parents=True)  # in the way of the first picture
    status, out, err = read("--save-overlay", folder, *images[:2])
    assert status == 1
    assert out.count("\n") == 2
    assert err.startswith(f"trocr-jax: {images[0]} cannot be drawn")
    assert sorted(path.name for path in folder.iterdir()) == ["a.overlay.png", "b.overlay.png"]


def test_texts_obey_the_constraints_asked_for(read, images, ocr, tmp_path):
    (tmp_path / "words.txt").write_text("RM3.01\nRM8.07\nfish\n12\n", encoding="utf-8")
    price = str(SAMPLES / "price.png")
    assert read("--lexicon", str(tmp_path / "words.txt"), price)[:2] == (0, "RM3.01\n")
    assert read("--lexicon", str(tmp_path / "words.txt"), "--pattern", "[0-9]+", price)[:2] == (0, "12\n")
    status, out, _ = read("--allow", "fish ", price)
    assert status == 0
    assert set(out) <= set("fish \n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pattern", "[0-9"), "pattern '[0-9' is no regular expression"),
        (("--lexicon", "missing.txt"), "missing.txt"),
        (("--allow", ""), "characters are ''"),
        (("--allow", "ab", "--pattern", "c"), "no text satisfies"),
    ],
)
def test_constraints_that_cannot_be_end_with_status_2(read, images, arguments, message):
    status, out, err = read(*arguments, images[0])
    assert (status, out) == (2, "")
    assert message in err


def test_a_model_folder_is_used(read, images, ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "model")
    assert read("--model", tmp_path / "model", images[0]) == (0, f"{ocr(images[0]).text}\n", "")


def test_options_reach_the_recogniser(read, stub, images):
    assert read(images[0])[0] == 0
    assert read("--model", "some/folder", "--dtype", "bfloat16", "--num-beams", 4, "--batch-size", 3, images[0])[0] == 0
    assert stub.calls == [
        ("load", None, {"dtype": "auto"}),
        ("stream", {"batch_size": None, "skip_blank": False}),
        ("load", "some/folder", {"dtype": "bfloat16"}),
        ("stream", {"batch_size": 3, "skip_blank": False, "num_beams": 4}),
    ]
    stub.calls.clear()
    assert read("--preset", "fairseq", "--reject-below", 0.5, "--skip-blank", images[0])[0] == 0
    expected = {"batch_size": None, "skip_blank": True, "preset": "fairseq", "reject_below": 0.5}
    assert stub.calls[1] == ("stream", expected)
    assert read("--format", "jsonl", "--char-boxes", images[0])[0] == 0
    assert stub.calls[-1] == ("stream", {"batch_size": None, "skip_blank": False, "boxes": "char"})


@pytest.mark.usefixtures("stub")
def test_tsv_escapes_what_would_break_its_lines(read, tmp_path):
    names = ["tab\there.png", "line\nbreak.png", "back\\slash.png", "return\r.png", "\\t.png"]
    paths = [draw(tmp_path / name, "1") for name in names]
    status, out, _ = read("--format", "tsv", *paths)
    rows = [line.split("\t") for line in out.removesuffix("\n").split("\n")]
    assert status == 0
    assert [row[0] for row in rows] == [
        f"{tmp_path}/{name}"
        for name in (r"tab\there.png", r"line\nbreak.png", r"back\\slash.png", r"return\r.png", r"\\t.png")
    ]

    def unescaped(field):
        marks = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
        characters = iter(field)
        return "".join(marks[next(characters)] if c == "\\" else c for c in characters)

    assert [[unescaped(field) for field in row] for row in rows] == [[path, path[::-1]] for path in paths]


@pytest.mark.usefixtures("stub")
def test_jsonl_keeps_one_line_an_image_and_every_script(read, tmp_path):
    paths = [draw(tmp_path / name, "1") for name in ("line\nbreak.png", "žluťoučký кот 日本.png")]
    _, out, _ = read("--format", "jsonl", *paths)
    assert [json.loads(line)["source"] for line in out.splitlines()] == paths
    assert "日本" in out


@pytest.mark.usefixtures("stub")
def test_a_folder_is_read_recursively_and_sorted(read, tmp_path):
    folder = tmp_path / "scans"
    kept = [draw(folder / name, "1") for name in ("b.png", "a/z.PNG", "a/b.jpeg", "c/d/e.tif", "Z.webp")]
    for name in ("notes.txt", "a/b.json", "page.pdf", "png"):
        (folder / name).write_text("x")
    (folder / "folder.png").mkdir()
    status, out, _ = read("--format", "tsv", folder)
    assert status == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == sorted(kept)


@pytest.mark.usefixtures("stub")
def test_a_quoted_glob_is_expanded(read, tmp_path, monkeypatch):
    for name in ("l2.png", "l1.png", "deep/er/l3.png", "other.png"):
        draw(tmp_path / name, "1")
    monkeypatch.chdir(tmp_path)
    assert [line.split(": ")[0] for line in read("l*.png")[1].splitlines()] == ["l1.png", "l2.png"]
    found = [line.split(": ")[0] for line in read("**/l?.png", "other.png")[1].splitlines()]
    assert found == ["deep/er/l3.png", "l1.png", "l2.png", "other.png"]


@pytest.mark.usefixtures("stub")
def test_a_file_whose_name_looks_like_a_glob_is_that_file(read, tmp_path):
    path = draw(tmp_path / "scan[1].png", "1")
    draw(tmp_path / "scan1.png", "1")
    assert read(path) == (0, f"{path[::-1]}\n", "")


@pytest.mark.usefixtures("stub")
def test_paths_come_from_stdin(read, tmp_path, monkeypatch):
    paths = [draw(tmp_path / "in" / name, "1") for name in ("c.png", "a b.png", "b.png")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{paths[0]}\n\n{paths[1]}\r\n{tmp_path / 'in'}\n{paths[2]}"))
    first = draw(tmp_path / "first.png", "1")
    status, out, _ = read("--format", "tsv", first, "-")
    assert status == 0
    expected = [first, paths[0], paths[1], *sorted(paths), paths[2]]
    assert [line.split("\t")[0] for line in out.splitlines()] == expected


@pytest.mark.usefixtures("stub")
def test_one_path_on_stdin_comes_with_its_path(read, images, monkeypatch):
    # How many there will be is not known, so the form of a line must not depend on it.
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images[0]}\n"))
    assert read("-") == (0, f"{images[0]}: {images[0][::-1]}\n", "")


@pytest.mark.usefixtures("stub")
def test_results_are_printed_while_paths_still_arrive(monkeypatch, capsys):
    seen = []

    def arriving():
        for name in ("a.png", "b.png"):
            seen.append(capsys.readouterr().out)
            yield f"{name}\n"

    monkeypatch.setattr(sys, "stdin", arriving())
    assert cli.main(["read", "-"]) == 0
    assert seen == ["", "a.png: gnp.a\n"]


def test_a_pattern_on_stdin_that_matches_nothing_is_reported(read, images, tmp_path, monkeypatch):
    absent = tmp_path / "scan[1].png"
    draw(tmp_path / "scan2.png", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{absent}\n{images[0]}\n"))
    status, out, err = read("-", "--format", "tsv")
    assert (status, err) == (1, f"trocr-jax: {absent} does not exist\n")
    assert out.split("\t")[0] == images[0]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_no_path_on_stdin_is_no_image(read, monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.StringIO(content))
    assert read("-") == (2, "", "trocr-jax: no images in -\n")


@pytest.mark.usefixtures("stub")
def test_jsonl_is_unicode_whatever_a_path_is(monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9.png\n"), "utf-8"))
    assert cli.main(["read", "--format", "jsonl", "-"]) == 0
    assert json.loads(capsysbinary.readouterr().out.decode())["source"] == "caf\udce9.png"


@pytest.mark.usefixtures("stub")
def test_names_that_are_not_unicode_pass_through(monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9.png\n"), "utf-8"))
    assert cli.main(["read", "--format", "tsv", "-"]) == 0
    assert capsysbinary.readouterr().out.split(b"\t")[0] == b"caf\xe9.png"


def test_broken_images_are_reported_and_the_rest_is_read(read, images, ocr, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pathlib.Path(images[0]).read_bytes()[:100])
    absent = tmp_path / "absent.png"
    status, out, err = read("--batch-size", 2, images[0], broken, absent, images[1])
    assert status == 1
    assert out == "".join(f"{path}: {ocr(path).text}\n" for path in images[:2])
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"trocr-jax: {broken} cannot be read")
    assert lines[1] == f"trocr-jax: {absent} does not exist"


def test_jsonl_holds_errors_in_their_place(read, images, tmp_path):
    absent = str(tmp_path / "absent.png")
    status, out, err = read("--format", "jsonl", absent, images[0])
    first, second = (json.loads(line) for line in out.splitlines())
    assert status == 1
    assert (first["source"], first["finish_reason"], first["text"]) == (absent, "error", "")
    assert first["error"] in err
    assert (second["source"], second["error"]) == (images[0], None)


def test_a_single_broken_image_prints_nothing(read, tmp_path):
    absent = tmp_path / "absent.png"
    assert read(absent) == (1, "", f"trocr-jax: {absent} does not exist\n")


def test_a_name_that_is_too_long_is_one_broken_image(read, images, ocr, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'x' * 5000}.png\n{images[0]}\n"))
    status, out, err = read("-")
    assert (status, out) == (1, f"{images[0]}: {ocr(images[0]).text}\n")
    assert "cannot be read" in err


@pytest.mark.parametrize("model", ["no-such-folder", "no/such/folder", "org/not-in-the-cache"])
def test_an_unknown_model_ends_with_status_2(read, images, model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    status, out, err = read("--model", model, images[0])
    assert (status, out) == (2, "")
    assert err.startswith("trocr-jax: ")
    assert model in err
    assert err.count("\n") == 1


def test_a_damaged_model_ends_with_status_2(read, images, ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    status, out, err = read("--model", tmp_path / "model", images[0])
    assert (status, out) == (2, "")
    assert "config.json is not valid JSON" in err


def test_no_images_end_with_status_2(read, tmp_path):
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", tmp_path / "*.png"):
        assert read(given) == (2, "", f"trocr-jax: no images in {given}\n")


def test_a_glob_that_matches_nothing_is_reported_beside_others(read, images, ocr, tmp_path):
    status, out, err = read(images[0], tmp_path / "nope*.png")
    assert (status, out) == (1, f"{images[0]}: {ocr(images[0]).text}\n")
    assert "nope*.png" in err


def test_overlays_are_not_read_again(read, images, tmp_path):
    folder = pathlib.Path(images[0]).parent
    _, before, _ = read(folder)
    read(folder, "--save-overlay", folder)
    assert len(list(folder.glob("*.overlay.png"))) == len(images)
    assert read(folder)[1] == before


def test_search_options_that_cannot_be_followed_end_with_status_2(read, images):
    status, out, err = read("--max-new-tokens", 100_000, images[0])
    assert (status, out) == (2, "")
    assert err.startswith("trocr-jax: ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["read"], ["write", "a.png"], ["read", "--num-beams", "0", "a.png"], ["read", "--batch-size", "x", "a.png"],
     ["read", "--reject-below", "2", "a.png"], ["read", "--reject-below", "x", "a.png"],
     ["read", "--preset", "none", "a.png"], ["read", "--format", "xml", "a.png"], ["read", "--dtype", "int4", "a.png"]],
    ids=" ".join,
)  # fmt: skip
def test_mistakes_in_the_arguments_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert "usage: trocr-jax" in err


@pytest.mark.parametrize("arguments", [["read", "--num", "4", "a.png"], ["data", "check", "--plo", "a.png", "lines"]])
def test_options_have_their_whole_names(arguments, capsys):
    # A part of a name would mean another option, or none, once there is a second that begins so.
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    told = capsys.readouterr().err
    assert f"unrecognized arguments: {next(x for x in arguments if x.startswith('--'))}" in told
    assert "meant?" in told
    assert f"usage: trocr-jax {arguments[0]} " in told


def test_version_and_help(capsys):
    for arguments in (["--version"], ["--help"], ["read", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        out, err = capsys.readouterr()
        assert err == ""
        if arguments == ["--version"]:
            assert out == f"trocr-jax {trocr_jax.__version__}\n"
        else:
            assert out.startswith("usage: trocr-jax")
    assert "trocr-jax read line.png" in out
    assert all(option in out for option in ("--model", "--num-beams", "--max-new-tokens", "--dtype", "--format"))


def test_an_interrupt_ends_with_status_130(read, stub, images, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(stub, "stream", interrupted)
    assert read(images[0]) == (130, "", "")


@pytest.mark.parametrize("options", [(), ("--format", "tsv"), ("--format", "jsonl"), ("--output", "r.jsonl")])
def test_rejected_lines_are_counted(read, stub, tmp_path, monkeypatch, options):
    def stream(paths, *, reject_below, **_):
        assert reject_below == 0.5
        for path in paths:
            line = Recognition(path, (5,), (-0.1 if path == "a.png" else -3.0,), source=path)
            yield line.rejected_below(reject_below)

    monkeypatch.setattr(stub, "stream", stream)
    monkeypatch.chdir(tmp_path)
    status, _, err = read("--reject-below", 0.5, *options, "a.png", "b.png", "c.png")
    told = "lines of a confidence below 0.5 (--reject-below), whose text comes back empty: 2 of 3"
    assert (status, err) == (0, f"trocr-jax: {told}\n")
    if not options:
        assert read("--reject-below", 0.5, "a.png")[2] == ""


@pytest.mark.parametrize(("interrupted", "whole"), [("numpy", "trocr_jax.datasets"), ("jax", "trocr_jax.recognizer")])
def test_an_interrupt_waits_for_imports(cache_home, interrupted, whole):
    code = f"""
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == {interrupted!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background starts without
sys.meta_path.insert(0, Interrupting())
sys.argv = ["trocr-jax", "read", "a.png"]
try:
    runpy.run_module("trocr_jax", run_name="__main__")
except SystemExit as end:
    print(end.code, {whole!r} in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=subprocess_environment(cache_home), timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"130 True\n", b"")


def test_a_model_is_replaced_only_when_asked_for(tmp_path, capsys):
    output = tmp_path / "model"
    assert cli.main(["convert", str(EMBEDDED), str(output), "--to", "torch"]) == 0
    weights = output / "model.safetensors"
    weights.write_bytes(b"")
    for source in (EMBEDDED, output):
        assert cli.main(["convert", str(source), str(output), "--to", "torch"]) == 2
        told = f"{output} holds a model (model.safetensors, config.json): name another folder, or pass --overwrite"
        assert capsys.readouterr().err == f"trocr-jax: {told} to replace it\n"
        assert weights.read_bytes() == b""
    assert cli.main(["convert", str(EMBEDDED), str(output), "--to", "torch", "--overwrite"]) == 0
    assert weights.stat().st_size > 0
    # Other files are in nobody's way; a part of a model is.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    assert cli.main(["convert", str(EMBEDDED), str(tmp_path / "other")]) == 0
    (tmp_path / "other" / "config.json").unlink()
    assert cli.main(["convert", str(EMBEDDED), str(tmp_path / "other")]) == 2
    assert "holds a model (flax_model.safetensors)" in capsys.readouterr().err


@pytest.mark.usefixtures("stub")
def test_compiled_programs_are_kept_in_the_users_cache_folder(read, images, cache_home):
    read(images[0])
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == cache_home / "trocr_jax"
    assert jax.__version__ in folder.name


@pytest.mark.usefixtures("stub")
def test_a_cache_folder_that_is_set_stays(read, images, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    read(images[0])
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_help_and_version_do_not_wait_for_jax(cache_home):
    code = "import sys, trocr_jax.cli as c\ntry: c.main(['--version'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=subprocess_environment(cache_home), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == f"trocr-jax {trocr_jax.__version__}"


def test_as_a_module_and_in_a_pipe(images, ocr, cache_home):
    command = [sys.executable, "-m", "trocr_jax", "read", "--batch-size", "1"]
    environment = subprocess_environment(cache_home)
    done = subprocess.run([*command, *images, "absent.png"], capture_output=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert done.stdout.decode() == "".join(f"{path}: {ocr(path).text}\n" for path in images)
    assert done.stderr.decode() == "trocr-jax: absent.png does not exist\n"
    programs = sorted(path.name for path in cache_home.rglob("*-cache"))
    assert programs

    # As `| head -1`: the reader leaves after a line, long before the last image.
    with subprocess.Popen(
        [*command, *images * 20], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline().decode() == f"{images[0]}: {ocr(images[0]).text}\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0
    # The second run had nothing left to compile.
    assert sorted(path.name for path in cache_home.rglob("*-cache")) == programs
