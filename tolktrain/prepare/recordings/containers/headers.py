"""Files of one header and audio: AU and NIST SPHERE; and Creative's VOC, which has audio in blocks."""

import re
import struct
from typing import BinaryIO

from tolktrain.prepare.recordings.containers.content import SOX_CORRECTION, Content, Declared, Raw, compared, read_at

_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}  # of a sample, by encoding
_AU_UNKNOWN = 0xFFFF_FFFF
_SPHERE_LARGEST_HEADER = 1 << 16
_VOC_AUDIO = {1: 2, 9: 12}  # blocks of audio by their type, and the bytes of their headers
_VOC_BLOCKS = range(1, 10)
_VOC_WRAP = 1 << 24
_VOC_SOX = 8  # bytes by which sox declares too few
_MOST_VOC_BLOCKS = 1000  # before the first with audio


def au_content(file: BinaryIO, begin: int, size: int) -> Content:
    """Sun's and NeXT's AU, in both byte orders."""
    head = read_at(file, begin, 24)
    if len(head) < 24:
        return Content()
    order = ">" if head[:4] == b".snd" else "<"
    offset, num_bytes, encoding, rate, channels = struct.unpack(order + "5I", head[4:])
    if num_bytes == _AU_UNKNOWN and size - begin - offset <= _AU_UNKNOWN:
        return Content()
    block_bytes = _AU_BYTES.get(encoding, 0) * channels
    endian = "BIG" if order == ">" else "LITTLE"
    return compared(file, size, Declared(begin + offset, num_bytes, max(1, block_bytes), rate * block_bytes, endian))


def sphere_content(file: BinaryIO, begin: int, size: int) -> Content:
    """NIST SPHERE, uncompressed."""
    fields = re.match(rb"NIST_1A\s+(\d{1,6})\s", read_at(file, begin, 32))
    if fields is None or int(fields[1]) > _SPHERE_LARGEST_HEADER:
        return Content()
    header_bytes = int(fields[1])
    header = read_at(file, begin, header_bytes)
    numbers = {
        name.decode(): int(value)
        for name, value in re.findall(
            rb"^(sample_count|channel_count|sample_n_bytes|sample_rate) -i (\d{1,15})\s*$", header, re.MULTILINE
        )
    }
    if re.search(rb"^sample_coding .*shorten", header, re.MULTILINE):
        return Content(problem="its audio is compressed by shorten; convert it with `sph2pipe -f wav IN OUT.wav`")
    block_bytes = numbers.get("sample_n_bytes", 0) * numbers.get("channel_count", 1)
    count = numbers.get("sample_count")
    if not block_bytes or count is None:
        return Content()
    bytes_per_second = numbers.get("sample_rate", 0) * block_bytes
    endian = "BIG" if re.search(rb"^sample_byte_format -s2 10\s*$", header, re.MULTILINE) else "LITTLE"
    declared = Declared(
        begin + header_bytes,
        count * block_bytes,
        block_bytes,
        bytes_per_second,
        correction=SOX_CORRECTION,
        delimit=endian,
    )
    return compared(file, size, declared)


def voc_content(file: BinaryIO, begin: int, size: int) -> Content:
    """Creative's VOC. libsndfile reads one block of audio, or takes the headers of others for audio."""
    place = begin + int.from_bytes(read_at(file, begin + 20, 2), "little")
    for _ in range(_MOST_VOC_BLOCKS):
        head = read_at(file, place, 16)
        if len(head) < 4 or head[0] not in _VOC_BLOCKS:
            return Content()
        num_bytes = int.from_bytes(head[1:4], "little")
        if head[0] in _VOC_AUDIO:
            return _voc_audio(file, place, head, size)
        place += 4 + num_bytes
    return Content()


def _voc_audio(file: BinaryIO, place: int, head: bytes, size: int) -> Content:
    """What the first block of audio contains, and what follows it."""
    declared_bytes, header_bytes = int.from_bytes(head[1:4], "little"), _VOC_AUDIO[head[0]]
    rate, bits, channels = struct.unpack("<IBB", head[4:10].ljust(6, b"\0"))
    block_bytes = max(1, channels * bits // 8)
    if head[0] == 1:
        rate, block_bytes = 1_000_000 // (256 - head[4]) if len(head) > 4 else 0, 1
    end = place + 4 + declared_bytes
    for wrong in (0, _VOC_SOX):
        # sox declares a little less, and sizes of 24 bits wrap.
        missing = size - 1 - end - wrong
        if missing >= 0 and not missing % _VOC_WRAP and (missing or wrong):
            return Content()
    following = read_at(file, end, 1)
    if following and following[0] in _VOC_BLOCKS:
        return Content(
            problem="its audio is in several blocks, whose headers would be read as audio; convert it with"
            " `sox IN OUT.wav`"
        )
    end_bytes = 1 if following == b"\0" else 0  # the block that ends the file
    declared = Declared(
        place + 4 + header_bytes,
        declared_bytes - header_bytes,
        block_bytes,
        rate * block_bytes,
        correction=SOX_CORRECTION,
    )
    found = compared(file, size, declared)
    if found == Content() and size > end + end_bytes:
        return Content(raw=Raw(declared.begin, end, "LITTLE"))
    return found
