"""Hostile and damaged files of torch.save: nothing is executed, memory stays bounded, and the file is named."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import random
import struct
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import pickles
from tests.checkpoints.pickles import call, global_, integer, state_dict, storage, tensor, text, tuple_, zipped
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.checkpoints.torch_objects import MAX_DEPTH, Stub
from trocr_jax.checkpoints.torch_pickle import MAX_OPCODES
from trocr_jax.checkpoints.torch_reader import TorchFile, read_torch, read_torch_tensors

MODEST = 64 << 20  # bytes; what no small file may take


class Watch:
    """What the interpreter was asked to do in this thread while `is_on`: audit hooks cannot be taken away again."""

    events = ("import", "exec", "compile", "pickle.find_class", "os.", "subprocess.", "socket.", "ctypes.", "shutil.")

    def __init__(self):
        self.thread, self.seen = None, []
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if self.thread == threading.get_ident():
            is_writing = event == "open" and args[1] not in ("r", "rb", None)
            if is_writing or event.startswith(self.events):
                self.seen.append((event, str(args)[:200]))

    @contextlib.contextmanager
    def nothing_runs(self):
        self.seen.clear()
        self.thread = threading.get_ident()
        try:
            yield
        finally:
            self.thread = None
        assert not self.seen


WATCH = Watch()
for codec in ("raw-unicode-escape", "cp437"):
    "".encode(codec)  # which Python imports when a pickle or archive first needs it


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    """The file that payloads make; there must be none after any test."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


def read(path):
    with WATCH.nothing_runs():
        return read_torch(path).content


