"""Files of chunks: WAV (RIFF, RIFX, RF64, BW64, Wave64), AIFF, AIFF-C and CAF."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tolktrain.prepare.recordings.containers.content import SOX_CORRECTION, Content, Declared, compared, read_at

# Chunks that describe the audio. If one is cut off, no audio is lost.
_DESCRIPTIONS = frozenset(
    b"LIST,INFO,id3 ,ID3 ,bext,iXML,axml,chna,cart,JUNK,junk,FLLR,PAD ,PEAK,fact,cue ,plst,smpl,inst,acid,note,labl,"
    b"_PMX,DISP,afsp,minf,elm1,umid,regn,MARK,COMT,NAME,AUTH,(c) ,ANNO,APPL,INST,AESD,MIDI,SAXL,info,free,uuid,pakt"
    b"".split(b",")
)
# Chunks that contain audio or begin another file.
_AUDIO = frozenset((b"data", b"fmt ", b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b"SSND", b"caff"))
_MOST_CHUNKS = 10_000
_WAV_CORRECTION = "repair it with `sox --ignore-length IN OUT` or `ffmpeg -ignore_length 1 -i IN -c copy OUT`"
_WAV_PLAIN = frozenset((1, 3, 6, 7, 0xFFFE))  # codings whose samples have a fixed size
_LARGE = 0xFFFF_FFFF  # of RF64: the size is in the chunk ds64
# Uncompressed AIFF-C; the others have no fixed number of bytes per second.
_AIFC_PLAIN = frozenset((b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64"))
_AIFC_BYTES = frozenset((b"ulaw", b"ULAW", b"alaw", b"ALAW"))


@dataclass(frozen=True)
class Chunks:
    """The layout of chunks: a name, a size, and content, padded."""

    size: str  # how `struct` reads the size
    name_bytes: int = 4
    counts_header: bool = False  # the size includes name and size
    alignment: int = 2

    def walk(self, file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Chunks from a position on: first bytes of the name, where the content begins, and its bytes."""
        for _ in range(_MOST_CHUNKS):
            chunk = self._at(file, begin, end)
            if chunk is None:
                return
            yield chunk
            _, content, num_bytes = chunk
            if num_bytes < 0:
                return
            begin = content + num_bytes
            begin += -begin % self.alignment

    def past(self, file: BinaryIO, begin: int, end: int) -> int | None:
        """See `PastChunk`; chunks that contain audio, or begin another file, are none."""
        for place in (begin, begin + -begin % self.alignment):
            chunk = self._at(file, place, end)
            if chunk is None or chunk[0] in _AUDIO or not all(0x20 <= byte < 0x7F for byte in chunk[0]):
                continue
            name, content, num_bytes = chunk
            if 0 <= num_bytes <= end - content:
                return content + num_bytes
            if name in _DESCRIPTIONS:
                return end
        return None

    def _at(self, file: BinaryIO, begin: int, end: int) -> tuple[bytes, int, int] | None:
        num_bytes = self.name_bytes + struct.calcsize(self.size)
        head = read_at(file, begin, num_bytes) if begin + num_bytes <= end else b""
        if len(head) < num_bytes:
            return None
        (size,) = struct.unpack(self.size, head[self.name_bytes :])
        return head[:4], begin + num_bytes, size - (num_bytes if self.counts_header else 0)


