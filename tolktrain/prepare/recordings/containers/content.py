"""What an audio file contains according to its own bytes: how much audio, and what follows it.

Decoders stop where a header says that the audio ends. If the header is wrong, or files were joined, they return a part
of the audio and report no error.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

OPEN_BYTES = 0x7F00_0000
"""Programs that write into a pipe declare about the largest size there is: any size from here on that is not met."""

SOX_CORRECTION = "convert it with `sox --ignore-length IN OUT.wav`, which reads to its end"

_BLOCK_BYTES = 1 << 16
_MOST_ITEMS = 10_000  # tags or chunks at the end of a file; a file of others is not worth the time
_WRAP = 1 << 32  # sizes of 32 bits are counted from 0 again

PastChunk = Callable[[BinaryIO, int, int], int | None]
"""The position after the chunk at a position, if there is one that ends before a third position."""


@dataclass(frozen=True)
class Raw:
    """Uncompressed audio that a decoder of the whole file would not delimit correctly."""

    begin: int  # its first byte
    end: int  # the byte after its last
    endian: str  # as soundfile names it


@dataclass(frozen=True)
class Content:
    """What a file contains."""

    problem: str | None = None
    """Why a decoder does not return all audio: how much there is and how much of it is declared, and the correction."""

    seconds: float | None = None
    """Duration of the audio, counted; None: not counted."""

    padding_seconds: float = 0.0
    """At most this much of the duration is not audio but what encoders add, which decoders may leave out."""

    raw: Raw | None = None
    """Where the audio is, if a decoder does not find all of it, or takes what follows for audio."""


@dataclass(frozen=True)
class Declared:
    """Uncompressed audio as a header declares it."""

    begin: int  # its first byte
    num_bytes: int
    block_bytes: int = 1  # of one sample of all channels
    bytes_per_second: float = 0.0  # 0: unknown
    endian: str | None = None  # as soundfile names it; None: sizes have 64 bits, and never wrap
    correction: str = "correct the size in its header"  # of a wrong size
    delimit: str | None = None
    """The byte order, as soundfile names it, if libsndfile reads to the end of the file and takes tags for audio."""

    def amount(self, num_bytes: int) -> str:
        """A number of bytes and, if known, their duration, to be read by people."""
        seconds = f" ({num_bytes / self.bytes_per_second:.2f} s)" if self.bytes_per_second else ""
        return f"{num_bytes} bytes{seconds}"


def read_at(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    """Bytes from a position on; fewer at the end of the file."""
    file.seek(position)
    return file.read(num_bytes)


def compared(file: BinaryIO, size: int, declared: Declared, past_chunk: PastChunk | None = None) -> Content:
    """Compare the declared audio with the bytes of a file of `size` bytes.

    Sizes beyond 4 GiB that wrapped around are completed; a size that a program wrote into a pipe means the end of the
    file. After the audio, only chunks, tags and zeros may follow.
    """
    rest = size - declared.begin

    def is_end(num_bytes: int) -> bool:
        begin = declared.begin + num_bytes
        return num_bytes_unknown(file, begin, size, past_chunk) < max(2, declared.block_bytes)

    # First, because zeros that follow a wrapped size would pass as padding.
    for wraps in range((rest - declared.num_bytes) // _WRAP, 0, -1):
        num_bytes = declared.num_bytes + wraps * _WRAP
        if declared.endian and is_end(num_bytes):
            return Content(raw=Raw(declared.begin, declared.begin + num_bytes, declared.endian))
    if declared.num_bytes > rest:
        return Content() if declared.num_bytes >= OPEN_BYTES else Content(problem=_cut_off(declared, rest))
    if is_end(declared.num_bytes):
        end = declared.begin + declared.num_bytes
        if declared.delimit is None or size == end:
            return Content()
        return Content(raw=Raw(declared.begin, end, declared.delimit))
    if declared.num_bytes >= OPEN_BYTES and declared.endian:
        return Content(raw=Raw(declared.begin, size, declared.endian))
    return Content(problem=_unused(declared, rest))


def num_bytes_unknown(file: BinaryIO, begin: int, end: int, past_chunk: PastChunk | None = None) -> int:
    """Bytes from `begin` to `end`, without the chunks, tags and zeros at their beginning and the tags at their end."""
    end = before_tags(file, begin, end)
    for _ in range(_MOST_ITEMS):
        if begin >= end:
            return 0
        after = (past_chunk and past_chunk(file, begin, end)) or past_tag(file, begin, end)
        after = after or past_zeros(file, begin, end)
        if after <= begin:
            break
        begin = after
    return max(0, end - begin)


def past_tag(file: BinaryIO, begin: int, end: int) -> int | None:
    """The position after the ID3v2, APE or ID3v1 tag at a position; None if there is none."""
    head = read_at(file, begin, 32)
    after = None
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
        footer = 10 if head[5] & 0x10 else 0
        after = begin + 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)) + footer
    elif head[:8] == b"APETAGEX" and len(head) == 32:
        after = begin + 32 + int.from_bytes(head[12:16], "little")
    elif head[:3] == b"TAG":
        after = begin + 128
    return after if after is not None and after <= end else None


def before_tags(file: BinaryIO, begin: int, end: int) -> int:
    """The position of the first of the tags that end at a position: ID3v1, APE, Lyrics3 and ID3v2 with a footer."""
    for _ in range(_MOST_ITEMS):
        num_bytes = _last_tag(file, begin, end)
        if not 0 < num_bytes <= end - begin:
            break
        end -= num_bytes
    return end


def _last_tag(file: BinaryIO, begin: int, end: int) -> int:
    """Bytes of the tag that ends at a position; 0 if none does."""
    tail = read_at(file, max(begin, end - 227 - 128), min(end - begin, 227 + 128))
    if tail[-128:-125] == b"TAG" and len(tail) >= 128:
        return 128 + (227 if tail[:4] == b"TAG+" and len(tail) == 227 + 128 else 0)
    if tail[-32:-24] == b"APETAGEX" and len(tail) >= 32:
        num_bytes, _, flags = struct.unpack("<III", tail[-20:-8])
        return int(num_bytes) + (32 if flags >> 31 else 0)
    if tail[-10:-7] == b"3DI":
        return 20 + sum(byte << shift for byte, shift in zip(tail[-4:], (21, 14, 7, 0), strict=True))
    if lyrics := re.search(rb"(\d{6})LYRICS200\Z", tail):
        return int(lyrics[1]) + 15
    if tail[-9:] == b"LYRICSEND":
        lyrics_begin = read_at(file, max(begin, end - 5120), min(end - begin, 5120)).rfind(b"LYRICSBEGIN")
        return min(end - begin, 5120) - lyrics_begin if lyrics_begin >= 0 else 0
    return 0


def past_zeros(file: BinaryIO, begin: int, end: int) -> int:
    """The position of the first byte from `begin` on that is not 0; `end` if there is none."""
    file.seek(begin)
    while begin < end and (block := file.read(min(_BLOCK_BYTES, end - begin))):
        following = block.lstrip(b"\0")
        begin += len(block) - len(following)
        if following:
            break
    return begin


def _cut_off(declared: Declared, rest: int) -> str:
    return (
        f"it is cut off: its header declares {declared.amount(declared.num_bytes)} of audio, the file contains"
        f" {declared.amount(rest)}; copy it again"
    )


def _unused(declared: Declared, rest: int) -> str:
    if not declared.num_bytes:
        return (
            f"its header declares 0 bytes of audio, and {declared.amount(rest)} follow: the recorder did not finish the"
            f" file; {declared.correction}"
        )
    return (
        f"more audio follows: its header declares {declared.amount(declared.num_bytes)} of audio, and"
        f" {declared.amount(rest - declared.num_bytes)} after them are no known chunk or tag. If files were joined,"
        f" separate them; if the header is wrong, {declared.correction}"
    )
