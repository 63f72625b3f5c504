"""Decompresses untrusted files up to a limit of bytes."""

import bz2
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

from tolktrain.files.reading import open_regular

_PIECE = 1 << 16
_UNPACKED_PIECE = 1 << 20  # a few bytes may unpack to any number
_LZMA_MEMORY = 1 << 27  # bytes; its header asks for up to 4 GiB, preset 9 for 65 MiB


class TooLargeError(ValueError):
    """A file has more bytes than allowed."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def read_unpacked(path: str | Path, limit: int) -> bytearray:
    """The content of a regular file, whether plain or compressed by zlib, gzip, bz2, lzma or xz.

    Of a compressed file, only the first stream is read.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        TooLargeError: it contains more than `limit` bytes.
        ValueError: the compressed stream is damaged or incomplete.
    """
    with open_regular(path) as file:
        unpacker = _unpacker(file.read(6))
        file.seek(0)
        content = bytearray(file.read(limit + 1)) if unpacker is None else _unpack(file, unpacker, limit)
    if len(content) > limit:
        raise TooLargeError(f"more than {limit} bytes")
    return content


def _unpacker(start: bytes) -> _Unpacker | None:
    if start.startswith((b"x\x01", b"x^", b"x\x9c", b"x\xda", b"\x1f\x8b")):
        return zlib.decompressobj(32 + zlib.MAX_WBITS)  # either of its own form and gzip's
    if start.startswith(b"BZ"):
        return bz2.BZ2Decompressor()
    if start.startswith((b"\xfd7zXZ", b"]\x00")):
        return lzma.LZMADecompressor(lzma.FORMAT_AUTO, _LZMA_MEMORY)
    return None


def _unpack(file: BinaryIO, unpacker: _Unpacker, limit: int) -> bytearray:
    content = bytearray()
    left = b""  # of a piece that unpacks to more than is taken at once; bz2 and lzma keep it themselves
    while not unpacker.eof and len(content) <= limit:
        piece = left or (file.read(_PIECE) if getattr(unpacker, "needs_input", True) else b"")
        try:
            unpacked = unpacker.decompress(piece, _UNPACKED_PIECE)
        except (zlib.error, lzma.LZMAError, OSError) as error:  # bz2 says OSError
            raise ValueError(f"its compressed stream is damaged: {error}") from None
        if not piece and not unpacked and not unpacker.eof:
            raise ValueError("its compressed stream is cut off")
        content += unpacked
        left = getattr(unpacker, "unconsumed_tail", b"")
    return content
