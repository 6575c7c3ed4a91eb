"""Output files of long runs: killed at any moment, resumed, split over processes, and never two writers."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import SAMPLES
from tests.test_cli import read, stub  # noqa: F401 - fixtures
from trocr_jax.journal import Journal, moved_to, open_journal, shard_path
from trocr_jax.results import Recognition

pytestmark = pytest.mark.usefixtures("cache_home")
PATHS = ["a.png", "b.png", "a.png", "c.png", "caf\udce9.png", "ü.png"]


def result(path):
    return Recognition(
        f"Text é of {path[0]}", (5, 2), (-0.5, -0.25), source=path, error="no" if path[0] == "b" else None
    )


def run(journal, paths):
    """Reads what is pending -> the numbers of those images."""
    with journal:
        pending = list(journal.pending(enumerate(paths)))
        for _, path in pending:
            journal.write(result(path))
    return [number for number, _ in pending]


@pytest.fixture
def whole(tmp_path):
    """The bytes of a file that nothing interrupted."""
    assert run(Journal(tmp_path / "whole.jsonl"), PATHS) == [0, 1, 2, 3, 4, 5]
    return (tmp_path / "whole.jsonl").read_bytes()


def test_lines_are_results_in_utf8(whole):
    lines = whole.decode().splitlines()
    assert [Recognition.from_dict(json.loads(line)) for line in lines] == [result(path) for path in PATHS]
    assert "é" in lines[0]


def test_a_file_cut_at_any_byte_is_completed(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand files
    path = tmp_path / "cut.jsonl"
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in [0, 1, 5, *range(ends[-3], len(whole) + 1)]:
        for zeros in (b"", b"\0" * 3) if size in (ends[-2], ends[-2] + 9) else (b"",):
            path.write_bytes(whole[:size] + zeros)
            journal = Journal(path, resume=True)
            assert journal.num_errors == (size >= ends[1])
            assert run(journal, PATHS) == list(range(sum(end <= size for end in ends), len(PATHS)))
            assert path.read_bytes() == whole
            assert journal.notes() == []


def test_a_file_that_is_there_is_not_written_to_unless_resumed(whole, tmp_path):
    with pytest.raises(FileExistsError, match=r"whole\.jsonl exists: pass --resume"):
        Journal(tmp_path / "whole.jsonl")
    assert (tmp_path / "whole.jsonl").read_bytes() == whole
    (tmp_path / "empty.jsonl").touch()
    Journal(tmp_path / "empty.jsonl").close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes", "ends with b'my notes'"),
        (b'{"schema": 2}\n', "line 1 of .* is not a result of schema 2"),
        (b"hello\n", "line 1 of"),
        (b"WHOLE\n", "line 7 of .* delete that line"),
        (b"WHOLE[]", r"ends with b'\[\]'"),
    ],
)
def test_other_files_are_left_alone(whole, tmp_path, content, message):
    path = tmp_path / "other.jsonl"
    content = content.replace(b"WHOLE", whole)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Journal(path, resume=True)
    assert path.read_bytes() == content


def test_a_file_has_one_writer(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    with Journal(path):
        for resume in (True, False):
            with pytest.raises(BlockingIOError, match="being written by another process"):
                Journal(path, resume=resume)
    Journal(path, resume=True).close()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked"):
        assert run(Journal(tmp_path / "results.jsonl"), PATHS[:2]) == [0, 1]


def test_an_input_that_has_changed_loses_and_doubles_nothing(whole, tmp_path):
    path = tmp_path / "whole.jsonl"
    journal = Journal(path, resume=True)
    assert run(journal, ["0.png", "a.png", "c.png", "d.png", "a.png", "a.png", "ü.png"]) == [0, 3, 5]
    assert [json.loads(line)["source"] for line in path.read_text().splitlines()[6:]] == ["0.png", "d.png", "a.png"]
    absent, late = journal.notes()
    assert absent.startswith("lines of 2 images that are not in the input")
    assert "stood in front of 4 that were read earlier" in late


def test_a_deleted_line_is_read_again(whole, tmp_path):
    path = tmp_path / "whole.jsonl"
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert run(Journal(path, resume=True), PATHS) == [1]
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_shards_of_an_input_that_has_changed_lose_and_double_nothing(tmp_path):
    output, count = tmp_path / "r.jsonl", 3

    def read_shards(paths, limit):
        for index in range(count):
            with open_journal(output, paths, (index, count), resume=True) as journal:
                pending = journal.pending(itertools.islice(enumerate(paths), index, None, count))
                for _, path in itertools.islice(pending, limit):
                    journal.write(result(path))

    before = [f"{i:02}.png" for i in range(20)]
    read_shards(before, 4)
    assert moved_to((0, count), output, before) == {}
    after = ["000.png", *before[:3], *before[4:9], "085.png", *before[9:]]
    read_shards(after, 100)
    lines = [line for path in tmp_path.glob("r-*-of-00003.jsonl") for line in path.read_text().splitlines()]
    assert sorted(json.loads(line)["source"] for line in lines) == sorted({*before, *after})
    with pytest.raises(ValueError, match="go on with as many shards"):
        shard_path(output, (0, 2))


@pytest.mark.usefixtures("stub")
def test_the_command_writes_resumes_and_reports(read, tmp_path):  # noqa: F811
    output = tmp_path / "out" / "results.jsonl"
    assert read("a.png", "b.png", "--output", output) == (0, "", "")
    whole = output.read_bytes()
    status, out, err = read("a.png", "b.png", "--output", output)
    assert (status, out) == (2, "")
    assert "pass --resume" in err
    output.write_bytes(whole[:-9])
    assert read("a.png", "b.png", "--output", output, "--resume") == (0, "", "")
    assert output.read_bytes() == whole
    status, _, err = read("b.png", "c.png", "--output", output, "--resume")
    assert (status, err.count("are not in the input")) == (0, 1)
    assert [json.loads(line)["source"] for line in output.read_text().splitlines()] == ["a.png", "b.png", "c.png"]


def test_an_interrupted_run_says_how_to_go_on(read, stub, tmp_path, monkeypatch):  # noqa: F811
    output, whole = tmp_path / "r.jsonl", stub.stream

    def stream(paths, **options):
        yield from itertools.islice(whole(paths, **options), next(counts))
        raise KeyboardInterrupt

    monkeypatch.setattr(stub, "stream", stream)
    counts = iter((0, 1, 3))
    anew = "trocr-jax: interrupted before the first line; the same command starts anew\n"
    assert read(*PATHS, "--output", output) == (130, "", anew)
    for lines in (1, 4):
        on = f"trocr-jax: interrupted; {output} has {lines} lines, and the same command with --resume goes on behind"
        assert read(*PATHS, "--output", output, *(["--resume"] if lines > 1 else [])) == (130, "", f"{on} them\n")
        assert output.read_bytes().count(b"\n") == lines
    monkeypatch.setattr(stub, "stream", whole)
    assert read(*PATHS, "--output", output, "--resume") == (0, "", "")
    assert output.read_bytes().count(b"\n") == len(PATHS)


@pytest.mark.usefixtures("stub")
def test_shards_print_or_write_their_share(read, tmp_path):  # noqa: F811
    paths = [f"{i}.png" for i in range(7)]
    assert read(*paths, "--shard", "1/3", "--format", "tsv")[1] == "1.png\tgnp.1\n4.png\tgnp.4\n"
    for index in range(3):
        assert read(*paths, "--shard", f"{index}/3", "--output", tmp_path / "r.jsonl", "--resume")[0] == 0
    shards = [path.read_text().splitlines() for path in sorted(tmp_path.glob("r-*.jsonl"))]
    interleaved = [json.loads(line)["source"] for lines in itertools.zip_longest(*shards) for line in lines if line]
    assert interleaved == paths


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--output FILE"),
        (["--output", "x.jsonl", "--format", "tsv"], "is jsonl"),
        (["--save-overlay", "seen", "--shard", "0/2"], "leave out"),
        (["--save-overlay", "seen", "--output", "x.jsonl", "--resume"], "leave out"),
    ],
)
def test_output_options_that_contradict_each_other_end_with_status_2(read, arguments, message, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    status, out, err = read("a.png", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard", ["2/2", "1", "-1/2", "a/b", "0/0"])
def test_shards_that_do_not_exist_end_with_status_2(read, shard, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as caught:
        read("a.png", f"--shard={shard}")
    assert caught.value.code == 2
    assert "is not I/N" in capsys.readouterr().err


class Folder:
    """A folder of lines, and processes that read it into `output`, one line at a time so that equal is to the byte."""

    def __init__(self, root, num_images):
        self.images = root / "images"
        self.cache = root / "cache"
        samples = sorted(SAMPLES.glob("*.png"))
        for i in range(num_images):
            path = self.images / f"{i // 9}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(samples[i % len(samples)], path)
        (self.images / "0" / "001.png").write_bytes(b"no image")
        assert self.start(root / "whole.jsonl").wait(timeout=120) == 1
        self.whole = (root / "whole.jsonl").read_bytes()
        assert self.whole.count(b"\n") == num_images

    def start(self, output, *options):
        return subprocess.Popen(
            [sys.executable, "-m", "trocr_jax", "read", self.images, "--output", output, "--batch-size=1", *options],
            env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("folder"), num_images=80)


def wait_for_lines(path, count, process):
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.001)


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.parametrize("moments", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(folder, tmp_path, moments):
    output, chance = tmp_path / "results.jsonl", random.Random(moments)
    targets = sorted(chance.choices(range(1, 60), k=moments))
    for target in targets:
        process = folder.start(output, "--resume")
        if chance.random() < 0.8:
            wait_for_lines(output, target, process)
            time.sleep(chance.uniform(0, 0.02))
        else:
            time.sleep(chance.uniform(0, 0.8))  # loading, most of the time
        kill(process)
        assert folder.whole.startswith(output.read_bytes() if output.exists() else b"")
    assert folder.start(output, "--resume").wait(timeout=120) == 1
    assert output.read_bytes() == folder.whole
    # Nothing is left to do; an image that could not be read still counts.
    assert folder.start(output, "--resume").wait(timeout=120) == 1
    assert output.read_bytes() == folder.whole


def test_one_of_four_shards_is_killed_and_resumed(folder, tmp_path):
    output = tmp_path / "results.jsonl"
    paths = [shard_path(output, (i, 4)) for i in range(4)]
    processes = [folder.start(output, "--shard", f"{i}/4", "--resume") for i in range(4)]
    wait_for_lines(paths[2], 1, processes[2])
    kill(processes[2])
    assert [process.wait(timeout=120) for process in processes] == [0, 1, -signal.SIGKILL, 0]
    others = {path: path.read_bytes() for path in paths if path != paths[2]}
    assert folder.start(output, "--shard", "2/4", "--resume").wait(timeout=120) == 0
    assert {path: path.read_bytes() for path in others} == others
    shards = [path.read_bytes().splitlines(keepends=True) for path in paths]
    assert b"".join(itertools.chain.from_iterable(zip(*shards, strict=True))) == folder.whole
    assert sorted(path.name for path in pathlib.Path(tmp_path).iterdir()) == [path.name for path in paths]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OSError, match=r"is no folder .*; choose another for --output"):
            Journal(folder / "r.jsonl")


def test_an_output_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/null"):
        with pytest.raises(ValueError, match="is no regular file: leave --output out"):
            Journal(path)
