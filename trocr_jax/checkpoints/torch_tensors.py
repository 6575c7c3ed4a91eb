"""Tensors from torch's storages: which types there are, and what the few functions mean that rebuild tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from trocr_jax.checkpoints.torch_objects import Stub, quote
from trocr_jax.checkpoints.torch_pickle import Call

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
_STORAGE_NAMES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Files of old versions name the device.
_STORAGES = {(module, name): dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGE_NAMES.items()}
_STORAGES[("torch.storage", "UntypedStorage")] = "uint8"
_TENSOR_CLASSES = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"))
_MAX_AXES = 32


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Storage(Stub):
    """A storage: its bytes (None as long as they are not located), and the dtype of tensors that do not say their own.

    `count` is the number of elements that the reference announces.
    """

    key: str = ""
    dtype: str = "uint8"
    count: int = 0
    raw: np.ndarray | None = None

    @property
    def size(self) -> int:
        """The announced size in bytes."""
        return self.count * DTYPES[self.dtype].itemsize

    def located(self, raw: np.ndarray, dtype: str) -> Storage:
        """The storage with its bytes, whose size and dtype (by the first reference to it) have to be the announced."""
        if self.dtype != dtype or self.size != raw.nbytes:
            raise ValueError(
                f"its pickle announces {self.count} numbers of {self.dtype} in the storage {quote(self.key)}, "
                f"which has {raw.nbytes} bytes of {dtype}"
            )
        return dataclasses.replace(self, raw=raw)


def kind_of(identifier: Any, length: int) -> str:
    """The first entry of a persistent id, which is a tuple of this length; empty if it is not."""
    if type(identifier) is tuple and len(identifier) == length and type(identifier[0]) is str:
        return identifier[0]
    return ""


def parse_identifier(identifier: Any, length: int) -> Storage:
    """The storage that the persistent id ("storage", class, key, location, count, ...) refers to, without its bytes."""
    if kind_of(identifier, length) != "storage":
        raise ValueError("its pickle refers to something outside itself that is not a storage")
    _, kind, key, _, count = identifier[:5]
    if not isinstance(kind, Stub) or kind.symbol not in _STORAGES:
        raise ValueError(f"its pickle has a storage of the kind {kind if isinstance(kind, Stub) else quote(kind)}")
    if type(key) is not str or type(count) is not int or count < 0:
        raise ValueError("its pickle has a storage without a key or size")
    return Storage(*kind.symbol, args=(), key=key, dtype=_STORAGES[kind.symbol], count=count)


def growth_limit(file_size: int) -> int:
    """The bytes that a file of this size may grow to: many times what weights do, and no harm for a small file."""
    return (64 << 20) + 16 * file_size


class Rebuilder:
    """What calling torch's functions means. One per file, as it counts what the tensors add up to.

    `calls` are the functions that a pickle may call; none of them copies an argument.
    """

    def __init__(self, file_size: int) -> None:
        # Shared and expanded tensors add up to more than the file; those of a hostile one could go on to petabytes.
        self.budget = growth_limit(file_size)
        self._rebuilds: dict[tuple[str, str], Call] = {
            ("torch._utils", "_rebuild_tensor"): self.tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self.tensor_v3,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        }
        self.calls: dict[tuple[str, str], Call] = {
            ("collections", "OrderedDict"): lambda args: NotImplemented if args else {},
            ("collections", "defaultdict"): lambda args: NotImplemented if len(args) > 1 else {},
            ("torch", "Size"): _size,
            ("torch._tensor", "_rebuild_from_type_v2"): self.from_type,
            **self._rebuilds,
        }

    def tensor(self, args: tuple[Any, ...]) -> Any:
        """_rebuild_tensor(storage, storage_offset, size, stride): the oldest."""
        if len(args) != 4 or not isinstance(args[0], Storage):
            raise ValueError("a tensor has no storage, offset, size and stride")
        return self.view(args[0], args[0].dtype, *args[1:])

    def tensor_v2(self, args: tuple[Any, ...]) -> Any:
        """_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks[, metadata])."""
        return self.tensor(args[:4]) if _is_plain(args[6:]) else NotImplemented

    def tensor_v3(self, args: tuple[Any, ...]) -> Any:
        """_rebuild_tensor_v3(*_rebuild_tensor_v2's, dtype[, metadata]), for dtypes that have no storage class."""
        if len(args) < 7 or not isinstance(args[0], Storage) or not isinstance(args[6], Stub):
            raise ValueError("a tensor has no storage or no dtype")
        dtype = args[6]
        module, name = dtype.symbol
        is_known = module == "torch" and name in DTYPES
        return self.view(args[0], name, *args[1:4]) if is_known and _is_plain(args[7:]) else NotImplemented

    def from_type(self, args: tuple[Any, ...]) -> Any:
        """_rebuild_from_type_v2(function, class, args, state): a tensor with attributes, which are left out."""
        if len(args) != 4 or not all(isinstance(arg, Stub) for arg in args[:2]) or type(args[2]) is not tuple:
            raise ValueError("a tensor has no function, class and arguments")
        function, kind = args[:2]
        # Not from self.calls, which has this very function: it would recurse as deep as the file says.
        rebuild = self._rebuilds.get(function.symbol)
        # Other classes may mean other numbers, as quantised ones do.
        return rebuild(args[2]) if rebuild and kind.symbol in _TENSOR_CLASSES else NotImplemented

    def view(self, storage: Storage, dtype_name: str, offset: Any, size: Any, stride: Any) -> Any:
        """The tensor at offset, size and stride, counted in elements; ValueError if one is outside the storage."""
        _check_numbers(offset, size, stride)
        if storage.raw is None:
            return NotImplemented
        dtype = DTYPES[dtype_name]
        if 0 in size:
            return _empty(size, dtype)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if last >= storage.raw.nbytes // dtype.itemsize:
            raise ValueError(f"a tensor reaches to element {last} of a storage of {storage.raw.nbytes} bytes")
        self.budget -= math.prod(size) * dtype.itemsize
        if self.budget < 0:
            raise ValueError("its tensors add up to many times the size of the file")
        # The stride of an axis of length 1 is never used, and can be any number in torch.
        strides = [dtype.itemsize * (step if length > 1 else 1) for length, step in zip(size, stride, strict=True)]
        # Unlike as_strided, ndarray() checks once more that the view lies within the buffer. Read-only, as raw is.
        return np.ndarray(tuple(size), dtype, storage.raw, offset * dtype.itemsize, strides)


def _check_numbers(offset: Any, size: Any, stride: Any) -> None:
    for numbers in ((offset,), size, stride):
        if not isinstance(numbers, tuple | list) or len(numbers) > _MAX_AXES:
            raise ValueError(f"a tensor's size or stride is not a tuple of at most {_MAX_AXES} numbers")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a tensor's offset, size or stride is not a number of elements")
    if len(size) != len(stride):
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")


def _empty(size: Any, dtype: np.dtype[Any]) -> np.ndarray:
    if math.prod(max(length, 1) for length in size) * dtype.itemsize >= 2**62:
        raise ValueError("an empty tensor has a size that no array can have")
    array = np.empty(size, dtype)
    array.setflags(write=False)
    return array


def _is_plain(metadata: tuple[Any, ...]) -> bool:
    """Whether a tensor's metadata is absent or empty; else the numbers may be meant as conjugate or negative."""
    return all(part is None or (isinstance(part, dict) and not part) for part in metadata)


def _size(args: tuple[Any, ...]) -> Any:
    return args[0] if len(args) == 1 and type(args[0]) is tuple else NotImplemented


def _parameter(args: tuple[Any, ...]) -> Any:
    """_rebuild_parameter(tensor, requires_grad, backward_hooks[, state]): the tensor."""
    return args[0] if args and isinstance(args[0], np.ndarray | Stub) else NotImplemented