def assert_refused(path, words=None):
    with pytest.raises(CheckpointError, match=words) as error, WATCH.nothing_runs():
        read_torch_tensors(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


CODE = "__import__('pathlib').Path('marker').touch()"
OS = call("builtins", "__import__", text("os"))
GETATTR = call("builtins", "getattr", OS, text("system"))
PAYLOADS = {
    "os.system": call("os", "system", text("touch marker")),
    "posix.system": call("posix", "system", text("touch marker")),
    "nt.system": call("nt", "system", text("touch marker")),
    "os.popen": call("os", "popen", text("touch marker")),
    "subprocess.Popen": call("subprocess", "Popen", tuple_(text("touch"), text("marker"))),
    "subprocess.check_output": call("subprocess", "check_output", tuple_(text("touch"), text("marker"))),
    "pty.spawn": call("pty", "spawn", text("marker")),
    "eval": call("builtins", "eval", text(CODE)),
    "exec": call("builtins", "exec", text(CODE)),
    "exec of python 2": call("__builtin__", "eval", text(CODE)),
    "open": call("builtins", "open", text("marker"), text("w")),
    "io.open": call("io", "open", text("marker"), text("w")),
    "__import__": call("builtins", "__import__", text("antigravity")),
    "getattr chain": GETATTR + tuple_(text("touch marker")) + b"R",
    "import_module chain": call("builtins", "getattr", call("importlib", "import_module", text("os")), text("system")),
    "operator.attrgetter": call("operator", "attrgetter", text("system")) + tuple_(OS) + b"R",
    "functools.partial": call("functools", "partial", global_("os", "system"), text("touch marker")) + b")R",
    "map": call("builtins", "list", call("builtins", "map", global_("os", "system"), tuple_(text("touch marker")))),
    "inst": b"(" + text("touch marker") + b"ios\nsystem\n",
    "obj": b"(" + global_("os", "system") + text("touch marker") + b"o",
    "newobj": global_("subprocess", "Popen") + tuple_(tuple_(text("touch"), text("marker"))) + b"\x81",
    "newobj_ex": global_("subprocess", "Popen") + b")}" + text("args") + text("touch marker") + b"s\x92",
    "stack_global": text("os") + text("system") + b"\x93" + tuple_(text("touch marker")) + b"R",
    "dotted stack_global": text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
    "module in the name": text("torch._utils _rebuild_tensor_v2 ") + text("__call__") + b"\x93" + b")R",
    "attribute of an allowed module": call("torch._utils", "_import_dotted_name", text("os.system")),
    "allowed name elsewhere": call("torch._utils.os", "_rebuild_tensor_v2", text("touch marker")),
    "classmethod of an allowed class": call("collections", "OrderedDict.fromkeys", text("ab")),
    "subclasses": call("builtins", "getattr", global_("builtins", "object"), text("__subclasses__")) + b")R",
    "torch.load": call("torch.serialization", "load", text("marker")),
    "torch.hub": call("torch.hub", "load", text("user/marker"), text("model")),
    "_load_from_bytes": call("torch.storage", "_load_from_bytes", b"C\x04cos\n"),
    "pickle.loads": call("pickle", "loads", b"C\x10cos\nsystem\n)R.  "),
    "code object": call("types", "FunctionType", call("types", "CodeType", b"K\x00"), b"}"),
    "runpy": call("runpy", "_run_code", text(CODE), b"}"),
    "write_text": call("pathlib", "Path.write_text", call("pathlib", "Path", text("marker")), text("x")),
    "setattr": call("builtins", "setattr", global_("numpy", "ndarray"), text("x"), b"K\x01"),
    "build a module": global_("sys", "modules") + b"}" + text("os") + b"K\x01sb",
    "build a class": global_("collections", "OrderedDict")
    + b"}"
    + text("__setitem__")
    + global_("os", "system")
    + b"sb",
    "build with slots": call("argparse", "Namespace") + b"N}" + text("__class__") + global_("os", "system") + b"s\x86b",
    "reduce a reduce": call("copyreg", "__newobj__", global_("subprocess", "Popen"), text("touch marker")),
    "append to a global": global_("sys", "path") + text("/tmp") + b"a",
    "set an item of a global": global_("os", "environ") + text("PATH") + text("/tmp") + b"s",
}


def test_payloads_would_run_if_anything_ran_them(marker):
    for name in ("os.system", "exec", "getattr chain", "inst", "stack_global", "map"):
        pickle.loads(b"\x80\x02" + PAYLOADS[name] + b".")
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_beside_the_tensors_become_stubs(tmp_path, name):
    content = state_dict(model=b"}" + text("w") + tensor() + b"s", cfg=PAYLOADS[name])
    for path in (zipped(tmp_path / "file.bin", content), tmp_path / "older.bin"):
        if path.name == "older.bin":
            content = content.replace(integer(6) + b"tQ", integer(6) + b"NtQ")
            path.write_bytes(pickles.older(content, {"0": (6, pickles.SIX)}))
        loaded = read(path)
        assert isinstance(loaded["cfg"], Stub)
        assert len(repr(loaded["cfg"])) < 200
        np.testing.assert_array_equal(read_torch_tensors(path)["w"], np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_in_the_place_of_tensors_are_refused(tmp_path, name):
    assert_refused(zipped(tmp_path / "a.bin", state_dict(w=tensor(), v=PAYLOADS[name])), "also holds 'v'")
    assert_refused(zipped(tmp_path / "b.bin", state_dict(w=tensor(store=PAYLOADS[name]))), "a tensor has no storage")
    assert_refused(zipped(tmp_path / "c.bin", state_dict(w=call("collections", "OrderedDict", PAYLOADS[name]))))
    assert_refused(zipped(tmp_path / "d.bin", b"\x80\x02" + PAYLOADS[name] + b"."), "is <Stub")


def test_good_file_by_hand_is_as_torch_reads_it(tmp_path):
    """The files below are this one with one thing wrong."""
    path = zipped(tmp_path / "file.bin", state_dict(w=tensor()))
    np.testing.assert_array_equal(read_torch_tensors(path)["w"], torch.load(path)["w"].numpy())


def test_strides_of_axes_of_length_1_do_not_matter(tmp_path):
    path = zipped(tmp_path / "file.bin", state_dict(w=tensor(size=(1, 6), stride=(2**61, 1))))
    np.testing.assert_array_equal(read_torch_tensors(path)["w"], torch.load(path)["w"].numpy())


def test_tensors_of_other_classes_are_stubs(tmp_path):
    # Their numbers may mean something else, as those of quantised tensors do.
    for name, kind in (("Tensor", np.ndarray), ("QuantizedTensor", Stub)):
        args = tuple_(storage(), integer(0), tuple_(integer(6)), tuple_(integer(1)), b"\x89", b"N")
        rebuild = global_("torch._utils", "_rebuild_tensor_v2")
        value = call("torch._tensor", "_rebuild_from_type_v2", rebuild, global_("torch", name), args, b"}")
        assert isinstance(read(zipped(tmp_path / "file.bin", state_dict(w=value)))["w"], kind)


HUGE = 2**61
FROM_TYPE = global_("torch._tensor", "_rebuild_from_type_v2")
# _rebuild_from_type_v2 of itself of itself ..., whose arguments are (function, class, (function, class, ...), None).
DEEP_REBUILD = FROM_TYPE + b"q\x00" + b"(h\x00" + global_("torch", "Tensor") + b"q\x01"
DEEP_REBUILD += b"(h\x00h\x01" * 5000 + b")N" + b"tN" * 5000 + b"tR"
TENSORS = {
    "more elements than the storage": (tensor(size=(3, 3)), "reaches to element 8"),
    "size beyond memory": (tensor(size=(HUGE, HUGE)), "reaches to element"),
    "overflowing product": (tensor(size=(2**32, 2**32), stride=(1, 1)), "reaches to element"),
    "number beyond 64 bits": (tensor(size=(2**64 + 2, 3)), "not a number of elements"),
    "expanded beyond memory": (tensor(size=(HUGE, 3), stride=(0, 1)), "many times the size"),
    "expanded to overflow": (tensor(size=(HUGE, HUGE), stride=(0, 0)), "many times the size"),
    "stride beyond memory": (tensor(stride=(HUGE, 1)), "reaches to element"),
    "negative stride": (tensor(offset=5, stride=(-3, -1)), "not a number of elements"),
    "negative size": (tensor(size=(-2, 3)), "not a number of elements"),
    "negative offset": (tensor(offset=-1), "not a number of elements"),
    "offset past the end": (tensor(offset=6, size=(), stride=()), "reaches to element 6"),
    "offset that moves the end out": (tensor(offset=1), "reaches to element 6"),
    "fewer strides than sizes": (tensor(stride=(3,)), "2 sizes and 1 strides"),
    "too many axes": (tensor(size=(1,) * 40, stride=(1,) * 40), "not a tuple of at most"),
    "empty of no possible size": (tensor(size=(0, HUGE, HUGE)[:2]), "no array can have"),
    "true as size": (
        call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00(\x88\x88t(K\x01K\x01t\x89N"),
        "not a",
    ),
    "text as offset": (call("torch._utils", "_rebuild_tensor_v2", storage(), text("0"), b"))\x89N"), "not a number"),
    "text as size": (
        call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00", text("ab"), b")\x89N"),
        "not a tuple",
    ),
    "no arguments": (call("torch._utils", "_rebuild_tensor_v2"), "no storage"),
    "no storage": (tensor(store=tuple_()), "no storage"),
    "tensor as storage": (tensor(store=tensor()), "no storage"),
    "v3 without dtype": (tensor(name="_rebuild_tensor_v3"), "no dtype"),
    "v3 with a text as dtype": (tensor(name="_rebuild_tensor_v3", rest=b"\x89N" + text("float32")), "no dtype"),
    "v3 beyond its bytes": (
        tensor(name="_rebuild_tensor_v3", rest=b"\x89N" + global_("torch", "float64")),
        "reaches to element 5",
    ),
    "attributes on nothing": (call("torch._tensor", "_rebuild_from_type_v2", b"K\x01K\x02K\x03K\x04"), "no function"),
    "rebuilds within rebuilds": (DEEP_REBUILD, "nests"),
    "called with a number": (global_("torch._utils", "_rebuild_tensor_v2") + b"K\x01R", "calls"),
    "calling a number": (b"K\x01)R", "calls"),
    "calling a tensor": (tensor() + b")R", "calls"),
    "storage of another size": (tensor(store=storage(count=7)), "announces 7"),
    "storage larger than the file": (tensor(store=storage(count=HUGE)), "announces"),
    "storage of negative size": (tensor(store=storage(count=-6)), "without a key or size"),
    "storage under two dtypes": (tensor() + b"0" + tensor(store=storage(("torch", "IntStorage"))), "of float32"),
    "storage that is not there": (tensor(store=storage(key="1")), "no member 'archive/data/1'"),
    "storage elsewhere": (tensor(store=storage(key="../../outside")), "no member"),
    "storage that is the pickle": (tensor(store=storage(key="../data.pkl")), "no member"),
    "storage of another kind": (tensor(store=storage(("os", "FloatStorage"))), "of the kind <Stub 'os.FloatStorage'>"),
    "quantised storage": (tensor(store=storage(("torch", "QInt8Storage"))), "QInt8Storage"),
    "unknown persistent id": (tensor(store=storage(first="module")), "not a storage"),
    "number as persistent id": (tensor(store=b"K\x01Q"), "not a storage"),
    "tensor as persistent id": (tensor(store=tensor() + b"Q"), "not a storage"),
    "tensors in a persistent id": (tensor(store=tuple_(*[tensor()] * 5) + b"Q"), "not a storage"),
    "short persistent id": (tensor(store=tuple_(text("storage")) + b"Q"), "not a storage"),
    "tensor as a key": (b"}" + tensor() + b"K\x01s", "as a key"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_tensors(tmp_path, name):
    value, words = TENSORS[name]
    tracemalloc.start()
    try:
        assert_refused(zipped(tmp_path / "file.bin", state_dict(w=value)), words)
        assert tracemalloc.get_traced_memory()[1] < MODEST
    finally:
        tracemalloc.stop()


def nested(opening, closing=b""):
    return opening * (MAX_DEPTH + 1) + b"]" + closing * (MAX_DEPTH + 1)


PICKLES = {
    "no stop": (b"\x80\x02}", "exhausted"),
    "nothing": (b"", "exhausted"),
    "unknown opcode": (b"\x80\x02\xff.", "unknown"),
    "unknown protocol": (b"\x80\x09N.", "protocol 9"),
    "ext1": (b"\x80\x02\x82\x01.", "EXT1"),
    "ext2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "ext4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "text persistent id": (b"P0\n.", "PERSID"),
    "buffers": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "read-only buffers": (b"\x80\x05N\x98.", "READONLY_BUFFER"),
    "empty stack": (b"\x80\x020.", "never set"),
    "stop on an empty stack": (b"\x80\x02.", "takes more"),
    "dup on an empty stack": (b"\x80\x022.", "empty stack"),
    "tuple of nothing": (b"\x80\x02\x85.", "takes more"),
    "pop below a mark": (b"\x80\x02N(\x85.", "takes more"),
    "no mark": (b"\x80\x02t.", "never set"),
    "obj of nothing": (b"\x80\x02(o.", "calls"),
    "unknown memo": (b"\x80\x02h\x05.", "never stored"),
    "long bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.", "expected 1152921504606846976 bytes"),
    "longer bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b"abc.", "byte count"),
    "long bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.", "expected"),
    "long text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.", "expected"),
    "long old text": (b"\x80\x02X\xff\xff\xff\xffabc.", "expected"),
    "long integer": (b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "not enough"),
    "negative integer length": (b"\x80\x02\x8b\xff\xff\xff\xffabc.", "negative"),
    "integer of many bits": (b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".", "integer of 32767 bits"),
    "integer of many digits": (b"I" + b"1" * 5000 + b"\n.", "digits"),
    "long frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.", "frame"),
    "bad text": (b"\x80\x02X\x01\x00\x00\x00\xff.", "decode"),
    "bad number": (b"Ix\n.", "invalid literal"),
    "bad escape": (b"S'\\z'\n.", "bad string|is 'z'"),
    "key without a value": (b"\x80\x02}(K\x01u.", "without a value"),
    "list as a key": (b"\x80\x02}]K\x01s.", "a list as a key"),
    "huge integer as a key": (b"\x80\x02}" + integer(2**70) + b"K\x01s.", "a int as a key"),
    "deep tuple as a key": (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", "a tuple as a key"),
    "laughing tuple as a key": (b"\x80\x02})" + b"2\x86" * 64 + b"K\x01s.", "a tuple as a key"),
    "wide tuple as a key": (b"\x80\x02}(" + b"N" * 65 + b"tK\x01s.", "a tuple as a key"),
    "list in a set": (b"\x80\x04\x8f(]\x90.", "adds to"),
    "list in a frozenset": (b"\x80\x04(]\x91.", "adds to"),
    "key of a list": (b"\x80\x02]K\x01K\x02s.", "sets a key of a list"),
    "append to a number": (b"\x80\x02K\x01K\x02a.", "appends to"),
    "add to a number": (b"\x80\x04K\x01(K\x02\x90.", "adds to"),
    "state of a number": (b"\x80\x02K\x01}b.", "sets the state"),
    "state of a list": (b"\x80\x02]}b.", "sets the state"),
    "global named by numbers": (b"\x80\x04K\x01K\x02\x93.", "something else than strings"),
    "deep tuples": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "nests"),
    "deep lists": (b"\x80\x02" + nested(b"]", b"a") + b".", "nests"),
    "deep in a stub": (b"\x80\x02" + global_("a", "b") + b")R" + nested(b"]", b"a") + b"b.", "nests"),
    "deep in a key": (b"\x80\x02}" + global_("a", "b") + b")R" + nested(b"]", b"a") + b"bK\x01s.", "nests"),
    "list in itself": (b"\x80\x02]q\x00h\x00a.", "contains itself"),
    "dict in itself through a tuple": (b"\x80\x02}q\x00K\x01h\x00\x85s.", "contains itself"),
    "many opcodes": (b"\x80\x02" + b"N0" * MAX_OPCODES + b".", "opcodes"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles(tmp_path, name):
    content, words = PICKLES[name]
    assert_refused(zipped(tmp_path / "file.bin", content), words)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + global_("a", "b") + b")R" * 20_000 + b".",  # a chain of calls of what was called
        b"\x80\x02" + (global_("a", "b") + b")R") * 20_000 + b"b" * 19_999 + b".",  # states of states
        b"\x80\x02]q\x00" + b"2\x86" * 90 + b".",  # a billion laughs; nothing spells them out
        b"\x80\x02]q\x00" + global_("a", "b") + b")Rh\x00\x85ba.",
        b"\x80\x04" + b"\x8f" * 100_000 + b"N.",
    ],
    ids=["calls", "states", "laughs", "circle through a stub", "sets"],
)
def test_odd_pickles_take_little(tmp_path, content):
    path = zipped(tmp_path / "file.bin", content)
    tracemalloc.start()
    try:
        loaded = read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * MODEST
        assert isinstance(loaded, Stub | tuple | list | None)
    finally:
        tracemalloc.stop()


def test_names_of_arguments_are_recorded_and_not_passed_on(tmp_path):
    content = b"\x80\x04" + global_("collections", "OrderedDict") + b")}" + text("a") + b"K\x01s\x92."
    made = read(zipped(tmp_path / "file.bin", content))
    assert isinstance(made, Stub)
    assert (made.args, made.kwargs) == ((), {"a": 1})


def test_long_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trocr_jax.checkpoints.torch_reader.MAX_BYTES", 120)
    assert_refused(zipped(tmp_path / "file.bin", state_dict(w=tensor())), "more than 120 bytes")
    (tmp_path / "older.bin").write_bytes(pickles.older(OLDER, {"0": (6, pickles.SIX)}))
    assert_refused(tmp_path / "older.bin", "expected|exhausted")


def patched(path, place, new):
    """Writes bytes at a place of the file: an offset, or what stands there."""
    content = bytearray(path.read_bytes())
    offset = place if isinstance(place, int) else content.index(place)
    content[offset : offset + len(new)] = new
    path.write_bytes(content)
    return path


def test_hostile_member_names(tmp_path):
    good = state_dict(w=tensor())
    names = ("../evil", "archive/../../evil", "/etc/evil", "C:/evil", "archive\\evil", "archive//evil", "./evil")
    for number, name in enumerate(names):
        path = zipped(tmp_path / f"{number}.bin", good, more=[(name.replace("\\", "!"), b"x")])
        path.write_bytes(path.read_bytes().replace(b"archive!evil", b"archive\\evil"))
        assert_refused(path, "unsafe name")
        assert not (tmp_path / "evil").exists()
    path = zipped(tmp_path / "null.bin", good, more=[("archive/evil-name", b"x")])
    path.write_bytes(path.read_bytes().replace(b"evil-name", b"evil\0name"))
    assert_refused(path, "unsafe name")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives(tmp_path):
    good = state_dict(w=tensor())
    path = zipped(tmp_path / "twice.bin", good, more=[("archive/data.pkl", good)])
    assert_refused(path, "two members with the name 'archive/data.pkl'")
    assert_refused(zipped(tmp_path / "two.bin", good, more=[("other/data.pkl", good)]), "2 data.pkl")
    assert_refused(zipped(tmp_path / "script.bin", good, more=[("archive/constants.pkl", b"")]), "TorchScript")
    assert_refused(zipped(tmp_path / "bzip.bin", good, compression=zipfile.ZIP_BZIP2), "neither stored nor deflated")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert_refused(tmp_path / "other.zip", "0 data.pkl")
    for order in (b"big\0\0\0", b"middle"):
        assert_refused(patched(zipped(tmp_path / "order.bin", good), b"little", order), "byte order")


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


@pytest.mark.parametrize(
    ("name", "header", "offset", "new", "words"),
    [
        ("encrypted", CENTRAL, 8, b"\x01", "encrypted"),
        ("encrypted strongly", CENTRAL, 8, b"\x40", "encrypted"),
        ("encrypted locally", LOCAL, 6, b"\x01", "contradicts"),
        ("local signature", LOCAL, 0, b"PK\x03\x05", "contradicts|damaged"),
        ("local method", LOCAL, 8, b"\x08", "contradicts"),
        ("local packed size", LOCAL, 18, b"\x01", "contradicts"),
        ("local size", LOCAL, 22, b"\x01", "contradicts"),
        ("local name length", LOCAL, 26, b"\x0f", "contradicts"),
        ("local name", LOCAL, 30, b"b", "contradicts"),
        ("local extra length", LOCAL, 28, b"\xff\xff", "beyond"),
        ("central method", CENTRAL, 10, b"\x08", "contradicts"),
        ("central method that is none", CENTRAL, 10, b"\x63", "neither"),
        ("central packed size", CENTRAL, 20, b"\xff\xff\xff\x00", "two sizes"),
        ("both central sizes", CENTRAL, 20, b"\xff\xff\xff\x00\xff\xff\xff\x00", "contradicts|beyond"),
        ("central version", CENTRAL, 6, b"\xff", "damaged"),
        ("central offset", CENTRAL, 42, b"\x05", "contradicts"),
        ("central offset far away", CENTRAL, 42, b"\xff\xff\xff\x7f", "outside"),
        ("central name", CENTRAL, 46, b"\xff", "contradicts|0 data.pkl"),
    ],
)
def test_hostile_headers(tmp_path, name, header, offset, new, words):
    path = zipped(tmp_path / "file.bin", state_dict(w=tensor()))
    assert_refused(patched(path, path.read_bytes().index(header) + offset, new), words)


def test_zip_bombs(tmp_path):
    zeros, good = bytes(100 << 20), state_dict(w=tensor())
    bombs = [
        zipped(tmp_path / "a.bin", good, more=[("archive/data/1", zeros)], compression=zipfile.ZIP_DEFLATED),
        zipped(tmp_path / "b.bin", good + zeros, compression=zipfile.ZIP_DEFLATED),
    ]
    # A member that says less than it holds.
    for name, said in (("c.bin", 24), ("d.bin", 0), ("e.bin", 1000)):
        path = zipped(tmp_path / name, good, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
        bombs.append(path)
        path.write_bytes(path.read_bytes().replace(struct.pack("<L", len(zeros)), struct.pack("<L", said)))
    del zeros
    tracemalloc.start()
    try:
        for path, words in zip(bombs, ("would take", "would take", *["does not inflate"] * 3), strict=True):
            assert_refused(path, words)
            assert tracemalloc.get_traced_memory()[1] < MODEST
    finally:
        tracemalloc.stop()


def test_damaged_deflated_members(tmp_path):
    path = zipped(tmp_path / "file.bin", state_dict(w=tensor()), compression=zipfile.ZIP_DEFLATED)
    start = path.read_bytes().index(b"archive/data/0") + len("archive/data/0")
    good = path.read_bytes()[start]
    for value in set(range(256)) - {good}:
        assert_refused(patched(path, start, bytes([value])), "inflate")


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    store, views = 1 << 20, 1000  # a gigabyte in a file of a megabyte, when they are copied one by one
    value = tensor(size=(store // 4,), stride=(1,), store=storage(count=store // 4))
    content = state_dict(**{f"w{number}": value for number in range(views)})
    assert_refused(zipped(tmp_path / "file.bin", content, {"0": bytes(store)}), "many times the size")


OLDER = state_dict(w=tensor()).replace(integer(6) + b"tQ", integer(6) + b"NtQ")


def part_of_a_storage(*numbers):
    part = tuple_(text("part"), *map(integer, numbers))
    return OLDER.replace(integer(6) + b"NtQ", integer(6) + part + b"tQ")


def test_good_older_file_by_hand(tmp_path):
    (tmp_path / "file.bin").write_bytes(pickles.older(OLDER, {"0": (6, pickles.SIX)}))
    found = read_torch_tensors(tmp_path / "file.bin")["w"]
    np.testing.assert_array_equal(found, torch.load(tmp_path / "file.bin")["w"].numpy())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"N.", "neither a zip"),
        (b"<!DOCTYPE html><html>not found</html>", "neither a zip"),
        (struct.pack("<Q", 2) + b"{}", "neither a zip"),
        (b"PK", "zip directory"),
        (b"PK\x05\x06" + bytes(18), "0 data.pkl"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (bytes(257) + b"ustar\x0000" + bytes(1000), "tar format of torch before 0.1.10"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "exhausted"),
        (pickles.older(OLDER, {}, protocol=1000), "another version"),
        (pickles.older(OLDER, {}, little_endian=False), "little-endian"),
        (pickles.older(OLDER, {}, little_endian=1), "little-endian"),
        (pickles.older(OLDER, {}), "not that of its pickle"),
        (pickles.older(OLDER, {"0": (6, pickles.SIX)}, keys=["0", "0"]), "not that of its pickle"),
        (pickles.older(OLDER, {"0": (6, pickles.SIX)}, keys=["1"]), "not that of its pickle"),
        (pickles.older(OLDER, {"0": (6, pickles.SIX)}, keys=[[]]), "list of storages is not one"),
        (pickles.older(OLDER, {"0": (6, pickles.SIX)}, keys={"0": 1}), "list of storages is not one"),
        (pickles.older(OLDER, {"0": (7, pickles.SIX)}), "7 elements instead of 6"),
        (pickles.older(OLDER, {"0": (-1, pickles.SIX)}), "-1 elements instead of 6"),
        (pickles.older(OLDER, {"0": (6, pickles.SIX[:-1])}), "incomplete"),
        (pickles.older(OLDER, {"0": (6, pickles.SIX)})[:-30], "incomplete"),
        (pickles.older(part_of_a_storage(0, 7), {"0": (6, pickles.SIX)}), "reaches beyond it"),
        (pickles.older(part_of_a_storage(5, 2), {"0": (6, pickles.SIX)}), "reaches beyond it"),
        (pickles.older(part_of_a_storage(-1, 2), {"0": (6, pickles.SIX)}), "without offset and size"),
        (pickles.older(part_of_a_storage(0), {"0": (6, pickles.SIX)}), "without offset and size"),
        (pickles.older(part_of_a_storage(1, 5), {"0": (6, pickles.SIX)}), "reaches to element 5"),
        (pickles.older(state_dict(w=tensor()), {"0": (6, pickles.SIX)}), "not a storage"),
        (pickles.older(OLDER.replace(integer(6), integer(2**61)), {"0": (2**61, pickles.SIX)}), "incomplete"),
    ],
)
def test_hostile_older_and_other_files(tmp_path, content, words):
    (tmp_path / "file.bin").write_bytes(content)
    assert_refused(tmp_path / "file.bin", words)


class Own:
    """A class that a checkpoint may name."""


def originals(folder):
    """(name, bytes) of files that cover the formats, opcodes and objects, to be damaged."""
    own = Own()
    own.parent, own.sizes = own, {1, 2}
    content = {
        "model": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "s": torch.tensor(1)},
        "args": argparse.Namespace(arch="deit", own=own, items=[1, 2.5, None, True, b"bytes", "text" * 80, 2**70]),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "empty": torch.empty(0, 2)}}, "groups": [(1,), (1, 2)]},
        "parameter": torch.nn.Parameter(torch.ones(2).expand(3, 2)),
        "unsigned": torch.tensor([1, 2], dtype=torch.int32).to(torch.uint16),
    }
    for is_zip in (True, False):
        for protocol in (2, 4):
            name = f"{'zip' if is_zip else 'older'}-{protocol}"
            path = folder / name
            torch.save(content, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
            yield name, path.read_bytes()
    with zipfile.ZipFile(folder / "zip-2") as old, zipfile.ZipFile(folder / "new", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    yield "deflated", (folder / "new").read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return dict(originals(tmp_path_factory.mktemp("files")))


def read_damaged(path, content):
    """Reads a damaged file to the last number: a result or CheckpointError, nothing else. Whether it was a result."""
    path.write_bytes(content)
    with WATCH.nothing_runs():
        try:
            found = read_torch(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017 either outcome is right
            return False
        assert isinstance(found, TorchFile)
        # What other code does to a result: prints it, takes its tensors, copies them.
        if len(content) < 100_000:
            repr(found)
        with contextlib.suppress(CheckpointError):
            for array in read_torch_tensors(path).values():
                array.tobytes()
    return True


NAMES = ("zip-2", "zip-4", "older-2", "older-4", "deflated")


@pytest.mark.parametrize("name", NAMES)
def test_truncated(tmp_path, files, name):
    content, draw = files[name], random.Random(0)
    path = tmp_path / "file.bin"
    for length in {draw.randrange(len(content)) for _ in range(50)} | {1, len(content) - 1}:
        assert not read_damaged(path, content[:length])


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits(tmp_path, files, name):
    content, draw = files[name], random.Random(1)
    read_well = 0
    for _ in range(500):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        read_well += read_damaged(tmp_path / "file.bin", bytes(damaged))
    assert 0 < read_well < 500  # some bits are padding or weights, and some are not


INTERESTING = [b"\x00", b"\xff", b"\x7f", b"(", b")", b"R", b"b", b"t", b"o", b"Q", b"u", b"2", b"0", b"\x81", b"\x93"]
INTERESTING += [b"q\x00", b"h\x00", b"\x85", b"\x94", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"cos\nsystem\n"]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "cut", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(INTERESTING)),
    ),
    min_size=1,
    max_size=8,
)


