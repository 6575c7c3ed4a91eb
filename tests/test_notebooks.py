"""The notebooks: what each of them looks like, and that each runs from top to bottom, offline, in an empty folder."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_CELLS, MOST_BYTES = 24, 400_000
# What a path of somebody's machine, or of a hosted notebook's drive, begins with.
FOREIGN = re.compile(r"/(?:root|home|tmp|work|content|Users|mnt|opt|var)/|[A-Z]:\\\\|drive\.mount|colab-badge")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def is_left_out(cell):
    """Whether nbclient passes over it."""
    return "skip-execution" in cell.metadata.get("tags", [])


def outputs(path):
    return [output for cell in code_cells(path) for output in cell.outputs]


def test_there_are_six_and_the_index_has_a_line_for_each():
    assert [path.stem[0] for path in NOTEBOOKS] == list("123456")
    linked = re.findall(r"\]\(([^)]+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert linked == [path.name for path in NOTEBOOKS]


@each_notebook
def test_structure(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= MOST_CELLS
    assert notebook.cells[0].source.startswith("# ")
    assert notebook.cells[-1].source.startswith("## Next steps")
    sources = [cell.source for cell in code_cells(path)]
    installs = [line.strip() for line in sources[0].splitlines() if "%pip" in line]
    assert len(installs) == 1
    assert installs[0].startswith("%pip install --quiet")
    assert "find_spec" in sources[0]  # nothing is installed over what is there
    models = [line for source in sources for line in source.splitlines() if line.startswith("MODEL =")]
    assert len(models) == 1
    assert re.match(r'MODEL = None  # .*"microsoft/trocr-', models[0])


@each_notebook
def test_file(path):
    content = path.read_text(encoding="utf-8")
    assert len(content) < MOST_BYTES
    ids = [cell["id"] for cell in json.loads(content)["cells"]]
    name = path.stem[2:].replace("_", "-")
    assert all(re.fullmatch(rf"{name}-\d\d", cell_id) for cell_id in ids)
    assert len(set(ids)) == len(ids)
    pictures_apart = re.sub(r'"image/\w+": "[^"]*"', "", content)
    assert not FOREIGN.findall(pictures_apart)


@each_notebook
def test_outputs_are_stored_and_none_is_an_error_or_a_warning(path):
    assert sum("data" in output and "image/png" in output.data for output in outputs(path)) >= 1
    assert not [output for output in outputs(path) if output.output_type == "error" or output.get("name") == "stderr"]
    counts = [cell.execution_count for cell in code_cells(path) if not is_left_out(cell)]
    assert counts == list(range(1, len(counts) + 1)), "run it whole: python notebooks/run.py"


def test_only_the_demo_is_left_out_of_a_run():
    (left_out,) = [cell.source for path in NOTEBOOKS for cell in code_cells(path) if is_left_out(cell)]
    assert "gradio.Interface" in left_out


def run(path, tmp_path, *arguments, **environment):
    """Executes a notebook as notebooks/run.py does, in a home folder of its own, which stays empty; its file then."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "JUPYTER", "IPYTHON"))}
    subprocess.run(
        [sys.executable, FOLDER / "run.py", "--output", tmp_path, *arguments, path],
        env={**kept, "HOME": str(home), **environment},
        cwd=tmp_path,
        check=True,
        timeout=600,
    )
    assert not list(home.iterdir())
    return tmp_path / path.name


def kinds(path):
    """Of each cell, which kinds of output it has."""
    found = []
    for cell in code_cells(path):
        here = {key for output in cell.outputs for key in output.get("data", {"text": 0})}
        found.append(here if any(output.get("name") != "stderr" for output in cell.outputs) else set())
    return found


def warnings(path):
    """What cells wrote to stderr; tqdm misses ipywidgets, which notebooks do well without."""
    texts = [output.text for output in outputs(path) if output.get("name") == "stderr"]
    return [text for text in texts if "IProgress" not in text]


@pytest.mark.slow
@each_notebook
def test_it_runs_where_the_package_alone_is(path, tmp_path):
    found = run(path, tmp_path, "--without-samples")
    assert kinds(found) == kinds(path), "run it anew: python notebooks/run.py"
    assert not warnings(found)


@pytest.mark.slow
def test_reading_the_samples_gives_what_is_stored(tmp_path):
    found = run(NOTEBOOKS[0], tmp_path)
    assert not warnings(found)
    texts, stored = ([output.get("text") for output in outputs(path)] for path in (found, NOTEBOOKS[0]))
    # Confidences differ in their last digits from machine to machine.
    assert [re.findall("[A-Z]{4,}", text or "") for text in texts] == [
        re.findall("[A-Z]{4,}", text or "") for text in stored
    ]


@pytest.mark.slow
def test_throughput_is_measured_on_one_device_too(tmp_path):
    found = run(NOTEBOOKS[5], tmp_path, JAX_NUM_CPU_DEVICES="1")
    assert outputs(found)[0].text.startswith("1 devices")
