"""A pickle machine that cannot execute anything: it builds containers, numbers and strings, and records the rest.

Not a subclass of pickle.Unpickler, whose every opcode is dangerous until it is overridden: `find_class` guards the
imports, but REDUCE, NEWOBJ and OBJ still call what is on the stack, and BUILD and APPEND use its attributes. Here
`pickletools.genops`, public and without side effects, splits the bytes into opcodes, and a table says what each does;
an opcode that is not in the table is refused. No name from the file ever reaches `import`, `getattr` or a call: a
global is a `Stub`, an inert record, and calling one makes another record. The few calls that mean something (tensors,
dicts) are functions of ours, looked up by (module, name).

Memory is bounded by the pickle's size: lengths are checked before reading, the opcodes are counted, no opcode or call
copies what the memo can repeat for one byte, and nothing recurses. What is returned is shallow enough for code that
does recurse, such as `repr`.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trocr_jax.checkpoints.torch_objects import Stub, check_nesting, is_key, quote

# TrOCR large with its optimizer's state takes 85,000 opcodes in 0.25 MB. Two million of the costliest, empty sets and
# stubs, take half a gigabyte.
MAX_OPCODES = 2_000_000
MAX_BYTES = 64 << 20
_MAX_INT_BITS = 1024  # more than any hash, seed or random state; hashing long numbers takes quadratic time
_HIGHEST_PROTOCOL = 5


# What a call that is allowed makes of its arguments; NotImplemented for those that are better recorded as a stub.
Call = Callable[[tuple[Any, ...]], Any]


def read_pickle(
    stream: io.BytesIO, calls: Mapping[tuple[str, str], Call], storage: Callable[[Any], Any] | None = None
) -> Any:
    """The object that a pickle describes; the stream is left behind its STOP.

    `calls` gives what calling a (module, name) means, `storage` what a persistent id does (None: none is expected).
    Raises ValueError that says what is wrong, without the file's name.
    """
    try:
        value = _Machine(stream, calls, storage).run()
    except Warning as warning:  # an invalid escape in a string of protocol 0, where warnings are errors
        raise ValueError(f"its pickle has a bad string ({warning})") from warning
    check_nesting(value)
    return value


class _Machine:
    """The stack, its marks and the memo, as pickle's documentation describes them."""

    def __init__(
        self,
        stream: io.BytesIO,
        calls: Mapping[tuple[str, str], Call],
        storage: Callable[[Any], Any] | None,
    ) -> None:
        self.stream = stream
        self.calls = calls
        self.storage = storage
        self.size = stream.getbuffer().nbytes
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follows the opcodes up to STOP."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.stream)):
            if opcode.name == "STOP":
                return self.pop()
            if count >= MAX_OPCODES:
                raise ValueError(f"its pickle has more than {MAX_OPCODES} opcodes")
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise ValueError(f"its pickle uses the opcode {opcode.name}, which no checkpoint needs")
            action(self, argument)
        raise ValueError("its pickle has no end")

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("its pickle takes more from the stack than it put there")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("its pickle looks for an object on an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise ValueError("its pickle goes back to a mark that it never set")
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def drop_to_mark(self, _: Any) -> None:
        self.pop_mark()

    def drop(self, _: Any) -> None:
        # POP also takes back a mark, as in the standard library.
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def push(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > _MAX_INT_BITS:
            raise ValueError(f"its pickle holds an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def push_old_string(self, text: str) -> None:
        # Python 2's strings; genops gives the bytes as Latin-1, torch.load reads them as UTF-8.
        content = text.encode("latin-1")
        try:
            self.stack.append(content.decode())
        except UnicodeDecodeError:
            self.stack.append(content)

    def check_protocol(self, protocol: int) -> None:
        if protocol > _HIGHEST_PROTOCOL:
            raise ValueError(f"its pickle has the protocol {protocol}; up to {_HIGHEST_PROTOCOL} are known")

    def check_frame(self, length: int) -> None:
        # Frames only say how much to buffer; all is in memory here, so that a true length is all that is asked.
        if length > self.size - self.stream.tell():
            raise ValueError(f"its pickle announces a frame of {length} bytes, more than there are")

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def set_pairs(self, flat: list[Any]) -> None:
        target = self.top()
        if len(flat) % 2:
            raise ValueError("its pickle sets a key without a value")
        if isinstance(target, Stub):
            target.entries.extend(zip(flat[::2], flat[1::2], strict=True))
            return
        if type(target) is not dict:
            raise ValueError(f"its pickle sets a key of {quote(target)}")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if not is_key(key):
                raise ValueError(f"its pickle has {quote(key)} as a key")
            target[key] = value

    def set_pair(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_pairs([key, value])

    def dict_of(self, _: Any) -> None:
        flat = self.pop_mark()
        self.stack.append({})
        self.set_pairs(flat)

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Stub):
            target.items.extend(items)
        elif type(target) is list:
            target.extend(items)
        else:
            raise ValueError(f"its pickle appends to {quote(target)}")

    def append(self, _: Any) -> None:
        value = self.pop()
        self.extend([value])

    def add(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Stub):
            target.items.extend(items)
        elif type(target) is set and all(is_key(item) for item in items):
            target.update(items)
        else:
            raise ValueError(f"its pickle adds to {quote(target)}")

    def frozenset_of(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(set())
        self.add(items)
        self.stack[-1] = frozenset(items)

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"its pickle asks for the object {index}, which it never stored")
        self.stack.append(self.memo[index])

    def push_global(self, names: str) -> None:
        # genops joins module and name by a space; neither has one in a name that means anything here.
        module, _, name = names.partition(" ")
        self.stack.append(Stub(module, name))

    def push_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("its pickle names a global by something else than strings")
        self.stack.append(Stub(module, name))

    def call(self, callee: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(callee, Stub) or type(args) is not tuple:
            raise ValueError(f"its pickle calls {quote(callee)} with {quote(args)}")
        known = None if kwargs else self.calls.get(callee.symbol)
        made = NotImplemented if known is None else known(args)
        if made is NotImplemented:
            first = None if callee.args is None else callee
            made = Stub(callee.module, callee.name, args, kwargs, first)
        self.stack.append(made)

    def reduce(self, _: Any) -> None:
        args, callee = self.pop(), self.pop()
        self.call(callee, args)

    def reduce_with_names(self, _: Any) -> None:
        kwargs, args, callee = self.pop(), self.pop(), self.pop()
        self.call(callee, args, kwargs)

    def call_marked(self, _: Any) -> None:
        callee, *args = self.pop_mark() or [None]
        self.call(callee, tuple(args))

    def call_named(self, names: str) -> None:
        args = tuple(self.pop_mark())
        self.push_global(names)
        self.call(self.pop(), args)

    def build(self, _: Any) -> None:
        # Attributes of dicts and tensors (`_metadata` of a state dict, hooks) carry no weights, and are left out.
        state, target = self.pop(), self.top()
        if isinstance(target, Stub):
            target.state = state
        elif not isinstance(target, dict | np.ndarray):
            raise ValueError(f"its pickle sets the state of {quote(target)}")

    def load_storage(self, identifier: Any) -> None:
        if self.storage is None:
            raise ValueError("its pickle refers to a storage where there is none")
        self.stack.append(self.storage(identifier))


_Action = Callable[[_Machine, Any], None]


def _constant(make: Callable[[], Any]) -> _Action:
    return lambda machine, _: machine.stack.append(make())


_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
# Left out, and so refused: EXT1, EXT2, EXT4 (a registry of classes), PERSID (torch's ids are tuples), NEXT_BUFFER and
# READONLY_BUFFER (memory outside the file).
_ACTIONS: Mapping[str, _Action] = {
    **dict.fromkeys(_NUMBERS + _TEXTS + _BYTES, _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push_old_string),
    "PROTO": _Machine.check_protocol,
    "FRAME": _Machine.check_frame,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "DICT": _Machine.dict_of,
    "FROZENSET": _Machine.frozenset_of,
    "SETITEM": _Machine.set_pair,
    "SETITEMS": lambda machine, _: machine.set_pairs(machine.pop_mark()),
    "APPEND": _Machine.append,
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.push_stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.reduce_with_names,
    "OBJ": _Machine.call_marked,
    "INST": _Machine.call_named,
    "BUILD": _Machine.build,
    "BINPERSID": lambda machine, _: machine.load_storage(machine.pop()),
}
