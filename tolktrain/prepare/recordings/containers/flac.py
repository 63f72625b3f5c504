"""FLAC: frames without a length; found by their headers, each with a number and a checksum."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from tolktrain.prepare.recordings.containers.content import Content, num_bytes_unknown, read_at

_MAGIC = b"fLaC"
_BLOCK_BYTES = 1 << 22
_LONGEST_HEADER = 16
_LONGEST_FRAME = 1 << 24  # bytes, which is more than STREAMINFO can declare
_RATES = (0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


@dataclass(frozen=True)
class FrameHeader:
    """What the header of a frame says."""

    position: int  # in the file
    is_numbered_by_sample: bool
    number: int  # of the frame, or of its first sample
    num_samples: int
    rate: int  # 0: as in STREAMINFO


def flac_content(file: BinaryIO, begin: int, size: int) -> Content:
    """Counts the samples of the frames, and compares them with the number that the header of the file declares."""
    audio = _past_metadata(file, begin, size)
    if audio is None:
        return Content()
    info = read_at(file, begin + 8, 34)
    rate = int.from_bytes(info[10:13], "big") >> 4
    declared = int.from_bytes(info[13:18], "big") & ((1 << 36) - 1)
    if not rate:
        return Content()
    first: FrameHeader | None = None
    last: FrameHeader | None = None
    num_samples, num_frames, seconds, joined = 0, 0, 0.0, 0
    for header in _headers(file, audio, size):
        if last is None or first is None:
            if header.position != audio:
                return Content()
            first = header
        elif header.is_numbered_by_sample != first.is_numbered_by_sample:
            continue
        elif header.number != first.number + (num_samples if first.is_numbered_by_sample else num_frames):
            if header.number or not _has_magic(file, last.position, header.position):
                continue
            joined = joined or header.position
            first, num_samples, num_frames = header, 0, 0
        last = header
        num_samples += header.num_samples
        num_frames += 1
        seconds += header.num_samples / (header.rate or rate)
    if last is None:
        return Content()
    problem = None
    if joined:
        problem = (
            f"more audio follows: several FLAC files were joined; the first one ends before byte {joined} of {size},"
            f" together they contain {seconds:.2f} s; separate them"
        )
    elif 0 < declared < num_samples:
        problem = (
            f"more audio follows: its header declares {declared} samples ({declared / rate:.2f} s), its frames contain"
            f" {num_samples} ({seconds:.2f} s); repair it with `ffmpeg -i IN OUT.flac`"
        )
    elif unknown := _bytes_after(file, last, size):
        problem = (
            f"of its {size} bytes, {size - unknown} are FLAC; the {unknown} that follow are no known tag and are not"
            " decoded. If files were joined, separate them; if not, repair it with `ffmpeg -i IN OUT.flac`"
        )
    return Content(problem, seconds)


def _past_metadata(file: BinaryIO, begin: int, size: int) -> int | None:
    position = begin + len(_MAGIC)
    while position + 4 <= size:
        head = read_at(file, position, 4)
        position += 4 + int.from_bytes(head[1:], "big")
        if head[0] & 0x80:
            return position
    return None


def _headers(file: BinaryIO, begin: int, size: int) -> Iterator[FrameHeader]:
    """Everything from a position on that is a frame header by its bits and its checksum."""
    while begin < size:
        block = read_at(file, begin, _BLOCK_BYTES)
        values = np.frombuffer(block + bytes(_LONGEST_HEADER), np.uint8)
        zeroth, first, second, third = (values[i : len(values) - 3 + i] for i in range(4))
        # Sync; the codes of block size, sample rate, channels and the last bit that no header has.
        may_be = (zeroth == 0xFF) & (first & 0xFE == 0xF8) & (second >= 0x10) & (second & 15 != 15)
        may_be &= (third < 0xB0) & (third & 1 == 0)
        is_last = begin + len(block) >= size
        limit = len(block) if is_last else len(block) - _LONGEST_HEADER
        for place in np.flatnonzero(may_be[:limit]).tolist():
            header = _header(block[place : place + _LONGEST_HEADER], begin + place)
            if header is not None:
                yield header
        begin += limit


def _header(content: bytes, position: int) -> FrameHeader | None:
    """The header at the beginning of `content`, if its checksum holds."""
    if len(content) < 6:
        return None
    lead = content[4]
    num_following = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    following = content[5 : 5 + num_following]
    if lead == 0xFF or 0x80 <= lead < 0xC0 or any(byte >> 6 != 2 for byte in following):
        return None
    number = lead if lead < 0x80 else lead & ((1 << (6 - num_following)) - 1) if num_following < 6 else 0
    for byte in following:
        number = number << 6 | byte & 0x3F
    place = 5 + num_following
    size_code, rate_code = content[2] >> 4, content[2] & 15
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    rate_bytes = {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    end = place + size_bytes + rate_bytes
    if len(content) <= end or _crc8(content[:end]) != content[end]:
        return None
    if size_bytes:
        num_samples = int.from_bytes(content[place : place + size_bytes], "big") + 1
    else:
        num_samples = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    rate = int.from_bytes(content[place + size_bytes : end], "big")
    rate = rate * {12: 1000, 13: 1, 14: 10}[rate_code] if rate_bytes else _RATES[rate_code]
    return FrameHeader(position, bool(content[1] & 1), number, num_samples, rate)


def _has_magic(file: BinaryIO, begin: int, end: int) -> bool:
    return _MAGIC in read_at(file, begin, min(end - begin, _LONGEST_FRAME))


def _bytes_after(file: BinaryIO, last: FrameHeader, size: int) -> int:
    """Bytes after the last frame that are no known tag; 0 as well if the frame itself is cut off."""
    content = read_at(file, last.position, min(size - last.position, _LONGEST_FRAME))
    table, crc = _crc16_table(), 0
    fewest = None
    for place, byte in enumerate(content, 1):
        before, crc = crc, (crc << 8 & 0xFF00) ^ table[crc >> 8 ^ byte]
        # A frame ends with its checksum, so that the sum over all of it is 0; that also occurs by chance. Zeros that
        # follow leave it so.
        if not crc and before:
            unknown = num_bytes_unknown(file, last.position + place, size)
            if not unknown:
                return 0
            fewest = fewest or unknown
    return fewest or 0


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


@lru_cache(maxsize=1)
def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x8005) & 0xFFFF if crc & 0x8000 else crc << 1
        table.append(crc)
    return tuple(table)
