"""README and the pages of docs: their code runs, their links lead somewhere, what they name is there."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import transformers
from PIL import Image

from tests.pages import NOT_RUN, PAGES, README, ROOT, blocks, commands, make_stand_ins, prose, run_page
from trocr_jax import TrOCR, cli


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder of compiled programs, which the pages share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "stand-ins"
    folder.mkdir()
    make_stand_ins(folder)
    return folder


@pytest.fixture
def folder(stand_ins, programs, tmp_path, cache_home, monkeypatch):
    """A working directory of a page's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))
    shutil.copytree(stand_ins, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def size(path):
    with Image.open(path) as image:
        return image.size


# Headings whose commands tests/test_readme.py runs, on the first of the pages that have them.
IN_TEST_README = ("Bring your own checkpoint", "Original fairseq files", "Is it right?")
WITH_CODE = [page for page in PAGES if blocks(page) and page.stem != "devices"]  # which has a test of its own


def test_code_for_two_devices_runs(folder):
    page = ROOT / "docs" / "devices.md"
    code = "\n".join(block.code for block in blocks(page) if block.language == "python")
    code += '\nprint(ocr("line.png").text, len(mesh.devices.ravel()))'
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], check=True, env=env, stdout=subprocess.PIPE, text=True).stdout
    assert told == "RM3.01 2\n"
    run_page(page, languages=("bash",))


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page, folder, capsys):
    names = run_page(page, but=IN_TEST_README)
    assert "Traceback" not in capsys.readouterr().err
    if page.stem == "fine-tuning":
        assert (folder / "mine" / "training" / "curves.png").is_file()
        assert names["metrics"].is_updated
        arguments = ["finetune", "--train", "notebooks/samples", "--val", "notebooks/samples", "--output", "mine"]
        assert cli.main(arguments) == 2
        assert "mine holds a training: go on with it" in capsys.readouterr().err
    if page.stem == "evaluation":
        assert (folder / "worst.html").is_file()
        assert (folder / "report.json").is_file()
    if page.stem == "confidence-and-boxes":
        assert size("words-seen.png")[0] == size("notebooks/samples/words.png")[0]
        assert len(list((folder / "seen").glob("*.overlay.png"))) == 3


def test_what_is_not_run_is_still_there():
    told = [command for page in PAGES for block in blocks(page) if block.language == "bash"
            for command in commands(block.code)]  # fmt: skip
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in told), f"no page has {start}: delete it from NOT_RUN"


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page):
    return {slug(line.lstrip("# ")) for line in prose(page).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{page.name} links out of the repository: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_in_the_index_and_in_readme():
    for index in (README, ROOT / "docs" / "index.md"):
        for page in PAGES[1:]:
            assert f"{page.name})" in prose(index) or page == index, f"{index.name} has no link to {page.name}"


def all_options(parser):
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from all_options(command)


def spans(page):
    """What stands between backticks in a page's prose, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_prose_names_is_there(page):
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.py"))
    of_benchmarks = re.findall(r'add_argument\(\s*"(--[a-z-]+)"', sources)
    known = {*all_options(cli._parser()), *of_benchmarks}
    for span in spans(page):
        is_ours = span.startswith(("trocr-jax", "--", "python -m benchmarks"))
        for option in re.findall(r"(?<!\S)--[a-z-]+", span) if is_ours else ():
            assert option in known, f"{page.name}: {span}"
        for path in re.findall(r"(?:tests|benchmarks|docs|trocr_jax)/[\w/.]+", span):
            assert (ROOT / path).exists(), f"{page.name}: {span}"
        for module in re.findall(r"python -m (benchmarks\.\w+)", span):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page.name}: {span}"


def test_every_argument_of_transformers_is_mapped():
    page = ROOT / "docs" / "from-transformers.md"
    named = {name for span in spans(page) for name in re.findall(r"\w+", span)}
    wanted = {name for name in transformers.GenerationConfig().to_dict() if not name.startswith("_")}
    model = transformers.VisionEncoderDecoderModel
    functions = (
        model.generate,
        model.forward,
        model.from_pretrained,
        transformers.TrOCRProcessor.__call__,
        transformers.TrOCRProcessor.__init__,
    )
    wanted |= {name for function in functions for name in inspect.signature(function).parameters}
    wanted -= {"self", "args", "kwargs", "model_args", "pretrained_model_name_or_path"}
    assert len(wanted) > 90
    assert not wanted - named


def test_every_complaint_has_a_cause_and_an_answer():
    _, *sections = re.split(r"^### ", prose(ROOT / "docs" / "troubleshooting.md"), flags=re.MULTILINE)
    assert len(sections) >= 36
    for section in sections:
        assert re.findall(r"^\*\*(Cause|Here):\*\* ", section, re.MULTILINE) == ["Cause", "Here"], section


def test_the_picture_is_what_its_script_draws(tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    script["main"](tmp_path / "boxes.png")
    assert size(tmp_path / "boxes.png") == size(ROOT / "docs" / "images" / "boxes.png")


def test_readme_says_what_the_samples_say(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {"ocr": TrOCR.from_pretrained()}
    (block,) = [block for block in blocks(README) if block.language == "python"]
    exec(block.code, names)
    assert capsys.readouterr().out.startswith("Date: 09.10.93 07:53:40 ")
    assert [line.text for line in names["lines"]] == ["RM3.01", "Date: 09.10.93 07:53:40"][::-1]
