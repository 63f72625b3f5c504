"""Pickles of strangers: data comes out as Python itself reads it, everything else is refused and harms nobody."""

import bz2
import copyreg
import gzip
import io
import itertools
import lzma
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer
from sklearn.cluster import KMeans, MiniBatchKMeans

from tolktrain.files.pickles import NameInPickleError, Standin, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
MUTATIONS = 4000
WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"

# Values as they are.

_keys = (
    st.none() | st.booleans() | st.integers(-(1 << 59), 1 << 59) | st.floats(allow_nan=False) | st.text() | st.binary()
)
_values = st.recursive(
    _keys | st.integers(-(1 << 300), 1 << 300) | st.sets(_keys) | st.frozensets(_keys),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(_keys, inner),
    max_leaves=30,
)


@given(_values, st.sampled_from(PROTOCOLS), st.booleans())
def test_values_come_out_as_python_reads_them(value: Any, protocol: int, shared: bool) -> None:
    content = pickle.dumps([value, value] if shared else value, protocol)
    assert _typed(read_pickle(content)) == _typed(pickle.loads(content))


def _typed(value: Any) -> Any:
    """The value with types, because 1, 1.0 and True are equal."""
    if isinstance(value, dict):
        return dict, [(_typed(key), _typed(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [_typed(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value), {_typed(item) for item in value}
    return type(value), value


_numbers = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)


@given(
    arrays.arrays(_numbers, arrays.array_shapes(min_dims=0, min_side=0)),
    st.sampled_from("CF"),
    st.sampled_from(PROTOCOLS),
    st.booleans(),
)
def test_arrays_come_out_as_numpy_reads_them(
    array: npt.NDArray[Any], order: Any, protocol: int, with_joblib: bool
) -> None:
    array = np.array(array, order=order)
    file = io.BytesIO()
    if with_joblib:
        joblib.dump(array, file, protocol=protocol)
    else:
        pickle.dump(array, file, protocol)
    read = read_pickle(file.getvalue(), (WRAPPER,))
    assert isinstance(read, Standin) and read.kind == "numpy.ndarray"
    assert read.array.shape == array.shape and read.array.dtype == array.dtype
    assert read.array.tobytes() == array.tobytes()
    assert not read.array.flags.writeable


@given(arrays.from_dtype(np.dtype(np.float64)), _numbers, st.sampled_from(PROTOCOLS))
def test_numbers_of_numpy(value: float, kind: np.dtype[Any], protocol: int) -> None:
    with np.errstate(all="ignore"):
        number = np.array(value).astype(kind)[()]
    read = read_pickle(pickle.dumps(number, protocol))
    assert type(read) in (bool, int, float) and repr(read) == repr(number.item())


def test_objects_keep_what_is_said_about_them() -> None:
    value = np.random.RandomState(3)
    for protocol in PROTOCOLS:
        read = read_pickle(pickle.dumps([value, value], protocol), ("numpy.random",))
        assert read[0] is read[1] and read[0].kind == "numpy.random._pickle.__randomstate_ctor"
    assert read_pickle(pickle.dumps(KMeans(3)), ("sklearn",)).state["n_clusters"] == 3


# What is refused.


def test_instructions_that_data_does_not_need() -> None:
    refused = set()
    for instruction in pickletools.opcodes:
        code = instruction.code.encode("latin1")
        try:
            read_pickle(code)
        except ValueError as error:
            if "does not need" in str(error):
                refused.add(instruction.name)
    assert refused == {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"}


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "builtins.getattr", "numpy.core.multiarray", "sklearnx.X", "numpy.ndarray.x"]
)
def test_names_are_refused_before_anything_else(name: str) -> None:
    module, _, function = name.rpartition(".")
    with pytest.raises(NameInPickleError, match=re.escape(name)):
        read_pickle(f"c{module}\n{function}\n.".encode(), ("sklearn",))
    # A dotted name would reach into what it begins with.
    with pytest.raises(NameInPickleError):
        read_pickle(pickle.PROTO + b"\x04" + _short("sklearn") + _short("a.b") + b"\x93.", ("sklearn",))


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray\n)\x81.",  # an object of a class that is no object's
        b"cnumpy\ndtype\n)\x81.",
        b"I1\n)R.",  # calls of what is no name
        b"]]R.",
        b"cnumpy\ndtype\n]R.",  # arguments that are none
        b"]}b.",  # attributes for what is no object
        b"cnumpy\ndtype\n}b.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
        b"](I1\nu.",  # members for another container
        b"}(I1\ne.",
        b"}(I1\nu.",
        b"0.",
        b"(1.",
        b"I1\n(.",
        b"t.",
        b"\x86.",
        b"h\x01.",
        b"\x80\x06N.",
        b"L1" + b"0" * 1000 + b"L\n.",
        b"\x8b\x01\x01\x00\x00" + b"\x01" * 257 + b".",
        b"p-1\n.",
        b"N" + b"p99999999999\n.",
        b"S'\\'\n.",
        b"Sx\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"V\\U00110000\n.",
    ],
    ids=repr,
)
def test_what_is_no_pickle_of_data(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_pickle(content, ("sklearn",))


def _short(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


# In a process of its own.


def _read(folder: Path, *numbers: int) -> str:
    """The last line of read_strangers.py, which must end well."""
    script = Path(__file__).with_name("read_strangers.py")
    command = [sys.executable, "-Wignore", str(script), str(folder), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=900)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"status {done.returncode} at {lines[-1:]}: {done.stderr[-3000:]}"
    return lines[-1]


class _Made:
    """Pickles as a call, and a state for what comes of it."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def _model(centroids: Any) -> Any:
    return _Made(copyreg._reconstructor, (KMeans, object, None), {"cluster_centers_": centroids})  # type: ignore[attr-defined]


POINTER = struct.pack("<Q", 0x4141414141414141)


def _forged(kind: Any) -> Iterator[Any]:
    """Places where a type is used on bytes that would be pointers."""
    yield _model(_Made(_reconstruct, (np.ndarray, (0,), b"b"), (1, (1, 1), kind, False, POINTER)))
    yield _model(_Made(_reconstruct, (np.ndarray, (0,), b"b"), (1, (1, 1), kind, False, [1.0])))
    yield _model(_Made(_frombuffer, (POINTER, kind, (1, 1), "C")))
    yield _model(_Made(scalar, (kind, POINTER)))
    yield _Made(scalar, (kind, POINTER))
    yield kind


def _write_forged(folder: Path) -> int:
    """Types with each state that NumPy's own reader takes, or crashes upon."""
    names = ["O8", "O", "f8", "V8", "M8", "S8"]
    states: list[tuple[Any, ...]] = []
    for flags, size, alignment in itertools.product(
        [0, 1, 63, 255, -1, 1 << 31], [-1, 0, 8, 1 << 31], [-1, 0, 1 << 30]
    ):
        states.append((3, "|", None, None, None, size, alignment, flags))
    fields = {"a": (np.dtype("O"), 0)}
    for names_of_fields, of_fields, parts in [
        (("a",), fields, None),
        (None, fields, None),
        (("a",), None, None),
        (None, None, (np.dtype("f8"), (1 << 40,))),
    ]:
        states.append((3, "<", parts, names_of_fields, of_fields, 8, 8, 0))
    states += [(4, "<", None, None, None, -1, -1, 0, ({}, (b"s", 1, 1, 1))), (3,), (), (3, "x", *[None] * 6)]
    states += [(3, order, None, None, None, -1, -1, 0, {"metadata": 1}) for order in ("<", ">", 1, None, ("<",))]
    count = 0
    for name, state, protocol in itertools.product(names, states, (0, 2, 4)):
        for made in _forged(_Made(np.dtype, (name, False, True), state)):
            for kind in ("kmeans", "meta"):
                (folder / f"{kind}-{count}").write_bytes(pickle.dumps(made, protocol))
                count += 1
    return count


def test_forged_types_of_arrays(tmp_path: Path) -> None:
    """A type of objects that says of itself that it has none made NumPy take bytes of the file for pointers."""
    count = _write_forged(tmp_path)
    values, refused = map(int, re.findall(r"\d+", _read(tmp_path))[:2])
    assert values + refused == count
    # 8 bytes of the file as a float, and types and numbers that a description may hold.
    assert values > 100


def _write_originals(folder: Path) -> None:
    features = np.random.default_rng(0).normal(size=(60, 3))
    plain = KMeans(3, n_init=1, random_state=0).fit(features)
    random = MiniBatchKMeans(3, n_init=1, random_state=np.random.RandomState(3)).fit(features.astype(np.float32))
    named = KMeans(3, n_init=1, random_state=0).fit(features)
    named.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    for name, model in (("plain", plain), ("random", random), ("named", named)):
        for protocol in PROTOCOLS:
            (folder / f"kmeans-{name}-{protocol}").write_bytes(pickle.dumps(model, protocol))
            joblib.dump(model, folder / f"kmeans-{name}-joblib-{protocol}", protocol=protocol)
        for compress in ("zlib", "gzip", "bz2", "xz", "lzma"):
            joblib.dump(model, folder / f"kmeans-{name}-joblib.{compress}", compress=(compress, 3))
    meta = {"vocab_size": np.int64(502), "eos": 500, "pad": 501, "n_q": 1, "frame_rate": np.float32(25)}
    nested = {"names": ["a", ("b", 2.5)], "set": {1, 2}, "bytes": b"\xff", "array": np.arange(3), "big": 1 << 70}
    for protocol in PROTOCOLS:
        (folder / f"meta-{protocol}").write_bytes(pickle.dumps(meta, protocol))
        (folder / f"meta-nested-{protocol}").write_bytes(pickle.dumps(meta | nested, protocol))


def test_mutations_of_real_files(tmp_path: Path) -> None:
    _write_originals(tmp_path)
    files = len(list(tmp_path.iterdir()))
    assert _read(tmp_path).startswith(f"values {files} refused 0")
    values, refused = map(int, re.findall(r"\d+", _read(tmp_path, 0, MUTATIONS))[:2])
    assert values + refused == MUTATIONS
    assert min(values, refused) > MUTATIONS // 50


# What would take for ever, or all memory.


def _repeated(what: bytes, count: int, end: bytes) -> bytes:
    return what * count + end


def _bombs() -> dict[str, bytes]:
    shared = b"N" + b"2\x86" * 60  # 60 times a pair of the same: 2^60 values
    entries = b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(60_000)) + b"u"
    numbers = [pickle.LONG1 + b"\x0e" + ((2**61 - 1) * i).to_bytes(14, "little") for i in range(60_000)]
    wrapped = b"c" + WRAPPER.replace(".Numpy", "\nNumpy").encode() + b"\n)\x81}X\x05\x00\x00\x00dtypecnumpy\ndtype\n"
    wrapped += b"X\x01\x00\x00\x00O\x85Rsb"
    again = b"h\x01h\x00R" * 40_000 + b"."
    return {
        "shared tuples": shared + b".",
        "shared tuples in a number's place": b"}X\x0a\x00\x00\x00vocab_size" + shared + b"s.",
        "shared tuples as key": b"}" + shared + b"Ns.",
        "shared tuples in sets": b"\x8f(" + shared + b"\x90.",
        "shared tuples in frozen sets": b"(" + shared + b"\x91.",
        "shared tuples as arguments": b"c__builtin__\nset\n(" + shared + b"\x85tR.",
        "shared tuples as type": b"cnumpy\ndtype\n" + shared + b"\x85R.",
        "shared tuples as shape": b"cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R"
        + shared
        + b"X\x01\x00\x00\x00CtR.",
        "shared lists": b"]" + b"2" + b"]q\x00h\x00a" * 5 + b"".join(b"](h\x00h\x00eq\x00" for _ in range(60)) + b".",
        "a list in itself": b"]q\x00h\x00a.",
        "nested lists": _repeated(b"]", 200_000, b"a" * 199_999 + b"."),
        "nested tuples": _repeated(b"N", 1, b"\x85" * 200_000 + b"."),
        "nested lists beyond the steps": _repeated(b"]", 900_000, b"."),
        "marks": _repeated(b"(", 1_000_000, b"."),
        "empty sets": _repeated(b"\x8f", 1_000_000, b"."),
        "places in memory": b"N" + _repeated(b"\x94", 1_000_000, b"."),
        "a far place in memory": b"Nr\xff\xff\xff\xff.",
        "a far place in memory as text": b"Np4294967295\n.",
        "a long number": b"\x8b\xff\xff\x0f\x00" + b"\x7f" * 0xFFFFF + b".",
        "a long number as text": b"L" + b"9" * 900_000 + b"L\n.",
        "a long whole number as text": b"I" + b"9" * 900_000 + b"\n.",
        "a negative size": b"T\xff\xff\xff\xff.",
        "bytes without end": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "a bytearray without end": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "text without end": b"\x8d\x00\x00\x00\x00\x00\x00\x00\x80.",
        "a frame without end": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        "keys of one hash": b"}(" + b"N".join(numbers) + b"Nu.",
        "members of one hash": b"\x8f(" + b"".join(numbers) + b"\x90.",
        "the same attributes again": entries + b"q\x000csklearn.x\nX\n)\x81" + b"h\x00b" * 60_000 + b".",
        "the same arguments again": b"(" + b"N" * 100_000 + b"tq\x000csklearn.x\nX\nq\x01" + again,
        "the same set again": b"](" + b"K\x01" * 100_000 + b"e\x85q\x000c__builtin__\nset\nq\x01" + again,
        "the same bytes again": b"X\x00\x00\x10\x00"
        + b"x" * (1 << 20)
        + b"X\x06\x00\x00\x00latin1\x86q\x000c_codecs\nencode\nq\x01"
        + again,
        "arrays without end": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        + b"(I1\n(L1099511627776L\nL1099511627776L\ntcnumpy\ndtype\n(S'f8'\ntRI00\nC\x00tb.",
        "pickles in pickles": b"\x80\x02" + wrapped * 5_000 + b".",
    }


def _wide_text() -> bytes:
    """A text of four bytes a character in memory, and one in the file."""
    return b"X" + struct.pack("<I", 1 << 20) + "\U0001f600".encode() + b"x" * ((1 << 20) - 4)


def _compressed_bombs() -> dict[str, bytes]:
    start, zeros = pickle.PROTO + b"\x04", bytes(1 << 28)
    head = start + pickle.BINBYTES8 + struct.pack("<Q", 1 << 40)
    return {
        "zlib": zlib.compress(head + zeros, 1),
        "gzip": gzip.compress(head + zeros, 1),
        "bz2": bz2.compress(head + zeros, 1),
        "xz": lzma.compress(head + zeros, preset=0),
        "text": zlib.compress(_wide_text() * 200 + b".", 1),
        # The size of its dictionary is in the header: 2 GiB.
        "lzma with a dictionary": b"]\x00\x00\x00\x80" + lzma.compress(b"N." * 1000, lzma.FORMAT_ALONE)[5:],
        "many gzip streams": gzip.compress(b"") * 200_000,
        "many bz2 streams": bz2.compress(b"") * 200_000,
    }


@pytest.mark.slow
def test_bombs(tmp_path: Path) -> None:
    """Each is refused, or read, in time and memory that depend on its size alone."""
    for name, content in _bombs().items():
        for kind in ("kmeans", "meta"):
            (tmp_path / f"{kind}-{name}").write_bytes(content)
    for name, content in _compressed_bombs().items():
        (tmp_path / f"kmeans-packed {name}").write_bytes(content)
    values, refused, peak = map(int, re.findall(r"\d+", _read(tmp_path)))
    assert values == 3  # None, after instructions that take nothing
    assert (
        peak < 2400
    )  # three times what text may take and what a file may hold: memory that is freed is not given back
