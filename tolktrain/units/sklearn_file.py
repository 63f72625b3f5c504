"""Centroids from a k-means file of scikit-learn, pickled plainly or by joblib, without running code from it.

A pickle may call anything it names. Here it can name only arrays, and classes of scikit-learn and numpy's random
states, in whose place stand empty objects that keep their attributes.
"""

import bz2
import gzip
import io
import lzma
import math
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, NoReturn

import numpy as np
import numpy.typing as npt

from tolktrain.config.errors import UserError

_LARGEST: Final = 1 << 30  # bytes, unpacked


class _Standin:
    """In the place of an object whose class is not loaded: keeps what the pickle says about it, does nothing."""

    kind = ""
    state: dict[str, Any]

    def __new__(cls, *arguments: Any) -> "_Standin":
        # Not __init__: pickles make objects without calling it.
        made = super().__new__(cls)
        made.state = {}
        return made

    def take(self, state: Any) -> None:
        """Keep attributes, given as a dictionary, or as a pair of it and slots."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update((str(key), value) for key, value in part.items())


class _ArrayWrapper(_Standin):
    """joblib's note that the bytes of an array follow in the file."""

    def read(self, file: BinaryIO) -> npt.NDArray[Any]:
        """The array, from the place in the file that follows the note."""
        dtype, shape, order = (self.state.get(key) for key in ("dtype", "shape", "order"))
        if isinstance(dtype, np.dtype) and dtype.hasobject:
            # Such an array follows as a pickle of its own.
            nested: npt.NDArray[Any] = _Unpickler(file).load()
            return nested
        if self.state.get("numpy_array_alignment_bytes") is not None:
            file.read(file.read(1)[0])
        return _filled(file.read(_size(shape) * np.dtype(dtype).itemsize), dtype, shape, order)


class _Array:
    """In the place of numpy.ndarray where a pickle names the class itself."""


class _Object:
    """In the place of object, which old protocols name as the base of a class."""


def _made(kind: object, base: object, state: object) -> _Standin:
    if not (isinstance(kind, type) and issubclass(kind, _Standin)):
        raise pickle.UnpicklingError("an object without a class")
    return kind()


def _size(shape: object) -> int:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise pickle.UnpicklingError("an array without a shape")
    return math.prod(shape)


def _filled(content: object, dtype: object, shape: object, order: object) -> npt.NDArray[Any]:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"an array of the type {dtype} and order {order!r}")
    if not isinstance(content, bytes | bytearray) or len(content) != _size(shape) * dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of the shape {shape} without its {dtype} numbers")
    assert isinstance(shape, tuple)
    return np.ndarray(shape, dtype, bytearray(content), order="C" if order == "C" else "F")


def _empty_array(kind: object, shape: object, dtype: object) -> npt.NDArray[Any]:
    # What it holds comes afterwards, as its state.
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of another class than numpy.ndarray")
    return np.zeros(0, np.int8)


def _number(dtype: object, content: object) -> Any:
    return _filled(content, dtype, (), "C")[()]


def _dtype(name: object, *options: object) -> Any:
    if not isinstance(name, str) or not re.fullmatch(r"[fiu][1248]|f16|b1|O8?", name):
        raise pickle.UnpicklingError(f"numbers of the type {name!r}")
    # A copy, because its state follows, and numpy gives everybody the same object.
    return np.dtype(name, copy=True)


def _encode(text: object, encoding: object) -> bytes:
    # Old protocols write bytes as text in Latin-1.
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another form than Latin-1")
    return text.encode("latin1")


_KNOWN: Final[tuple[tuple[str, str, Callable[..., Any]], ...]] = (
    ("numpy", "ndarray", _Array),
    ("numpy", "dtype", _dtype),
    ("numpy.core.multiarray", "_reconstruct", _empty_array),
    ("numpy._core.multiarray", "_reconstruct", _empty_array),
    ("numpy.core.multiarray", "scalar", _number),
    ("numpy._core.multiarray", "scalar", _number),
    ("numpy.core.numeric", "_frombuffer", _filled),
    ("numpy._core.numeric", "_frombuffer", _filled),
    ("_codecs", "encode", _encode),
    ("copyreg", "_reconstructor", _made),
    ("copy_reg", "_reconstructor", _made),
    ("builtins", "object", _Object),
    ("__builtin__", "object", _Object),
    ("joblib.numpy_pickle", "NumpyArrayWrapper", _ArrayWrapper),
    ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper", _ArrayWrapper),
)