def edited(content, edits):
    content = bytearray(content)
    for kind, fraction, new in edits:
        place = int(fraction * len(content))
        if kind == "set":
            content[place : place + len(new)] = new
        elif kind == "insert":
            content[place:place] = new
        elif kind == "cut":
            del content[place : place + len(new)]
        else:
            content[place:place] = content[place // 2 : place // 2 + 4 * len(new)]
    return bytes(content)


def fuzz(folder, files, name, edits, is_inside):
    """One example: a file with edits anywhere, or (so that the archive is whole) only in its pickle."""
    path = folder / "file.bin"
    if is_inside and not name.startswith("older"):
        with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, raw in members.items():
                archive.writestr(member, edited(raw, edits) if member.endswith("data.pkl") else raw)
        read_damaged(path, buffer.getvalue())
    else:
        read_damaged(path, edited(files[name], edits))


@given(st.sampled_from(NAMES), EDITS, st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_fuzz(tmp_path_factory, files, name, edits, is_inside):
    fuzz(tmp_path_factory.getbasetemp(), files, name, edits, is_inside)


@pytest.mark.slow
@given(st.sampled_from(NAMES), EDITS, st.booleans())
@settings(max_examples=20_000, deadline=None, derandomize=True)
def test_fuzz_for_long(tmp_path_factory, files, name, edits, is_inside):
    fuzz(tmp_path_factory.getbasetemp(), files, name, edits, is_inside)


FRAGMENTS = [tensor(), storage(), tuple_(), global_("torch._utils", "_rebuild_parameter"), text("w"), integer(2**63)]
FRAGMENTS += [
    b"]",
    b"}",
    b"\x8f",
    b"(",
    b"a",
    b"e",
    b"s",
    b"u",
    b"\x90",
    b"\x91",
    b"d",
    b"l",
    b"N",
    b"\x88",
    b"K\x01",
    b"\x92",
]
FRAGMENTS += [global_("torch._utils", "_rebuild_tensor_v2"), global_("torch._tensor", "_rebuild_from_type_v2")]
FRAGMENTS += [global_("torch", "Tensor"), global_("torch", "float32"), global_("torch", "Size"), *INTERESTING]
PARTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(list(PAYLOADS.values()))), max_size=30)


def fuzz_opcodes(folder, parts):
    """One example: a pickle of opcodes that fit together more often than random bytes do."""
    content = zipped(folder / "file.bin", b"\x80\x04" + b"".join(parts) + b".").read_bytes()
    read_damaged(folder / "file.bin", content)


@given(PARTS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_fuzz_opcodes(tmp_path_factory, parts):
    fuzz_opcodes(tmp_path_factory.getbasetemp(), parts)


@pytest.mark.slow
@given(PARTS)
@settings(max_examples=20_000, deadline=None, derandomize=True)
def test_fuzz_opcodes_for_long(tmp_path_factory, parts):
    fuzz_opcodes(tmp_path_factory.getbasetemp(), parts)
