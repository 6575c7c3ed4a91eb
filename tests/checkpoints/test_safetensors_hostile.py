"""Safetensors files that are damaged or made to harm: an error that names the file, in bounded memory."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.store import read_tensors


def file(header, data=bytes(64), length=None):
    """The bytes of a file with this header, which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


TWICE = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
HOSTILE = {
    "nothing": b"",
    "half a length": b"\x10\x00\x00",
    "header of 2**63 bytes": file(b"{}", length=2**63),
    "header of a terabyte": file(b"{}", length=2**40),
    "header longer than the file": file(b"{}", length=1000),
    "no header": file(b""),
    "header of null": file(b"null"),
    "header of a list": file([]),
    "header of brackets": file(b"[" * 100_000),
    "header of deep objects": file(b'{"a":' * 100_000),
    "header that is not UTF-8": file(b'{"\xff":1}'),
    "metadata of numbers": file({"__metadata__": {"a": 1}}),
    "metadata of lists": file({"__metadata__": [1]}),
    "name twice": file(TWICE, bytes(16)),
    "shape beyond the data": file({"a": entry(shape=(2**40,))}),
    "shape that overflows": file({"a": entry(shape=(2**33, 2**33))}),
    "empty shape that overflows": file({"a": entry(shape=(0, 2**62), offsets=(0, 0))}, b""),
    "negative shape": file({"a": entry(shape=(-1,))}),
    "fractional shape": file({"a": entry(shape=(1.5,))}),
    "a thousand axes": file({"a": entry(shape=(1,) * 1000, offsets=(0, 4))}, bytes(4)),
    "offsets beyond the file": file({"a": entry(offsets=(0, 2**40))}),
    "offsets the wrong way round": file({"a": entry(offsets=(16, 0))}),
    "negative offsets": file({"a": entry(offsets=(-16, 0))}),
    "offsets that overlap": file({"a": entry(), "b": entry()}, bytes(16)),
    "offsets with a hole": file({"a": entry(), "b": entry(offsets=(32, 48))}, bytes(48)),
    "bytes that nobody owns": file({"a": entry()}),
    "unknown dtype": file({"a": entry("Q4")}, bytes(16)),
    "dtype of 8 bits": file({"a": entry("F8_E4M3", (16,))}, bytes(16)),
    "dtype of 4 bits": file({"a": entry("F4", (32,))}, bytes(16)),
    "a pickle": b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00true\x85R.",
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HOSTILE["a pointer of Git LFS"])
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_tensors(tmp_path / "model.safetensors")


def test_hostile_files_take_no_memory(tmp_path):
    for i, content in enumerate(HOSTILE.values()):
        (tmp_path / f"{i}.safetensors").write_bytes(content)
    code = (
        "import pathlib, resource, sys; from trocr_jax.checkpoints import store;"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2);"
        "refused = 0\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: store.read_tensors(path)\n"
        "    except store.CheckpointError: refused += 1\n"
        "print(refused)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(HOSTILE)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """(bytes of a good file, a path to write damaged ones to)."""
    tensors = {"a": np.ones((3, 4), np.float32), "b": np.ones(5, ml_dtypes.bfloat16), "c": np.zeros((0, 2), np.float16)}
    return safetensors.numpy.save(tensors, metadata={"format": "pt"}), tmp_path_factory.mktemp(
        "damaged"
    ) / "a.safetensors"


def is_read(path, content):
    """Whether a damaged file is read; CheckpointError naming it is the only other outcome."""
    path.write_bytes(content)
    try:
        found = read_tensors(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 either outcome is right
        return False
    for array in found.values():
        array.tobytes()
    return True


def test_truncated_files_are_refused(good):
    content, path = good
    draw = random.Random(0)
    for length in {draw.randrange(len(content)) for _ in range(50)} | {1, len(content) - 1}:
        assert not is_read(path, content[:length])


def test_flipped_bits_are_refused_or_other_numbers(good):
    content, path = good
    draw = random.Random(1)
    count = 0
    for _ in range(500):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        count += is_read(path, bytes(damaged))
    assert 0 < count < 500


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=8), st.sampled_from([b"-1", b"9" * 20, b"[", b"{", b'"', b"null", b"1e9"])
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(EDITS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_fuzz(good, edits):
    content, path = good
    damaged = bytearray(content)
    for kind, fraction, new in edits:
        place = int(fraction * len(damaged))
        damaged[place : place + (0 if kind == "insert" else len(new))] = b"" if kind == "cut" else new
    is_read(path, bytes(damaged))