def wav_content(file: BinaryIO, begin: int, size: int) -> Content:
    """WAV with sizes of 32 bits, and RF64 and BW64, where the chunk ds64 has sizes of 64 bits."""
    head = read_at(file, begin, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    chunks = Chunks(order + "I")
    large = _LARGE
    block_bytes, bytes_per_second = 1, 0
    for name, content, num_bytes in chunks.walk(file, begin + 12, size):
        if name == b"ds64":
            large = int.from_bytes(read_at(file, content + 8, 8), "little")
        elif name == b"fmt ":
            block_bytes, bytes_per_second = _wav_format(read_at(file, content, 14), order)
        elif name == b"data":
            if not num_bytes and struct.unpack(order + "I", head[4:8]) == (8,):
                return Content()  # libsndfile knows these headers of unfinished files, and reads to the end
            endian = "BIG" if order == ">" else "LITTLE"
            declared_bytes = large if num_bytes == _LARGE and head[:4] in (b"RF64", b"BW64") else num_bytes
            declared = Declared(content, declared_bytes, block_bytes, bytes_per_second, endian, _WAV_CORRECTION)
            return compared(file, size, declared, chunks.past)
    return Content()


def w64_content(file: BinaryIO, begin: int, size: int) -> Content:
    """Sony Wave64: names and sizes are longer."""
    chunks = Chunks("<q", name_bytes=16, counts_header=True, alignment=8)
    block_bytes, bytes_per_second = 1, 0
    for name, content, num_bytes in chunks.walk(file, begin + 40, size):
        if name == b"fmt ":
            block_bytes, bytes_per_second = _wav_format(read_at(file, content, 14), "<")
        elif name == b"data":
            if num_bytes < 0:
                return Content()  # written into a pipe
            declared = Declared(
                content, num_bytes, block_bytes, bytes_per_second, correction=SOX_CORRECTION, delimit="LITTLE"
            )
            return compared(file, size, declared, chunks.past)
    return Content()


def aiff_content(file: BinaryIO, begin: int, size: int) -> Content:
    """AIFF and AIFF-C."""
    chunks = Chunks(">I")
    is_compressed_kind = read_at(file, begin, 12)[8:] == b"AIFC"
    block_bytes, bytes_per_second, endian = 1, 0.0, "BIG"
    for name, content, num_bytes in chunks.walk(file, begin + 12, size):
        if name == b"COMM":
            comm = read_at(file, content, 22 if is_compressed_kind else 18)
            block_bytes, bytes_per_second = _aiff_format(comm)
            endian = "LITTLE" if comm[18:] == b"sowt" else "BIG"
        elif name == b"SSND" and not num_bytes:
            return Content()  # written into a pipe: libsndfile reads to the end
        elif name == b"SSND":
            offset = int.from_bytes(read_at(file, content, 4), "big")
            num_bytes = max(0, num_bytes - 8 - offset)
            declared = Declared(content + 8 + offset, num_bytes, block_bytes, bytes_per_second, endian)
            found = compared(file, size, declared, chunks.past)
            if found == Content() and bytes_per_second and num_bytes <= size - declared.begin:
                # COMM has a number of samples too, which a decoder may follow.
                return Content(seconds=num_bytes // block_bytes * block_bytes / bytes_per_second)
            return found
    return Content()


def caf_content(file: BinaryIO, begin: int, size: int) -> Content:
    """Apple's Core Audio Format."""
    chunks = Chunks(">q", alignment=1)
    block_bytes, bytes_per_second = 1, 0.0
    for name, content, num_bytes in chunks.walk(file, begin + 8, size):
        if name == b"desc":
            description = read_at(file, content, 24).ljust(24, b"\0")
            rate, packet_bytes, packet_frames = struct.unpack(">d8xII", description)
            if packet_bytes and packet_frames and math.isfinite(rate):
                block_bytes, bytes_per_second = packet_bytes, rate * packet_bytes / packet_frames
        elif name == b"data" and num_bytes >= 4:  # -1: to the end
            declared = Declared(content + 4, num_bytes - 4, block_bytes, bytes_per_second)
            return compared(file, size, declared, chunks.past)
    return Content()


def _wav_format(content: bytes, order: str) -> tuple[int, int]:
    """Bytes of a sample of all channels, and bytes per second; 0 for compressed audio."""
    if len(content) < 14:
        return 1, 0
    coding, _, rate, _, block_bytes = struct.unpack(order + "HHIIH", content)
    return (max(1, block_bytes), rate * block_bytes) if coding in _WAV_PLAIN else (1, 0)


def _aiff_format(content: bytes) -> tuple[int, float]:
    """The same, of the chunk COMM."""
    if len(content) < 18:
        return 1, 0.0
    channels, _, bits, exponent, mantissa = struct.unpack(">hIhHQ", content[:18])
    coding = content[18:] or b"NONE"
    if coding not in _AIFC_PLAIN | _AIFC_BYTES or channels < 1 or bits < 1:
        return 1, 0.0
    block_bytes = channels * (1 if coding in _AIFC_BYTES else -(-bits // 8))
    power = min(max((exponent & 0x7FFF) - 16383 - 63, -1000), 900)
    return block_bytes, mantissa * 2.0**power * block_bytes
