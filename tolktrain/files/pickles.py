"""Reads untrusted pickles as data.

A pickle is a program for a stack machine, which may import and call anything that the pickle names. The machine here
has only the instructions that data needs, and never imports a name: `pickled_numpy` makes NumPy's arrays and numbers,
and an object is represented by a `Standin` with its description in the pickle. Python's `pickle` is used only for the
names of its instructions.
"""

import codecs
import pickle
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

from tolktrain.files.pickled_numpy import NumberType, array, array_bytes, number, shape_size

_MOST_STEPS: Final = 1 << 18  # instructions, and entries copied by them; limits memory and time
_MOST_MADE: Final = 1 << 29  # bytes of text and bytes objects
_LONGEST_NUMBER: Final = 256  # bytes; longer ones take quadratic time
_LONGEST_LINE: Final = 640  # characters of a number or a name
_LARGEST_KEY: Final = 1 << 60  # whole numbers from 2^61 - 1 on can be chosen to have one hash all
_WRAPPER: Final = ".joblib.numpy_pickle.NumpyArrayWrapper"


class NameInPickleError(ValueError):
    """A pickle names something that is neither data nor allowed."""


class Standin:
    """Represents an object of a pickle, of which no instance is created.

    `kind` is the name of its class. `state` has its attributes. `array` is the array if it was one of numbers, with
    order of bytes and memory as in the file, read-only.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}
        self.array: Any = None


class _Name:
    """A class or function that a pickle names."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Input:
    """The bytes of a file, and the remaining limits of instructions and memory."""

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = memoryview(content).toreadonly()
        self._source = content
        self._at = 0
        self._steps = _MOST_STEPS
        self._made = _MOST_MADE

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        if not 0 <= size <= len(self._content) - self._at:
            raise ValueError("it ends early")
        self._at += size
        return self._content[self._at - size : self._at]

    def line(self) -> bytes:
        """The rest of a line."""
        end = self._source.find(b"\n", self._at)
        if end < 0:
            raise ValueError("it ends early")
        self.make(end - self._at)
        return bytes(self.take(end + 1 - self._at)[:-1])

    def step(self, count: int = 1) -> None:
        """Count instructions, or operations of equal cost."""
        self._steps -= count
        if self._steps < 0:
            raise ValueError(f"it has more than {_MOST_STEPS} instructions")

    def make(self, size: int) -> None:
        """Count bytes that will be allocated."""
        self._made -= size
        if self._made < 0:
            raise ValueError(f"more than {_MOST_MADE >> 20} MiB of text and bytes would be made of it")


