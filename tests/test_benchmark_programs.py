"""The benchmarks that no other test runs: what they import, their options and their tables, and five of them whole."""

from __future__ import annotations

import collections
import importlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import boxes, cold_start, compile_time, convert, end_to_end, memory, scaling
from benchmarks.compile_ahead import cost_lines
from benchmarks.environments import ROOT

BENCHMARKS = ROOT / "benchmarks"
# The two for TPU run only where there is libtpu; see test_compile_ahead.py.
PROGRAMS = (
    "boxes", "calibration", "cold_start", "compile_ahead", "compile_ahead_training", "compile_time", "constraints",
    "convert", "end_to_end", "engine", "memory", "opening", "scaling", "train",
)  # fmt: skip
OPTION = re.compile(r"--[a-z][a-z-]*")
# Also of those inside functions, and inside the code of other processes.
IMPORT = re.compile(r"from ((?:benchmarks|trocr_jax)[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")
# Command -> a part of what it prints.
WHOLE = {
    "benchmarks/cold_start.py --runs 1": "transformers over trocr_jax, cache empty: ",
    "benchmarks/engine.py --lines 6 --batch-size 2 --runs 1 --scale 1": "| seven, and of like width, the default | ",
    "-m benchmarks.calibration --lines 60 --plot {folder}/reliability.png": "| words, after | ",
    "-m benchmarks.opening --cores 1 --augment da2 --steps 1": "| da2 | 1 | ",
    "-m benchmarks.train --batch 1 --tokens 4 --steps 1 --rounds 1": "float32 trocr_jax over transformers: ",
}


class FakeField:
    """Contenders of which one fails and the others take an eighth of a second for a token of a beam of an image."""

    def __init__(self, contenders, folder, device):
        self.names = [contender.name for contender in contenders]
        self.versions = {name: {"jax": "1"} for name in self.names}

    def results(self, **result):
        return {**dict.fromkeys(self.names, result), "broken": {"error": "no memory"}}

    def measure(self, pixels, batch, options, runs):
        assert options["min_new_tokens"] == options["max_new_tokens"]
        return self.results(seconds=[batch * options["num_beams"] * options["max_new_tokens"] / 8] * runs)

    def ask_in_turn(self, request, runs):
        assert all(map(os.path.isfile, request["paths"]))
        texts = [""] * len(request["paths"])
        return self.results(seconds=[3.0, 1.5], processor_seconds=[0.6] * runs, texts=texts)

    def close(self):
        pass


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark with arguments and returns what it prints."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def is_there(module, name):
    found = importlib.import_module(module)
    if hasattr(found, name):
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


def test_what_is_imported_is_there():
    wrong, seen = [], 0
    for path in sorted(BENCHMARKS.rglob("*.py")):
        for module, *names in IMPORT.findall(path.read_text(encoding="utf-8")):
            for name in re.findall(r"\w+", "".join(names)):
                seen += 1
                if not is_there(module, name):
                    wrong.append(f"{path}: {name} of {module}")
    assert seen > 100
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PROGRAMS)
def test_options_are_as_the_usage_says(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])  # as for a script, whose neighbours are modules
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    _, usage, options = capsys.readouterr().out.partition(module.__doc__.strip())
    assert usage
    assert set(OPTION.findall(usage)) <= set(OPTION.findall(options))


def test_growth_is_told_and_drawn(run, monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "Field", FakeField)
    monkeypatch.setattr(scaling.twin, "make_twin", lambda _: tmp_path)
    folder = tmp_path / "grown"
    arguments = ["--model", "small", "--peers", "--sweeps", "beams", "tokens", "--runs", "2", "--output", folder]
    printed = run(scaling, *arguments)
    assert "## By beams (batch 1, tokens 8)" in printed
    assert printed.count("| trocr_jax float32 | 1000 (1000 to 1000) | 2000 (2000 to 2000) | 4000 (") == 2
    assert printed.count("| broken | no memory | ") == 2
    assert printed == (folder / "scaling.md").read_text() + "\n"
    assert json.loads((folder / "scaling.json").read_text())["sweeps"]["tokens"]["sizes"] == [8, 16, 32, 64, 128]
    with Image.open(folder / "scaling.png") as image:
        assert image.width > image.height > 100


def test_files_are_read_by_all(run, monkeypatch, tmp_path):
    monkeypatch.setattr(end_to_end, "Field", FakeField)
    monkeypatch.setattr(end_to_end.twin, "embedded_in_torch", lambda: tmp_path)
    printed = run(end_to_end, "--images", 3, "--peers", "--lines", tmp_path, "--runs", 2)
    assert "3 PNG files to texts: drawn lines, batch 32, greedy" in printed
    assert "| trocr_jax float32 | 1.5 (1.0 to 2.0) | 200.0 | 1.00 (1.00 to 1.00) |  | 100.00% |" in printed
    assert "| broken | no memory | " in printed


