"""Reading a pickle of plain values without running anything that it names."""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tolktrain.config.errors import UserError

_LARGEST_BYTES = 1 << 20


def read_plain_pickle(path: str | Path) -> Any:
    """The value in a file: builtin containers, strings, numbers, and NumPy's numbers, which become Python's.

    NumPy's arrays are taken in, but come out as None: their own reader trusts the file too much. Raises `UserError` if
    the file cannot be read, is damaged, or names anything else; nothing that it names is imported or called.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); the set needs it") from None
    if len(content) > _LARGEST_BYTES:
        raise UserError(f"{path} has {len(content)} bytes; a description has at most {_LARGEST_BYTES}")
    try:
        return _plain(_Unpickler(io.BytesIO(content), str(path)).load())
    except UserError:
        raise
    except (Exception, MemoryError) as error:  # A damaged pickle can raise anything.
        raise UserError(
            f"{path} is no readable pickle ({type(error).__name__}: {error}); restore it from its source"
        ) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: str) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """A function of our own in place of what the pickle names. Raises `UserError` for all that has none."""
        place = _STAND_INS.get((module.replace("numpy._core.", "numpy.core."), name))
        if place is None:
            raise UserError(
                f"{self._path} asks for {module}.{name}, which a description has no need of; nothing of it was run."
                " Take the file from its authors, or write one with plain numbers"
            )
        stand_in = place

        # A function of its own each time: a pickle may set attributes of what it is given.
        def call(*arguments: Any) -> Any:
            return stand_in(*arguments)

        return call

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(f"{self._path} refers to something outside of it; restore it from its source")


class _Type:
    """A type of NumPy's numbers: its name and byte order."""

    def __init__(self, name: str) -> None:
        assert name[:1] in "biuf" and name[1:].isdigit() and int(name[1:]) <= 8, name
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Where an array was."""

    def __setstate__(self, state: Any) -> None:
        pass


def _dtype(name: str, *_: Any) -> _Type:
    return _Type(str(name))


def _scalar(kind: _Type, content: bytes) -> int | float | bool:
    value: int | float | bool = np.frombuffer(bytes(content), np.dtype(kind.order + kind.name))[0].item()
    return value


def _bytes(text: str, encoding: str) -> bytes:
    assert encoding == "latin1", encoding
    return text.encode(encoding)


def _array(*_: Any) -> _Array:
    return _Array()


_STAND_INS: Mapping[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy.core.numeric", "_frombuffer"): _array,
        ("numpy", "ndarray"): _array,
        ("_codecs", "encode"): _bytes,
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("__builtin__", "set"): set,
        ("__builtin__", "frozenset"): frozenset,
    }
)


def _plain(value: Any) -> Any:
    """The value without stand-ins."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_plain(item) for item in value)
    return value if isinstance(value, (str, bytes, int, float, complex, bool)) else None
