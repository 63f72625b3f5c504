"""NumPy's types, numbers and arrays in pickles.

The description in a file is validated, and passed to NumPy as a known type name, a shape and the right number of bytes.
NumPy's own readers (`__setstate__`) are never used, because they trust flags and sizes in the file, even pointers.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tolktrain.files.printable import printable

_NUMBERS: Final = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_OBJECTS: Final = frozenset({"O", "O8"})
_MOST_DIMENSIONS: Final = 8
_LARGEST_DIMENSION: Final = 1 << 40


class NumberType:
    """The type of an array: plain numbers with a byte order, or objects.

    Raises:
        ValueError: the name is neither.
    """

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or name not in _NUMBERS | _OBJECTS:
            raise ValueError(f"numbers of the type {shown(name)}")
        self._name = name
        self._order = "="

    @property
    def is_object(self) -> bool:
        """Whether the elements are objects instead of numbers."""
        return self._name in _OBJECTS

    def build(self, state: object) -> None:
        """Take the byte order from NumPy's pickled state.

        Everything else (size, alignment, flags, metadata) follows from the name; the file's values are ignored.

        Raises:
            ValueError: it is not such a state, or that of a compound type.
        """
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise ValueError("numbers of a type with parts")
        order = state[1]
        if not isinstance(order, str) or order not in ("<", ">", "=", "|"):
            raise ValueError(f"numbers with the order of bytes {shown(order)}")
        self._order = "=" if order == "|" else order

    def dtype(self) -> np.dtype[Any]:
        """The type for NumPy. Raises ValueError for objects."""
        if self.is_object:
            raise ValueError("objects in the place of numbers")
        return np.dtype(self._order + self._name)


def shape_size(shape: object) -> int:
    """Number of elements of an array. Raises ValueError if it is not a shape."""
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("an array without a shape")
    if not all(isinstance(size, int) and 0 <= size <= _LARGEST_DIMENSION for size in shape):
        raise ValueError("an array with an invalid size")
    return math.prod(shape)


def array_bytes(kind: object, shape: object) -> int:
    """Bytes of an array of numbers. Raises ValueError if it is not a shape, or the elements are not numbers."""
    if not isinstance(kind, NumberType):
        raise ValueError("an array without a type")
    return shape_size(shape) * kind.dtype().itemsize


def array(content: object, kind: object, shape: object, order: object) -> npt.NDArray[Any]:
    """A read-only view of bytes as numbers.

    Args:
        content: bytes, exactly as many as type and shape need.
        kind: a `NumberType`.
        shape: as a tuple.
        order: in memory, "C" or "F".

    Raises:
        ValueError: one of them is something else.
    """
    size = array_bytes(kind, shape)
    if not isinstance(content, bytes | memoryview) or len(content) != size:
        raise ValueError("an array without as many bytes as its numbers have")
    assert isinstance(kind, NumberType) and isinstance(shape, tuple)
    if order not in ("C", "F"):
        raise ValueError(f"an array of the order {shown(order)}")
    return np.ndarray(shape, kind.dtype(), content, order="C" if order == "C" else "F")


def number(kind: object, content: object) -> int | float | bool:
    """A single number. Raises ValueError like `array`."""
    value: int | float | bool = array(content, kind, (), "C").item()
    return value


def shown(value: object) -> str:
    """A value from a file for a message: text up to a limit, otherwise only its type.

    Other values are not printed, because a few bytes can describe lists of any length.
    """
    return printable(repr(value[:100])) if isinstance(value, str) else f"of {type(value).__name__}"
