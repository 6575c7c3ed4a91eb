"""Weights written one tensor at a time: the bytes of the format's own package, shards, rounding, hashes."""

from __future__ import annotations

import hashlib
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from trocr_jax.checkpoints.safetensors_writer import parse_size, save_weights
from trocr_jax.checkpoints.store import read_tensors


def some_tensors():
    numbers = np.random.default_rng(0)
    shapes = {"b": (3, 5), "a": (7,), "é, ü": (2, 3, 4, 1), "empty": (0, 4), "scalar": ()}
    dtypes = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)
    return {
        f"{name}.{i}": numbers.normal(size=shape).astype(dtype)
        for i, dtype in enumerate(dtypes)
        for name, shape in shapes.items()
    }


def test_bytes_are_those_of_the_formats_own_package(tmp_path):
    tensors = some_tensors()
    hashes = save_weights(tensors, tmp_path, "model.safetensors", format_name="pt")
    ours = (tmp_path / "model.safetensors").read_bytes()
    assert ours == safetensors.numpy.save(tensors, metadata={"format": "pt"})
    assert hashes == {"model.safetensors": hashlib.sha256(ours).hexdigest()}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_views_and_jax_arrays_are_written_as_their_values(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {"turned": array.transpose(2, 0, 1), "part": array[:, ::2], "jax": jnp.asarray(array) + 1}
    save_weights(tensors, tmp_path, "model.safetensors", format_name="flax")
    loaded = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_shards_are_named_and_indexed_as_transformers_does(tmp_path):
    tensors = {f"{i}": np.full(250, i, np.float32) for i in range(5)} | {"large": np.zeros(1000, np.float32)}
    seen = []
    hashes = save_weights(
        tensors, tmp_path, "model.safetensors", format_name="pt", max_shard_size="2KB", progress=seen.append
    )
    assert sorted(hashes) == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert sum(seen) == 5 * 1000 + 4000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 9000}
    assert list(index["weight_map"]) == list(tensors)
    assert index["weight_map"]["large"] == "model-00004-of-00004.safetensors"
    assert not (tmp_path / "model.safetensors").exists()
    assert all((tmp_path / name).stat().st_size < 2500 for name in list(hashes)[:3])
    loaded = read_tensors(tmp_path / "model.safetensors.index.json")
    assert all(loaded[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounding_is_numpys(tmp_path, dtype):
    tensors = some_tensors()
    save_weights(tensors, tmp_path, "model.safetensors", format_name="pt", dtype=dtype)
    loaded = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        expected = tensor.astype(dtype)
        assert loaded[name].dtype == expected.dtype
        assert loaded[name].shape == expected.shape
        assert loaded[name].tobytes() == expected.tobytes()


def test_a_number_that_a_dtype_cannot_hold_is_named(tmp_path):
    tensors = {"fine": np.ones(3, np.float32), "large": np.array([1, -7e4], np.float32)}
    with pytest.raises(ValueError, match=r"large holds numbers up to 7e\+04, which float16 cannot hold"):
        save_weights(tensors, tmp_path, "model.safetensors", format_name="pt", dtype="float16")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("size", "expected"), [(5, 5), ("5", 5), ("5GB", 5 * 10**9), ("3 mb", 3 * 10**6), ("2KiB", 2048)]
)
def test_sizes(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "5TB", "-5", 0, "1.5GB", None])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="is not a number of bytes"):
        parse_size(size)
