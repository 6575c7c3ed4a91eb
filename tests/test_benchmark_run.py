"""The parts of the benchmark beside peers that do not time anything: protocol, rounds, floors, tables."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import field
from benchmarks.contenders import PEERS, chosen, ours
from benchmarks.contenders.__main__ import Server, serve
from benchmarks.contenders.process import ContenderError, Process
from benchmarks.environments import ROOT
from benchmarks.floor import Rates, decoder_weights, encoder_flops, floor_seconds, projection_flops
from benchmarks.plots import plot_workloads
from benchmarks.report import fastest, ratio, report, table, title
from benchmarks.rounds import Patience, measure, share_equal
from benchmarks.scaling import leaves_line
from trocr_jax.registry import OFFICIAL

BASE = OFFICIAL["trocr-base-handwritten"]
# A contender whose texts are the first pixels of the images; it prints, as libraries do, and fails or hangs on demand.
FAKE = """
import sys, time
import numpy as np
from benchmarks.contenders import __main__ as contender

class Reader:
    def __init__(self, folder, device, dtype, options):
        print("loading", folder)
    def versions(self):
        return {"fake": "1"}
    def generate(self, pixels, ends=0, seconds=0):
        time.sleep(seconds)
        if ends:
            sys.exit("no memory for this")
        return [[2, int(image.flat[0]), 1, 1] for image in pixels]

