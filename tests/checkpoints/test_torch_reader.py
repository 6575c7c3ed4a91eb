"""Torch's files read without torch: every number and every object as torch.load gives them."""

from __future__ import annotations

import argparse
import collections
import io
import json
import pickle
import struct
import subprocess
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import pickles
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.torch_objects import Stub
from trocr_jax.checkpoints.torch_pickle import read_pickle
from trocr_jax.checkpoints.torch_reader import read_torch, read_torch_tensors, tensors

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older"])
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
WITHOUT_STORAGE_CLASS = {name for name in DTYPES if name.startswith(("float8", "uint"))} - {"uint8"}


def save(content, path, is_zip=True, **options):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip, **options)
    return path


def assert_same(array, tensor):
    """Bitwise equality of an array with a torch tensor, dtype and shape included."""
    assert isinstance(array, np.ndarray)
    assert f"torch.{array.dtype.name}" == str(tensor.dtype)
    assert array.shape == tuple(tensor.shape)
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    assert np.ascontiguousarray(array).tobytes() == flat.view(torch.uint8).numpy().tobytes()


def assert_same_tree(content, expected):
    """Equality of a content with what torch.load gives, tensors bitwise."""
    if isinstance(expected, torch.Tensor):
        assert_same(content, expected)
    elif isinstance(expected, dict):
        assert list(content) == list(expected)
        for key, value in expected.items():
            assert_same_tree(content[key], value)
    elif isinstance(expected, list | tuple):
        assert len(content) == len(expected)
        assert isinstance(content, tuple if isinstance(expected, tuple) else list)
        for part, value in zip(content, expected, strict=True):
            assert_same_tree(part, value)
    else:
        assert type(content) is type(expected)
        assert content == expected


def assert_as_torch(path):
    content = read_torch(path).content
    assert_same_tree(content, torch.load(path, weights_only=False))
    return content


def random_bits(dtype, count=24, seed=0):
    """A tensor of random bits, NaNs of all kinds among them."""
    dtype = getattr(torch, dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed)).bool()
    bits = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(bits).view(dtype)


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_bitwise(tmp_path, dtype, is_zip):
    tensor = random_bits(dtype)
    content = {"flat": tensor, "square": tensor.reshape(4, 6), "t": tensor.reshape(4, 6).t(), "some": tensor[3:9:2]}
    path = save(content, tmp_path / "file.bin", is_zip)
    assert_same_tree(read_torch(path).content, content)
    if is_zip or dtype not in WITHOUT_STORAGE_CLASS:  # which torch writes in the older format, and fails to load
        assert_as_torch(path)


@FORMATS
def test_views_scalars_empty_tensors_and_parameters(tmp_path, is_zip):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    with_attribute, parameter = base.clone(), torch.nn.Parameter(base.clone())
    with_attribute.note = parameter.note = "left out"
    content = {
        "permuted": base.permute(2, 0, 1),
        "sliced": base[1:, ::2, 3:],
        "expanded": base[:1].expand(7, 4, 5),
        "scalar": torch.tensor(2.5),
        "scalar of a view": base[2, 3, 4],
        "empty": torch.empty(0),
        "empty axes": torch.empty(2, 0, 3, dtype=torch.int16),
        "empty slice": base[3:],
        "parameter": torch.nn.Parameter(base),
        "frozen": torch.nn.Parameter(base, requires_grad=False),
        "parameter with state": parameter,
        "with attribute": with_attribute,
        "size": base.shape,
    }
    loaded = read_torch(save(content, tmp_path / "file.bin", is_zip)).content
    expected = torch.load(tmp_path / "file.bin", weights_only=False)
    assert loaded.pop("size") == tuple(expected.pop("size")) == (3, 4, 5)
    assert_same_tree(loaded, expected)
    assert all(not array.flags.writeable for array in loaded.values())