def read_pickle(content: bytes | bytearray, allowed: tuple[str, ...] = ()) -> Any:
    """The value in a pickle of any protocol, in time and memory bounded by its size.

    Lists, tuples, dictionaries, sets, text, bytes and numbers keep their type; NumPy's numbers become Python's, and
    bytearrays become bytes. Arrays and objects are each a `Standin`. Keys of dictionaries and members of sets are text,
    bytes, None or numbers. Containers may be shared or contain themselves, so a recursive caller must limit its steps.

    Args:
        content: of the file. Arrays refer to it.
        allowed: packages and classes whose objects may occur. joblib's NumpyArrayWrapper is replaced by its array.

    Raises:
        NameInPickleError: another name occurs; the message contains it.
        ValueError: it is not a pickle, or not one of data.
    """
    try:
        return _Machine(_Input(content), allowed).run()
    except NameInPickleError:
        raise
    except (LookupError, TypeError, OverflowError, struct.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


class _Machine:
    """The stack and memory of one pickle. Fails with the errors that `read_pickle` names."""

    def __init__(self, source: _Input, allowed: tuple[str, ...], within: bool = False) -> None:
        self.source = source
        self.stack: list[Any] = []
        self._allowed = allowed
        self._within = within  # another pickle, as joblib nests arrays of objects
        self._below: list[list[Any]] = []  # stacks below each mark
        self._memory: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute the instructions up to the stop."""
        source = self.source
        while True:
            source.step()
            code = bytes(source.take(1))
            if code == pickle.STOP:
                return self.stack.pop()
            obey = _INSTRUCTIONS.get(code)
            if obey is None:
                raise ValueError(f"it has the instruction {code!r}, which data does not need")
            obey(self)

    def unpack(self, form: str) -> Any:
        """The next bytes as a number in one of `struct`'s forms."""
        return struct.unpack(form, self.source.take(struct.calcsize(form)))[0]

    def short_line(self) -> str:
        """A line with a number or a name."""
        line = self.source.line()
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"a number or a name of {len(line)} characters")
        return line.decode("utf-8")

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Pop the values since the last mark."""
        items = self.stack
        self.stack = self._below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def wrap(self, kind: type, count: int | None = None) -> None:
        """Replace the last values by a container with them: `count` of them, or all since the mark."""
        if count is None:
            items = self.marked()
        else:
            items = self.stack[-count:]
            if len(items) < count:
                raise ValueError("values are missing")
            del self.stack[-count:]
        if kind is frozenset:
            _check_keys(items)
        self.stack.append(kind(items))

    def container(self, kind: type) -> Any:
        """The container on the stack."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"members of a {kind.__name__} for a {_kind_of(self.stack[-1])}")
        return self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.container(list).extend(items)

    def add(self, items: list[Any]) -> None:
        _check_keys(items)
        self.container(set).update(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values, one after the other."""
        _check_keys(items[::2])
        self.container(dict).update(zip(items[::2], items[1::2], strict=True))

    def wrap_dict(self) -> None:
        """Replace the values since the mark by a dictionary."""
        items = self.marked()
        self.stack.append({})
        self.set_items(items)

    def pair(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def put(self, place: int) -> None:
        if not 0 <= place < 1 << 32:
            raise ValueError("an invalid place in memory")
        self._memory[place] = self.stack[-1]

    def memoize(self) -> None:
        self._memory[len(self._memory)] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self._memory[place])

    def name(self, module: object, name: object) -> None:
        """Push a name."""
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _LONGEST_LINE:
            raise ValueError("an invalid name")
        for old, new in _MOVED.items():
            if module == old or module.startswith(old + "."):
                module = new + module[len(old) :]
        full = f"{module}.{name}"
        allowed = any(f"{full}.".startswith(f"{start}.") for start in self._allowed)
        if not name.isidentifier() or not (allowed or full in _CALLS or full in _CLASSES):
            raise NameInPickleError(full)
        self.stack.append(_Name(full))

    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ValueError(f"a call of a {_kind_of(called)}")
        self.source.step(len(arguments))
        make = _CALLS.get(called.name)
        self.stack.append(make(self, *arguments) if make else _standin(called))

    def make_object(self, num_arguments: int) -> None:
        """Push the stand-in of an object; the arguments of its class are dropped."""
        del self.stack[-num_arguments:]
        self.stack.append(_standin(self.stack.pop()))

    def build(self) -> None:
        """Set the state of the object on the stack."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumberType):
            target.build(state)
        elif not isinstance(target, Standin):
            raise ValueError(f"attributes for a {_kind_of(target)}")
        elif target.kind == _ARRAY:
            _build_array(target, state)
        else:
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):  # slots are the second
                if isinstance(part, dict):
                    self.source.step(len(part))
                    target.state.update((key, value) for key, value in part.items() if isinstance(key, str))
            if f".{target.kind}".endswith(_WRAPPER):
                self._read_wrapped(target)

    def _read_wrapped(self, wrapper: Standin) -> None:
        """Replace joblib's array wrapper, after which the bytes of the array follow, by that array."""
        if self._within:
            raise ValueError("an array of joblib's inside of another")
        kind, shape, order = (wrapper.state.get(key) for key in ("dtype", "shape", "order"))
        if isinstance(kind, NumberType) and kind.is_object:
            # Such an array follows as a plain pickle of its own.
            _Machine(self.source, self._allowed, within=True).run()
        else:
            if wrapper.state.get("numpy_array_alignment_bytes") is not None:
                self.source.take(self.unpack("<B"))
            wrapper.array = array(self.source.take(array_bytes(kind, shape)), kind, shape, order)
        wrapper.kind = _ARRAY


def _kind_of(value: object) -> str:
    return "type" if isinstance(value, _Name) else type(value).__name__.lstrip("_").lower()


def _check_keys(keys: list[Any]) -> None:
    """Refuse keys that take long to hash, such as tuples of shared tuples, or that can be chosen to collide."""
    for key in keys:
        if isinstance(key, int) and not -_LARGEST_KEY < key < _LARGEST_KEY:
            raise ValueError("a key that is too large a number")
        if key is not None and not isinstance(key, str | bytes | int | float):
            raise ValueError(f"a key that is a {_kind_of(key)}")


def _standin(kind: object) -> Standin:
    if not isinstance(kind, _Name) or kind.name in _CALLS or kind.name in _CLASSES:
        raise ValueError("an object without a class")
    return Standin(kind.name)


