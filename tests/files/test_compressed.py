"""Compressed files: the same content as Python's own readers find, up to a limit."""

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tolktrain.files.compressed import TooLargeError, read_unpacked


def _preset(content: bytes) -> int:
    """The usual one takes seconds for noise."""
    return lzma.PRESET_DEFAULT if len(content) < 2_000_000 else 0


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=_preset(content)),
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE, preset=_preset(content)),
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("size", [7, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
@pytest.mark.parametrize("random", [False, True])
def test_content_up_to_the_limit(tmp_path: Path, packer: str, size: int, random: bool) -> None:
    content = np.random.default_rng(0).bytes(size) if random else b"\x80" + bytes(size - 1)
    (tmp_path / "file").write_bytes(PACKERS[packer](content))
    assert read_unpacked(tmp_path / "file", size) == content
    with pytest.raises(TooLargeError):
        read_unpacked(tmp_path / "file", size - 1)


@pytest.mark.parametrize("packer", [name for name in PACKERS if name != "plain"])
def test_damage(tmp_path: Path, packer: str) -> None:
    packed = bytearray(PACKERS[packer](np.random.default_rng(0).bytes(100_000)))
    (tmp_path / "file").write_bytes(packed[:-20])
    with pytest.raises(ValueError, match="cut off"):
        read_unpacked(tmp_path / "file", 1 << 20)
    packed[len(packed) // 2 : len(packed) // 2 + 2000] = bytes(2000)
    (tmp_path / "file").write_bytes(packed)
    # lzma of the old form has no checksum.
    if packer != "lzma":
        with pytest.raises(ValueError, match="damaged"):
            read_unpacked(tmp_path / "file", 1 << 20)


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError):
            read_unpacked(path, 100)