@FORMATS
def test_shared_storages_stay_shared_and_nothing_is_copied(tmp_path, is_zip):
    base = torch.arange(12.0).reshape(3, 4)
    loaded = assert_as_torch(save({"a": base, "b": base[1:], "c": base.t()}, tmp_path / "file.bin", is_zip))
    assert np.shares_memory(loaded["a"], loaded["b"])
    assert np.shares_memory(loaded["a"], loaded["c"])
    owner = loaded["a"]
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_strided_view_bitwise(tmp_path_factory, data):
    count = data.draw(st.integers(1, 60))
    size = data.draw(st.lists(st.integers(0, 4), max_size=4))
    stride = data.draw(st.lists(st.integers(0, 6), min_size=len(size), max_size=len(size)))
    reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
    offset = data.draw(st.integers(0, max(count - 1 - reach, 0)))
    if reach + offset >= count:
        return
    view = random_bits("float16", count).as_strided(size, stride, offset)
    path = tmp_path_factory.mktemp("view") / "file.bin"
    assert_as_torch(save([view], path, data.draw(st.booleans())))


@FORMATS
def test_training_checkpoint_with_optimizer(tmp_path, is_zip):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2, dtype=torch.float32)
    )
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "args": None,
        "optimizer_history": [{"num_updates": 7, "loss": 0.25, "name": "Adam", "big": 2**80, "flags": (True, False)}],
        "last_optimizer_state": optimizer.state_dict(),
        "extra_state": {"epoch": 3, "best": 1e-3, "text": "é\n", "lists": [[], [[]], {}]},
    }
    assert model.state_dict()._metadata  # an attribute of the OrderedDict: BUILD on a dict
    path = save(content, tmp_path / "checkpoint.pt", is_zip)
    loaded = assert_as_torch(path)
    found = read_torch_tensors(path)
    assert list(found) == list(model.state_dict()) == list(loaded["model"])
    for name, tensor in model.state_dict().items():
        assert_same(found[name], tensor)
        assert found[name].flags.aligned


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol, is_zip):
    content = {
        "tensor": torch.arange(4.0),
        "bytes": b"\x00\xff" * 200 if protocol > 2 else None,
        "set": {1, "two", None} if protocol > 3 else None,
        "frozen": frozenset({(1, 2)}) if protocol > 3 else None,
        "numbers": [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**300, 0.1, float("inf")],
        "long": "x" * 300,
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "many": list(range(3000)),
        "default": collections.defaultdict(dict, {0: {"step": 1}}),
    }
    assert_as_torch(save(content, tmp_path / "file.bin", is_zip, pickle_protocol=protocol))


def test_older_file_by_hand_with_parts_of_storages_and_a_module(tmp_path):
    # What torch <= 0.4 and Python 2 wrote: parts of storages, device classes, old strings, _rebuild_tensor.
    identifier = pickles.tuple_(
        b"U\x07storage",
        pickles.global_("torch", "FloatStorage"),
        pickles.text("root"),
        pickles.text("cpu"),
        pickles.integer(6),
        pickles.tuple_(pickles.text("part"), pickles.integer(2), pickles.integer(3)),
    )
    rebuild = pickles.global_("torch._utils", "_rebuild_tensor")
    args = pickles.tuple_(identifier + b"Q", pickles.integer(1), pickles.tuple_(b"K\x02"), pickles.tuple_(b"K\x01"))
    content = b"\x80\x02}U\x01w" + rebuild + args + b"Rs."
    numbers = np.arange(6, dtype="<f4")
    (tmp_path / "old.pt").write_bytes(pickles.older(content, {"root": (6, numbers.tobytes())}))
    assert_as_torch(tmp_path / "old.pt")
    np.testing.assert_array_equal(read_torch_tensors(tmp_path / "old.pt")["w"], [3, 4])

    torch.save({"net": torch.nn.Linear(2, 1)}, tmp_path / "module.pt", _use_new_zipfile_serialization=False)
    net = read_torch(tmp_path / "module.pt").content["net"]
    assert (net.module, net.name) == ("torch.nn.modules.linear", "Linear")
    with pytest.raises(CheckpointError, match=r"also holds 'net'"):
        read_torch_tensors(tmp_path / "module.pt")