# What may be called, by name, as functions of the machine and the arguments in the file.


def _reconstructor(machine: _Machine, kind: object, base: object, state: object) -> Standin:
    return _standin(kind)


def _empty_array(machine: _Machine, kind: object, shape: object, dtype: object) -> Standin:
    # What it holds comes afterwards, as its state.
    if not isinstance(kind, _Name) or kind.name != _ARRAY:
        raise ValueError("an array of another class than numpy.ndarray")
    return Standin(_ARRAY)


def _build_array(made: Standin, state: object) -> None:
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("an array without its content")
    _, shape, kind, fortran, content = state
    if isinstance(kind, NumberType) and kind.is_object:
        if not isinstance(content, list) or len(content) != shape_size(shape):
            raise ValueError("an array without its objects")
    else:
        made.array = array(content, kind, shape, "F" if fortran is True or fortran == 1 else "C")


def _array_from(
    machine: _Machine, content: object, kind: object, shape: object, order: object, axes: object = None
) -> Standin:
    if axes is not None:  # younger NumPys say so of arrays that are transposed in memory
        raise ValueError("an array with its axes in another order")
    made = Standin(_ARRAY)
    made.array = array(content, kind, shape, order)
    return made


def _encoded(machine: _Machine, text: object, encoding: object) -> bytes:
    # Old protocols write bytes as text in Latin-1.
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in another form than Latin-1")
    machine.source.make(len(text))
    return text.encode("latin1")


def _members(machine: _Machine, items: object = ()) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise ValueError(f"a set of a {_kind_of(items)}")
    machine.source.step(len(items))
    _check_keys(list(items))
    return list(items)


_ARRAY: Final = "numpy.ndarray"
_CLASSES: Final = frozenset({_ARRAY, "builtins.object"})  # arguments of the functions below
_MOVED: Final[Mapping[str, str]] = MappingProxyType(
    {"numpy._core": "numpy.core", "__builtin__": "builtins", "copy_reg": "copyreg"}
)
_CALLS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "numpy.dtype": lambda machine, name, *options: NumberType(name),
        "numpy.core.multiarray._reconstruct": _empty_array,
        "numpy.core.multiarray.scalar": lambda machine, kind, content: number(kind, content),
        "numpy.core.numeric._frombuffer": _array_from,
        "_codecs.encode": _encoded,
        "copyreg._reconstructor": _reconstructor,
        "builtins.bytes": lambda machine: b"",  # bytes that are not empty are encoded text in old protocols
        "builtins.set": lambda machine, *items: set(_members(machine, *items)),
        "builtins.frozenset": lambda machine, *items: frozenset(_members(machine, *items)),
    }
)


# The instructions.


def _refuse_persistent(machine: _Machine) -> NoReturn:
    raise NameInPickleError("a persistent object")


def _check_protocol(machine: _Machine) -> None:
    if (protocol := machine.unpack("<B")) > 5:
        raise ValueError(f"it is of protocol {protocol}, which is not known")


def _whole(text: str) -> int | bool:
    # Old protocols write False and True as 00 and 01.
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L"))


def _quoted(line: bytes) -> str:
    line = line.strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("ascii")


def _pushed_text(convert: Callable[[bytes], str]) -> Callable[[_Machine], None]:
    """An instruction that puts a line on the stack as text."""

    def push(machine: _Machine) -> None:
        line = machine.source.line()
        machine.source.make(4 * len(line))
        machine.stack.append(convert(line))

    return push


def _pushed(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    """An instruction that puts a value on the stack."""
    return lambda machine: machine.stack.append(value(machine))


def _counted(form: str, convert: Callable[[memoryview], Any], made: int = 1) -> Callable[[_Machine], None]:
    """An instruction that puts on the stack what the stated number of bytes is converted to."""

    def push(machine: _Machine) -> None:
        content = machine.source.take(machine.unpack(form))
        machine.source.make(made * len(content))
        machine.stack.append(convert(content))

    return push


def _text(content: memoryview) -> str:
    return str(content, "utf-8", "surrogatepass")


def _ascii(content: memoryview) -> str:
    return str(content, "ascii")


def _long(content: memoryview) -> int:
    if len(content) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(content)} bytes")
    return int.from_bytes(content, "little", signed=True)