sys.modules["benchmarks.contenders.fake"] = sys.modules["__main__"]
sys.argv = ["contenders", "fake"]
contender.main()
"""


class Fake:
    """A process that answers from a list, and notes its turns."""

    def __init__(self, name, turns, seconds, fails_at=None):
        self.name, self.turns, self.seconds, self.fails_at = name, turns, list(seconds), fails_at

    def ask(self, limit, **request):
        self.turns.append(self.name)
        if self.turns.count(self.name) == self.fails_at:
            raise ContenderError("no memory")
        return {"seconds": self.seconds.pop(0), "processor_seconds": 0.5, "ids": [[2, 5], [2, 6]]}


def test_a_contender_answers_over_a_pipe(tmp_path):
    pixels = tmp_path / "pixels.npy"
    np.save(pixels, np.arange(7, 10, dtype=np.float32).reshape(3, 1, 1, 1))
    request = {"do": "generate", "pixels": str(pixels), "batch": 2}
    process = Process([sys.executable, "-c", FAKE])
    try:
        loaded = process.ask(60, do="load", folder="somewhere", device="cpu", dtype="float32", options={})
        assert loaded["versions"] == {"fake": "1"}
        reply = process.ask(60, **request, options={})
        assert reply["ids"] == [[2, 7], [2, 8], [2, 9]]
        assert reply["seconds"] >= 0
        with pytest.raises(ContenderError, match=r"TypeError: .*unknown"):
            process.ask(60, **request, options={"unknown": 1})
        assert process.ask(60, do="memory")["peak"] > 2**20
        with pytest.raises(ContenderError, match="status 1: no memory for this"):
            process.ask(60, **request, options={"ends": 1})
    finally:
        process.close()


def test_a_contender_that_does_not_answer_is_ended(tmp_path):
    process = Process([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(ContenderError, match="no answer within 0 s"):
            process.ask(0.2, do="load")
        with pytest.raises(ContenderError, match="SIGKILL"):
            process.ask(0.2, do="load")
    finally:
        process.close()


def test_requests_are_answered_one_a_line():
    replies = io.StringIO()
    requests = [json.dumps({"do": "memory"}), json.dumps({"do": "load", "folder": "a"})]

    def broken(folder):
        raise OSError(f"{folder} is not there\nand more")

    serve(Server(broken), requests, replies)
    first, second = map(json.loads, replies.getvalue().splitlines())
    assert first["peak"] > 0
    assert second == {"error": "OSError: a is not there"}


def test_contenders_take_turns_behind_a_first_run():
    turns = []
    fast = Fake("fast", turns, [9, 1, 3, 2])
    slow = Fake("slow", turns, [50, 61])
    broken = Fake("broken", turns, [1, 1], fails_at=2)
    results = measure({"fast": fast, "slow": slow, "broken": broken}, {}, runs=3, patience=Patience(limit=5, slow=60))
    assert turns == ["fast", "slow", "broken"] * 2 + ["fast"] * 2
    assert results["fast"]["seconds"] == [1, 3, 2]
    assert results["fast"]["first_seconds"] == 9
    assert results["slow"]["seconds"] == [61]
    assert results["broken"] == {"error": "no memory"}
    assert share_equal(results["fast"]["ids"], [[2, 5], [2, 7]]) == 0.5


def test_the_floor_is_arithmetic_and_bytes():
    # By hand: 577 tokens, 12 layers of 768 and 3072, patches of 16 x 16 x 3; a decoder of 12 layers of 1024 and 4096.
    assert encoder_flops(BASE) == 2 * (577 * 768 * 768 + 12 * (577 * 12 * 768**2 + 2 * 577**2 * 768))
    assert projection_flops(BASE) == 2 * 577 * 12 * 2 * 768 * 1024
    assert decoder_weights(BASE) == 12 * (6 * 1024**2 + 2 * 1024 * 4096) + 50265 * 1024
    options = {"batch": 2, "num_beams": 4, "new_tokens": 1, "dtype": "bfloat16", "weight_bytes": 2}
    arithmetic = 2 * (encoder_flops(BASE) + projection_flops(BASE)) / 1e12
    kv = 2 * 12 * 1024
    read = 2 * decoder_weights(BASE) + 2 * (2 * 577 * kv + 8 * kv)
    slow_memory = Rates({"bfloat16": 1e12}, 1e9)
    assert floor_seconds(BASE, slow_memory, **options) == pytest.approx(arithmetic + read / 1e9)
    fast_memory = Rates({"bfloat16": 1e12}, 1e15)
    computed = 2 * 8 * (decoder_weights(BASE) + (577 + 1) * kv) / 1e12
    assert floor_seconds(BASE, fast_memory, **options) == pytest.approx(arithmetic + computed)


def test_a_ratio_is_of_medians_and_its_range_of_rounds():
    assert ratio([4, 6, 5], [2, 2, 1]) == "2.50 (2.00 to 5.00)"
    assert ratio([4], [2, 2, 1]) == "2.00"
    assert table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


def test_peers_are_chosen_by_device_and_name():
    own = [ours("float32")]
    assert [contender.name for contender in chosen("cpu", own, [])] == ["trocr_jax float32"]
    assert {contender.name for contender in chosen("gpu", own, None)} > {"transformers-float32"}
    assert all("cpu" in peer.devices for peer in chosen("cpu", [], None))
    # This library on another jax takes part where it is asked for, on CPU alone.
    newest = "trocr_jax-newest-jax-float32"
    assert newest not in {contender.name for contender in chosen("cpu", own, None)}
    assert [contender.name for contender in chosen("cpu", own, [newest])] == ["trocr_jax float32", newest]
    assert chosen("gpu", own, [newest]) == own
    results = {name: {"seconds": [time]} for time, name in enumerate((newest, "trocr_jax float32", "openvino"))}
    assert (fastest(results, is_ours=True), fastest(results, is_ours=False)) == ("trocr_jax float32", "openvino")
    with pytest.raises(ValueError, match=r"'other'.*transformers-float32"):
        chosen("cpu", own, ["other"])
    assert all(peer.environment for peer in PEERS.values())


def test_the_report_sets_ours_beside_the_best_peer(tmp_path):
    def result(seconds, **more):
        return {"seconds": seconds, "processor_seconds": seconds, "first_seconds": 9.0, "ids": [], **more}

    results = {
        "trocr_jax float32": result([0.5, 0.5, 0.5], share_equal=1.0, floor_seconds=0.25),
        "trocr_jax bfloat16": result([0.2, 0.4, 0.25], share_equal=0.995),
        "transformers-float32": result([1.0, 1.0, 1.0], share_equal=1.0),
        "onnxruntime": result([0.8], share_equal=1.0),
        "openvino": {"error": "not set up: python -m benchmarks.environments openvino"},
    }
    workload = {"model": "base", "batch": 1, "num_images": 1, "num_beams": 4, "new_tokens": 24, "results": results}
    machine = {"processor": "a processor", "cores": 2, "instruction sets": ["avx2"], "memory": 2**34, "python": "3.11",
               "load average": 0.5, "commit": "abc", "date": "today", "environment": {}, "command": "run"}  # fmt: skip
    run = {
        "machine": machine,
        "versions": {"onnxruntime": {"onnxruntime": "1.31.1"}},
        "rates": {"matmul": {"float32": 1e11}, "bandwidth": 2e10},
        "peak_memory": {"base": {"onnxruntime": 2e9}},
        "workloads": [workload],
    }
    text = report(run)
    assert title(workload) == "base, batch 1, beam 4, 24 tokens"
    assert "| bfloat16: 250 (200 to 400) | onnxruntime: 800 (800 to 800) | 3.20 | 4.00 (" in text
    assert "| 2.00 (2.00 to 2.00) |" in text  # transformers-float32 over ours in float32
    assert "| 500 (500 to 500) | 2.00 (1.25 to 2.50) | 0.50 | 2.00 (1.25 to 2.50) | 9.0 | 100.0% | 250 (2.0) |" in text
    assert "| onnxruntime | 800 (800 to 800), one run |" in text
    assert "| openvino | not set up: python -m benchmarks.environments openvino |" in text
    assert "matrix products float32 100 GFLOP/s, 20.0 GB/s read" in text
    plot_workloads([workload], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["base.png"]
    with Image.open(tmp_path / "base.png") as image:
        assert image.width > image.height > 100


@pytest.mark.slow
def test_the_command_reads_lines_beside_transformers(tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "--models", "nano", "--beams", "1", "--runs", "1"]
    command += ["--peers", "transformers-float32", "onnxruntime", "--output", str(tmp_path), "--lines", str(tmp_path)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert "python -m benchmarks.environments onnxruntime" in rows["onnxruntime"]
    for name in ("trocr_jax float32", "transformers-float32"):
        assert "| 100.0% |" in rows[name]
    assert {path.name for path in tmp_path.iterdir()} >= {"results.md", "results.json", "nano.png"}


def test_time_leaves_the_straight_line_where_it_is_a_quarter_off():
    assert leaves_line([1, 2, 4, 8], [1, 2, 4, 8]) is None
    assert leaves_line([1, 2, 4, 8], [1, 2, 4, 10.5]) == 8
    assert leaves_line([1, 2, 4, 8], [3, 3.1, 2.0, 3.7]) == 4


def test_a_peer_that_computes_in_bfloat16_by_itself_is_named_so(monkeypatch, tmp_path):
    class Loaded:
        def __init__(self, command, environment):
            self.versions = {"fake": "1"} | ({"in": "bf16"} if "openvino_side" in command else {})

        def ask(self, limit, **request):
            return {"versions": self.versions}

    monkeypatch.setattr(field, "Process", Loaded)
    monkeypatch.setattr(field, "interpreter", lambda _: "python")
    found = field.Field([PEERS["onnxruntime"], PEERS["openvino"]], tmp_path, "cpu")
    assert list(found.contenders) == list(found.processes) == ["onnxruntime", "openvino bfloat16"]
    chosen = found.contenders["openvino bfloat16"]
    assert (chosen.dtype, chosen.weight_bytes) == ("bfloat16", 2)