def test_deflated_and_packed_again(tmp_path):
    content = {"w": torch.zeros(1000), "v": torch.arange(50)}
    save(content, tmp_path / "file.bin")
    with (
        zipfile.ZipFile(tmp_path / "file.bin") as old,
        zipfile.ZipFile(tmp_path / "zip.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        new.mkdir("file")
        for name in old.namelist():
            new.writestr(name, old.read(name))
    found = read_torch_tensors(tmp_path / "zip.bin")
    for name, tensor in content.items():
        assert_same(found[name], tensor)


def test_unaligned_tensors_are_safe_to_use(tmp_path):
    for shift in range(4):
        path = save(
            {"x" * shift: 1, "w": random_bits("bfloat16"), "v": torch.arange(12.0).reshape(3, 4)}, tmp_path / "f", False
        )
        content = read_torch(path).content
        found = tensors({name: content[name] for name in "wv"}, path)
        assert all(array.flags.aligned for array in found.values())
        for name, array in found.items():
            assert np.asarray(jnp.asarray(content[name])).tobytes() == array.tobytes()
            saved = safetensors.numpy.save({"a": np.ascontiguousarray(content[name])})
            assert saved.endswith(array.tobytes())


class Custom:
    """A class of the trainer's own."""

    def __init__(self, depth):
        self.depth = depth
        self.itself = self


class CustomList(list):
    pass


def test_other_objects_become_stubs(tmp_path):
    namespace = argparse.Namespace(arch="deit", depth=12, weights=torch.arange(3.0))
    content = {"model": {"w": torch.ones(2)}, "args": namespace, "own": Custom(3), "list": CustomList([1, 2])}
    content |= {"dtype": torch.float16, "device": torch.device("cpu"), "scalar": np.float32(3), "set": {1, 2}}
    content |= {
        "storage": torch.arange(2.0).untyped_storage(),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
    }
    content |= {"dict": collections.Counter("aab"), "sparse": torch.eye(2).to_sparse()}
    path = save(content, tmp_path / "checkpoint.pt")
    loaded = read_torch(path).content
    assert all(isinstance(value, Stub) for name, value in loaded.items() if name != "model")
    assert (loaded["args"].module, loaded["args"].name) == ("argparse", "Namespace")
    assert loaded["args"].state["arch"] == "deit"
    assert_same(loaded["args"].state["weights"], torch.arange(3.0))
    assert loaded["own"].name == "Custom"
    assert loaded["own"].state["itself"] is loaded["own"]
    assert loaded["list"].items == [1, 2]
    assert loaded["dtype"].symbol == ("torch", "float16")
    assert_same(read_torch_tensors(path)["w"], torch.ones(2))
    assert len(repr(loaded)) < 2000


def test_modules_of_stubs_are_never_imported(tmp_path):
    foreign = {"omegaconf.dictconfig": "DictConfig", "fairseq.data.dictionary": "Dictionary", "deit_models": "Deit"}
    packages = ("omegaconf", "fairseq", "fairseq.data", *foreign)
    try:
        sys.modules.update({module: types.ModuleType(module) for module in packages})
        for module, name in foreign.items():
            setattr(sys.modules[module], name, type(name, (dict,), {"__module__": module}))
        made = {name: getattr(sys.modules[module], name)(depth=12) for module, name in foreign.items()}
        made["DictConfig"].parent = made["DictConfig"]  # as omegaconf's nodes know theirs
        torch.save({"model": {"w": torch.ones(1)}, "cfg": made}, tmp_path / "fairseq.pt")
    finally:
        for module in packages:
            del sys.modules[module]
    before = set(sys.modules)
    cfg = read_torch(tmp_path / "fairseq.pt").content["cfg"]
    assert set(sys.modules) == before
    for module, name in foreign.items():
        assert (cfg[name].module, cfg[name].name) == (module, name)
        assert cfg[name].entries == [("depth", 12)]
    assert cfg["DictConfig"].state["parent"] is cfg["DictConfig"]


def test_reading_needs_no_torch(tmp_path):
    save({"w": torch.arange(3.0)}, tmp_path / "file.bin")
    program = (
        "import sys; from trocr_jax.checkpoints.torch_reader import read_torch_tensors as read; "
        f"print(read({str(tmp_path / 'file.bin')!r})['w'].tolist(), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split("\n")[0] == "[0.0, 1.0, 2.0] False"


@pytest.mark.parametrize("entry", ["model", "state_dict", "module", "model_state_dict"])
def test_state_dicts_are_found(tmp_path, entry):
    path = save({entry: {"w": torch.ones(1)}, "epoch": 1, "optimizer": {"w": torch.zeros(1)}}, tmp_path / "file.bin")
    assert_same(read_torch_tensors(path)["w"], torch.ones(1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "is a list"),
        (torch.ones(1), "is a ndarray"),
        ({}, "is empty"),
        ({"weights": {"w": torch.ones(1)}}, "also holds 'weights'"),
        ({"model": {"w": torch.ones(1), "n": 3}}, "its entry 'model' also holds 'n'"),
        ({1: torch.ones(1)}, "names that are not strings"),
        ({"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.ones(1)}}, "save only one"),
        (argparse.Namespace(w=torch.ones(1)), "is <Stub 'argparse.Namespace'"),
    ],
)
def test_what_is_no_state_dict_is_said(tmp_path, content, words):
    path = save(content, tmp_path / "file.bin")
    with pytest.raises(CheckpointError, match=words) as error:
        read_torch_tensors(path)
    assert str(path) in str(error.value)


def write_shards(folder, shards, weight_map):
    for name, content in shards.items():
        save(content, folder / name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return index


def test_sharded(tmp_path):
    shards = {"one.bin": {"a": torch.ones(2), "b": torch.zeros(2)}, "two.bin": {"c": torch.arange(3)}}
    found = read_torch_tensors(write_shards(tmp_path, shards, {"a": "one.bin", "b": "one.bin", "c": "two.bin"}))
    assert_same_tree(found, shards["one.bin"] | shards["two.bin"])


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "one.bin", "c": "../outside.bin"}, "not a weights file beside it"),
        ({"a": "one.bin", "c": "/etc/passwd"}, "not a weights file beside it"),
        ({"a": "one.bin", "c": ".."}, "not a weights file beside it"),
        ({"a": "one.bin", "c": ""}, "not a weights file beside it"),
        ({"a": "one.bin", "c": "a\\b"}, "not a weights file beside it"),
        ({"a": "one.bin", "c": "pytorch_model.bin.index.json"}, "not a weights file beside it"),
        ({"a": "one.bin", "c": "three.bin"}, "missing"),
        ({"a": "one.bin", "b": "two.bin"}, r"\['a'\] are stored in more than one shard"),
        ({"a": "one.bin", "c": "one.bin"}, r"lists \['c'\], which no shard holds"),
        (["one.bin"], "no weight_map"),
        ({"a": 1}, "no weight_map"),
    ],
)
def test_bad_shards(tmp_path, weight_map, words):
    folder = tmp_path / "model"
    folder.mkdir()
    save({"c": torch.ones(1)}, tmp_path / "outside.bin")
    shards = {"one.bin": {"a": torch.ones(1)}, "two.bin": {"a": torch.ones(1), "b": torch.ones(1)}}
    index = write_shards(folder, shards, weight_map)
    with pytest.raises(CheckpointError, match=words) as error:
        read_torch_tensors(index)
    assert str(index) in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"weight_map": null}'])
