"""Pickles and files of torch.save put together by hand, so that tests can write what torch never would."""

from __future__ import annotations

import pickle
import struct
import zipfile

STOP = b"."


def text(value):
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def integer(value):
    content = pickle.encode_long(value)
    return b"\x8a" + bytes([len(content)]) + content


def tuple_(*parts):
    return b"(" + b"".join(parts) + b"t"


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *args):
    return global_(module, name) + tuple_(*args) + b"R"


def storage(kind=("torch", "FloatStorage"), key="0", count=6, first="storage"):
    """A reference to a storage, as in the zip format."""
    return tuple_(text(first), global_(*kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(offset=0, size=(2, 3), stride=(3, 1), store=None, name="_rebuild_tensor_v2", rest=None):
    """A tensor, in the pickle's terms; by default all of a storage of six floats."""
    numbers = [tuple_(*map(integer, values)) for values in (size, stride)]
    rest = b"\x89" + call("collections", "OrderedDict") if rest is None else rest
    return call("torch._utils", name, storage() if store is None else store, integer(offset), *numbers, rest)


def state_dict(**values):
    """A pickle of a dict with these values, each in the pickle's terms."""
    return b"\x80\x02}" + b"".join(text(name) + value + b"s" for name, value in values.items()) + STOP


SIX = struct.pack("<6f", *range(6))


def zipped(path, content, storages=None, more=(), compression=zipfile.ZIP_STORED):
    """Writes a zip file as torch does, with a pickle and the bytes of storages by key."""
    members = {"archive/data.pkl": content, "archive/byteorder": b"little", "archive/version": b"3\n"}
    members |= {f"archive/data/{key}": raw for key, raw in ({"0": SIX} if storages is None else storages).items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in [*members.items(), *more]:
            archive.writestr(name, raw)
    return path


def older(content, storages, keys=None, protocol=1001, little_endian=True):
    """The bytes of a file in the older format: five pickles, then (count, bytes) of each storage."""
    preamble = (0x1950A86A20F9469CFC6C, protocol, {"protocol_version": protocol, "little_endian": little_endian})
    start = b"".join(pickle.dumps(part, 2) for part in preamble)
    end = b"".join(struct.pack("<q", count) + raw for count, raw in storages.values())
    return start + content + pickle.dumps(list(storages) if keys is None else keys, 2) + end