_INSTRUCTIONS: Final[Mapping[bytes, Callable[[_Machine], None]]] = MappingProxyType(
    {
        # Frames and the protocol say nothing about the value.
        pickle.PROTO: _check_protocol,
        pickle.FRAME: lambda machine: machine.unpack("<Q"),
        # Constants and numbers.
        pickle.NONE: _pushed(lambda machine: None),
        pickle.NEWTRUE: _pushed(lambda machine: True),
        pickle.NEWFALSE: _pushed(lambda machine: False),
        pickle.INT: _pushed(lambda machine: _whole(machine.short_line())),
        pickle.LONG: _pushed(lambda machine: _whole(machine.short_line())),
        pickle.FLOAT: _pushed(lambda machine: float(machine.short_line())),
        pickle.BININT: _pushed(lambda machine: machine.unpack("<i")),
        pickle.BININT1: _pushed(lambda machine: machine.unpack("<B")),
        pickle.BININT2: _pushed(lambda machine: machine.unpack("<H")),
        pickle.BINFLOAT: _pushed(lambda machine: machine.unpack(">d")),
        pickle.LONG1: _counted("<B", _long),
        pickle.LONG4: _counted("<i", _long),
        # Text, which takes up to four bytes a character, and bytes.
        pickle.STRING: _pushed_text(_quoted),
        pickle.UNICODE: _pushed_text(lambda line: str(line, "raw-unicode-escape")),
        pickle.BINSTRING: _counted("<i", _ascii),
        pickle.SHORT_BINSTRING: _counted("<B", _ascii),
        pickle.SHORT_BINUNICODE: _counted("<B", _text, made=4),
        pickle.BINUNICODE: _counted("<I", _text, made=4),
        pickle.BINUNICODE8: _counted("<Q", _text, made=4),
        pickle.SHORT_BINBYTES: _counted("<B", bytes),
        pickle.BINBYTES: _counted("<I", bytes),
        pickle.BINBYTES8: _counted("<Q", bytes),
        pickle.BYTEARRAY8: _counted("<Q", bytes),
        # Containers.
        pickle.MARK: _Machine.mark,
        pickle.EMPTY_TUPLE: _pushed(lambda machine: ()),
        pickle.TUPLE1: lambda machine: machine.wrap(tuple, 1),
        pickle.TUPLE2: lambda machine: machine.wrap(tuple, 2),
        pickle.TUPLE3: lambda machine: machine.wrap(tuple, 3),
        pickle.TUPLE: lambda machine: machine.wrap(tuple),
        pickle.FROZENSET: lambda machine: machine.wrap(frozenset),
        pickle.EMPTY_LIST: _pushed(lambda machine: []),
        pickle.EMPTY_DICT: _pushed(lambda machine: {}),
        pickle.EMPTY_SET: _pushed(lambda machine: set()),
        pickle.LIST: lambda machine: machine.wrap(list),
        pickle.DICT: _Machine.wrap_dict,
        pickle.APPEND: lambda machine: machine.extend([machine.stack.pop()]),
        pickle.APPENDS: lambda machine: machine.extend(machine.marked()),
        pickle.SETITEM: _Machine.pair,
        pickle.SETITEMS: lambda machine: machine.set_items(machine.marked()),
        pickle.ADDITEMS: lambda machine: machine.add(machine.marked()),
        # The stack and the memory.
        pickle.POP: _Machine.pop,
        pickle.POP_MARK: lambda machine: machine.marked().clear(),
        pickle.DUP: lambda machine: machine.stack.append(machine.stack[-1]),
        pickle.PUT: lambda machine: machine.put(int(machine.short_line())),
        pickle.BINPUT: lambda machine: machine.put(machine.unpack("<B")),
        pickle.LONG_BINPUT: lambda machine: machine.put(machine.unpack("<I")),
        pickle.MEMOIZE: _Machine.memoize,
        pickle.GET: lambda machine: machine.get(int(machine.short_line())),
        pickle.BINGET: lambda machine: machine.get(machine.unpack("<B")),
        pickle.LONG_BINGET: lambda machine: machine.get(machine.unpack("<I")),
        # Names, and objects.
        pickle.GLOBAL: lambda machine: machine.name(machine.short_line(), machine.short_line()),
        pickle.STACK_GLOBAL: _Machine.name_from_stack,
        pickle.REDUCE: _Machine.call,
        pickle.NEWOBJ: lambda machine: machine.make_object(1),
        pickle.NEWOBJ_EX: lambda machine: machine.make_object(2),
        pickle.BUILD: _Machine.build,
        pickle.PERSID: _refuse_persistent,
        pickle.BINPERSID: _refuse_persistent,
    }
)