class _Refused(Exception):
    """The file names something that is not needed for centroids."""


class _Unpickler(pickle._Unpickler):
    """Reads arrays and stand-ins. The version in Python, because joblib's arrays stand between the pickle's codes."""

    stack: list[Any]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        for known_module, known_name, value in _KNOWN:
            if (module, name) == (known_module, known_name):
                return value
        if (module.split(".")[0] == "sklearn" or module.startswith("numpy.random")) and name.isidentifier():
            return type(name, (_Standin,), {"kind": f"{module}.{name}"})
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("a persistent object")

    def load_build(self) -> None:
        """Give the object on the stack its attributes; after joblib's note, put the array in its place."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Standin):
            target.take(state)
        elif isinstance(target, np.dtype):
            _check_dtype_state(state)
            target.__setstate__(state)  # type: ignore[attr-defined]
        elif isinstance(target, np.ndarray):
            _check_array_state(state)
            target.__setstate__(state)
        else:
            raise pickle.UnpicklingError(f"attributes for a {type(target).__name__}")
        if isinstance(target, _ArrayWrapper):
            self.stack[-1] = target.read(self._file)

    def load_bytearray8(self) -> None:
        """Bytes of a stated number; the number is not trusted with memory before they are read."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(size)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _check_dtype_state(state: Any) -> None:
    """Only the order of bytes may be given: neither fields nor a size."""
    if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]) or state[5] != -1:
        raise pickle.UnpicklingError("numbers of a type with parts")


def _check_array_state(state: Any) -> None:
    """Content must fit shape and type: numpy is not asked to find out."""
    version, shape, dtype, fortran, content = state
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        if not isinstance(content, list) or len(content) != _size(shape):
            raise pickle.UnpicklingError(f"an array of the shape {shape} without its objects")
    else:
        _filled(content, dtype, shape, "C")


def _unpacked(path: Path) -> bytes:
    """The content of a file, whichever of joblib's compressions it has."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\x04\x22\x4d\x18"):
        raise UserError(f"{path} is compressed by LZ4; load it with joblib and dump it again with compress=3")
    if start.startswith((b"x\x01", b"x^", b"x\x9c", b"x\xda")):
        return _limited(path, zlib.decompressobj().decompress(path.read_bytes(), _LARGEST + 1))
    opener: Callable[[Path], Any]
    if start.startswith(b"\x1f\x8b"):
        opener = gzip.open
    elif start.startswith(b"BZ"):
        opener = bz2.open
    elif start.startswith((b"\xfd7zXZ", b"]\x00")):
        opener = lzma.open
    else:
        return _limited(path, path.read_bytes())
    with opener(path) as file:
        return _limited(path, file.read(_LARGEST + 1))


def _limited(path: Path, content: bytes) -> bytes:
    if len(content) > _LARGEST:
        raise UserError(f"{path} holds more than {_LARGEST >> 30} GiB, which no file of centroids does")
    return content


def read_sklearn_centroids(path: str | Path) -> npt.NDArray[np.float32]:
    """`cluster_centers_` [num_clusters, dim] of a scikit-learn k-means, as pickle or joblib wrote it.

    Nothing that the file names is imported or called. Any version of scikit-learn will do, and none is needed.

    Raises:
        UserError: the file cannot be read, names something else than such a k-means needs, or holds no centroids.
    """
    path = Path(path)
    try:
        model = _Unpickler(io.BytesIO(_unpacked(path))).load()
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path} names {error}, which a scikit-learn k-means does not need; it was not loaded, because a pickle can"
            " run any program: get the file from its source, or save cluster_centers_ as centroids.safetensors there"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a file that joblib wrote") from None
    except Exception as error:  # a damaged pickle fails in whatever its codes touch
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is not a readable pickle or joblib file ({reason}); get it from its source") from None
    centroids = model.state.get("cluster_centers_") if isinstance(model, _Standin) else None
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or centroids.dtype.kind != "f":
        kind = getattr(model, "kind", "") or type(model).__name__
        raise UserError(f"{path} holds a {kind} without centroids; give a fitted KMeans or MiniBatchKMeans")
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(centroids, np.float32)
    if not kept.size or not np.isfinite(kept).all():
        raise UserError(f"{path} holds centroids that are empty or not finite; get it from its source")
    return kept
