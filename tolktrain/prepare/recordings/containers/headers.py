"""Files of one header and audio: AU, and NIST SPHERE."""

import re
import struct
from typing import BinaryIO

from tolktrain.prepare.recordings.containers.content import Content, Declared, compared, read_at

_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}  # of a sample, by encoding
_AU_UNKNOWN = 0xFFFF_FFFF
_SPHERE_MAGIC = b"NIST_1A"
_SPHERE_LARGEST_HEADER = 1 << 16


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
    block_bytes = numbers.get("sample_n_bytes", 0) * numbers.get("channel_count", 1)
    count = numbers.get("sample_count")
    if not block_bytes or count is None:
        return Content()
    bytes_per_second = numbers.get("sample_rate", 0) * block_bytes
    # libsndfile reads all that follows the header, whatever the header declares.
    begin += header_bytes
    return compared(
        file, size, Declared(begin, count * block_bytes, block_bytes, bytes_per_second, next_header=_SPHERE_MAGIC)
    )