def test_compiling_is_the_first_run_less_the_second(run, monkeypatch, tmp_path):
    monkeypatch.setattr(compile_time, "seconds", lambda *_: (5.0, 1.0, {"jax": "1"}))
    monkeypatch.setattr(compile_time.twin, "make_twin", lambda _: tmp_path)
    printed = run(compile_time, "--models", "small", "--batches", 1, "--beams", 1, 4)
    for beams in (1, 4):
        for state in ("empty", "filled"):
            assert f"| small, batch 1, {beams} beams | trocr_jax float32 | {state} | 5.0 | 1.00 | 4.0 |" in printed


def test_a_cold_start_is_told_with_a_filled_and_an_empty_cache(run, monkeypatch):
    def seconds(command, cache):
        return 8.0 if "-c" in command else 2.0 if os.listdir(cache) else 4.0, "a text"

    monkeypatch.setattr(cold_start, "seconds", seconds)
    assert run(cold_start, "--runs", 2).splitlines() == [
        "trocr_jax: median 2.00 s, range 2.00 to 2.00 s, 2 runs",
        "trocr_jax, cache empty: median 4.00 s, range 4.00 to 4.00 s, 2 runs",
        "transformers: median 8.00 s, range 8.00 to 8.00 s, 2 runs",
        "transformers over trocr_jax: 4.00",
        "transformers over trocr_jax, cache empty: 2.00",
    ]


def test_every_job_takes_the_same_file_in(run, monkeypatch):
    def job(code, folder, *_):
        compile(code, "job", "exec")
        if code == convert.MAKE:
            (pathlib.Path(folder) / "pytorch_model.bin").write_bytes(bytes(1000))
            return ""
        return json.dumps({"seconds": 2.0, "bytes": 1500})

    monkeypatch.setattr(convert, "run", job)
    printed = run(convert, "--model", "trocr-small-printed", "--runs", 1)
    for name in convert.JOBS:
        assert f"| {name} | 2.00 (2.00 to 2.00) | 1.50 |" in printed


def test_memory_of_programs_and_processes(run, monkeypatch):
    def resident(side, *_):
        compile(memory.MEASURE.format(side=side), side, "exec")
        assert callable(getattr(memory, side))
        return {"jax_side": 1e9, "torch_side": 4e9}[side]

    parts = ("temporary", "output", "pixels", "cross", "self")
    monkeypatch.setattr(memory, "compiled", lambda *_: dict.fromkeys(parts, 1e9))
    monkeypatch.setattr(memory, "torch_working", lambda *_: 6e9)
    monkeypatch.setattr(memory, "resident", resident)
    printed = run(memory, "--model", "trocr-small-printed", "--tokens", 2, "--dtypes", "float32")
    assert re.search(r"^\| float32 \| 2 \| \d+, 3\.00 \| 1\.00, 1\.00 \| 6\.00 \| \d", printed, re.MULTILINE)
    assert "\n| 2 | 1.00 | 4.00 |\n" in printed


def test_overlaps_are_told_by_condition_and_method(run, monkeypatch):
    words, right = collections.defaultdict(lambda: [0.5, 0.7]), collections.defaultdict(lambda: [True, False])
    monkeypatch.setattr(boxes, "measure", lambda *_: (words, words, right))
    cells = " | ".join(["0.600 / 0.600"] * len(boxes.METHODS))
    printed = run(boxes)
    for condition, description in boxes.CONDITIONS.items():
        assert f"| {condition}: {description} | 1 of 2 | {cells} |" in printed


def test_the_compilers_counts_stand_beside_the_peaks_of_known_chips():
    cost = {"flops": 197e9, "bytes accessed": 819e7}
    counts = [
        "operations of the encoder and one step a chip: 1.97e+11",
        "bytes that these access: 8.19e+09",
        "these are the compiler's own counts: a loop's body is counted once",
    ]
    estimate = (
        "at v5e's peaks, 197 TFLOP/s in bfloat16 and 819 GB/s: operations 1 ms, bytes 10 ms; "
        "bytes bind, and 25.0% of 16 GB are taken"
    )
    assert cost_lines("v5e:2x2", cost, 4 * 10**9) == [*counts, estimate]
    longer = cost_lines("v6e:2x2", {"flops": 918e9, "bytes accessed": 1640e5}, 4 * 10**9)[-1]
    assert longer.endswith("operations 1 ms, bytes 0.1 ms; operations bind, and 12.5% of 32 GB are taken")
    assert cost_lines("v4:2x2x1", cost, 1) == counts
    assert cost_lines("v5e:2x2", {"flops": 197e9}, 1) == [counts[0], counts[2]]


@pytest.mark.slow
@pytest.mark.parametrize("command", WHOLE)
def test_the_whole_runs(command, tmp_path):
    arguments = [part.format(folder=tmp_path) for part in command.split()]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert WHOLE[command] in done.stdout