def test_bad_index(tmp_path, text):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match="index"):
        read_torch_tensors(index)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            read_torch(path)


def test_standard_library_agrees_on_every_opcode_of_containers():
    """The machine against pickle.loads, on pickles that torch never writes."""
    for content in (
        b"(I1\nI01\nL7L\nF1.5\nS'old'\nVnew\nt.",
        b"(lp0\nI1\naI2\na.",
        b"(dp0\nS'a'\nI1\ns.",
        b"(K\x01K\x02d.",
        b"(K\x01K\x02l.",
        b"((K\x01K\x020K\x01K\x02t.",
        b"(K\x01(K\x05K\x061t.",
        b"K\x012\x86.",
        b"]q\x00(h\x00j\x00\x00\x00\x00g0\ne0].",
        b"\x80\x05\x95\x04\x00\x00\x00\x00\x00\x00\x00(K\x01t.",
        b"\x80\x04\x8f(K\x01K\x02\x90.",
        b"\x80\x04(K\x01K\x02\x91.",
        b"\x80\x05\x96\x02\x00\x00\x00\x00\x00\x00\x00ab.",
        b"T\x02\x00\x00\x00abU\x01c\x86.",
        b"B\x02\x00\x00\x00abC\x01c\x86\x94\x94h\x01.",
        b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a\x8d\x01\x00\x00\x00\x00\x00\x00\x00b\x86.",
        b"G" + struct.pack(">d", 0.1) + b"\x8b\x02\x00\x00\x00\xff\x7f\x86.",
    ):
        assert read_pickle(io.BytesIO(content), {}) == pickle.loads(content), content
