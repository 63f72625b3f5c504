"""Read files that nobody made in good faith, in a process of its own, which they may bring down.

Usage: read_strangers.py FOLDER [FIRST COUNT]. Reads each file of FOLDER, or COUNT mutations of them from number FIRST
on, by the reader that its name begins with (`kmeans` or `meta`). Writes a line about each before it is read; ends with
another status than 0 if a reader does anything but give values or a UserError.
"""

import bz2
import codecs
import gzip
import lzma
import os
import random
import resource
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.errors import UserError
from tolktrain.prepare.published.safe_pickle import read_plain_pickle
from tolktrain.units.sklearn_file import read_sklearn_centroids

MEMORY = 3 << 30  # bytes of address space
CPU_SECONDS = 300

# What an attacker would put in, or a fault leaves: instructions with arguments, names of functions, states, sizes.
PIECES = [
    b"cposix\nsystem\n(S'echo run'\ntR",
    b"cbuiltins\neval\n(S'1/0'\ntR",
    b"\x8c\x08builtins\x8c\x07getattr\x93",
    b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb",
    b"cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR(I3\nS'<'\nNNNI2147483647\nI1024\nI255\ntb",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR",
    b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81",
    b"csklearn.x\nX\n)\x81",
    b"c_codecs\nencode\n(S'x'\nS'latin1'\ntR",
    b"(I1\n(L99999999999999999999L\ntNI00\nS'AAAAAAAA'\nt",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\xff" + bytes(255),
    b"\x8b\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"\x82\x01\x83\x01\x00\x84\x01\x00\x00\x00",
    b"2\x86" * 40,
    b"]" * 2000 + b"a" * 1999,
    b"Pid\nQ",
    b"\x97\x98",
    b"AAAAAAAA",
]
INSTRUCTIONS = bytes(range(256))
_PACKERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".zlib": (zlib.compress, zlib.decompress),
    ".gzip": (gzip.compress, gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
    ".lzma": (lambda content: lzma.compress(content, lzma.FORMAT_ALONE), lzma.decompress),
}


def mutation(number: int, originals: dict[str, bytes]) -> tuple[str, bytes]:
    """A file of `originals` with one to four changes, the same for the same number."""
    drawn = random.Random(number)
    name = drawn.choice(sorted(originals))
    pack, unpack = _PACKERS.get(Path(name).suffix, (bytes, bytes))
    if drawn.random() < 0.3:
        pack = unpack = bytes  # the compressed bytes themselves
    content = bytearray(unpack(originals[name]))
    for _ in range(drawn.randint(1, 4)):
        _change(content, drawn, lambda: unpack(originals[name]))
    return name, pack(bytes(content))


def _change(content: bytearray, drawn: random.Random, original: Callable[[], bytes]) -> None:
    place = drawn.randrange(len(content) + 1)
    # Most changes among the instructions in front of and after the long arrays do more.
    if drawn.random() < 0.5:
        place = min(len(content), drawn.choice([place % 400, max(0, len(content) - place % 400)]))
    match drawn.randrange(9):
        case 0:
            del content[place:]
        case 1:
            content[place : place + 1] = bytes([drawn.randrange(256)])
        case 2:
            content[place : place + 1] = bytes(byte ^ 1 << drawn.randrange(8) for byte in content[place : place + 1])
        case 3:
            content[place:place] = drawn.choice(PIECES)
        case 4:
            content[place:place] = bytes(drawn.choices(INSTRUCTIONS, k=drawn.randint(1, 5)))
        case 5:
            del content[place : place + drawn.randint(1, 30)]
        case 6:
            begin = drawn.randrange(len(content) + 1)
            content[place:place] = content[begin : begin + drawn.randint(1, 200)]
        case 7:
            whole = original()
            begin = drawn.randrange(len(whole) + 1)
            content[place : place + 40] = whole[begin : begin + 40]
        case 8:
            content[place : place + 4] = drawn.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4)])


def _files(folder: Path, arguments: list[str]) -> Iterator[tuple[str, bytes]]:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    if not arguments:
        yield from files.items()
        return
    first, count = map(int, arguments)
    for number in range(first, first + count):
        name, content = mutation(number, files)
        yield f"{name} {number}", content


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, bytes, int, float, bool)


def _read(kind: str, path: Path) -> str:
    try:
        if kind == "meta":
            assert _is_plain(read_plain_pickle(path)), "not plain"
        else:
            centroids = read_sklearn_centroids(path)
            assert centroids.dtype == np.float32 and centroids.ndim == 2 and np.isfinite(centroids).all()
            centroids.copy()
    except UserError as error:
        assert str(path) in str(error), error
        assert len(str(error)) < 2000, error
        return "refused"
    return "values"


def main() -> None:
    folder, *numbers = sys.argv[1:]
    files = _files(Path(folder), numbers)
    at = os.memfd_create("file")
    path = Path(f"/proc/self/fd/{at}")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reading = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        """Nothing but opening the file: no program, no evaluation, no import, no unpickling by Python."""
        # The descriptor is of the file that was opened before.
        if reading and (event != "open" or arguments[0] != str(path) and not isinstance(arguments[0], int)):
            os.write(2, f"{event} {arguments}".encode())
            os._exit(9)

    codecs.lookup("raw-unicode-escape")  # is imported at its first use
    sys.addaudithook(watch)
    counts = {"values": 0, "refused": 0}
    for name, content in files:
        os.write(1, f"{name}\n".encode())
        os.truncate(at, 0)
        os.pwrite(at, content, 0)
        reading = True
        try:
            counts[_read(name.split("-")[0], path)] += 1
        finally:
            reading = False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"values {counts['values']} refused {counts['refused']} MiB {peak}")


if __name__ == "__main__":
    main()
