"""Decompresses mosaicml-streaming's formats up to a limit of bytes, whatever the compressed data declares."""

import bz2
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = 0x184D2A50  # to ...5F
_SNAPPY_LENGTH_BYTES = 5  # at most: 32 bits, 7 in each


def unpack(compression: str, data: bytes, limit: int) -> bytes:
    """Decompress `data` to at most `limit` bytes. Memory: about as much.

    Args:
        compression: as in index.json, such as zstd or zstd:19.
        data: the compressed bytes.
        limit: of the decompressed bytes.

    Raises:
        Exception: of the library's class, if the bytes are invalid; ValueError if the result would exceed `limit`.
    """
    content = _UNPACKERS[compression.partition(":")[0]](data, limit)
    if len(content) > limit:
        raise ValueError(f"it holds more than {limit} bytes")
    return content


def _gzip(data: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(limit + 1)


def _bzip2(data: bytes, limit: int) -> bytes:
    with bz2.BZ2File(io.BytesIO(data)) as file:
        return file.read(limit + 1)


def _brotli(data: bytes, limit: int) -> bytes:
    import brotli  # type: ignore[import-untyped]

    decompressor = brotli.Decompressor()
    parts = [decompressor.process(data, output_buffer_limit=limit + 1)]
    while not decompressor.is_finished() and sum(map(len, parts)) <= limit:
        parts.append(decompressor.process(b"", output_buffer_limit=limit + 1))
        if not parts[-1]:
            raise ValueError("it is cut off")
    return b"".join(parts)


def _snappy(data: bytes, limit: int) -> bytes:
    import snappy  # type: ignore[import-untyped]

    length = 0
    for place, byte in enumerate(data[:_SNAPPY_LENGTH_BYTES]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    if length > limit:
        raise ValueError(f"it holds {length} bytes, more than {limit}")
    return bytes(snappy.decompress(data))


def _zstd(data: bytes, limit: int) -> bytes:
    import zstd  # type: ignore[import-untyped]

    # The library allocates the declared size of a frame before it decompresses it, and never writes more.
    frames = list(_zstd_frames(memoryview(data)))
    declared = sum(size for _, _, size in frames)
    if declared > limit:
        raise ValueError(f"it holds {declared} bytes, more than {limit}")
    return b"".join(zstd.decompress(data[begin:end]) for begin, end, size in frames if size)


def _zstd_frames(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Begin, end and declared size of each frame of zstd data; see RFC 8878, section 3.1."""
    begin = 0
    while begin < len(data):
        magic = int.from_bytes(data[begin : begin + 4], "little")
        if magic & ~0xF == _ZSTD_SKIPPABLE:
            begin += 8 + int.from_bytes(data[begin + 4 : begin + 8], "little")
            continue
        if magic != _ZSTD_MAGIC or begin + 5 > len(data):
            raise ValueError("it is no zstd data")
        descriptor = data[begin + 4]
        single_segment = descriptor >> 5 & 1
        size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
        if not size_bytes:
            raise ValueError("it does not declare how much it holds")
        place = begin + 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
        size = int.from_bytes(data[place : place + size_bytes], "little") + (256 if size_bytes == 2 else 0)
        end = _end_of_blocks(data, place + size_bytes) + 4 * (descriptor >> 2 & 1)
        yield begin, end, size
        begin = end


def _end_of_blocks(data: memoryview, begin: int) -> int:
    last = False
    while not last:
        if begin + 3 > len(data):
            raise ValueError("it is cut off")
        header = int.from_bytes(data[begin : begin + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        begin += 3 + (1 if kind == 1 else size)  # of a run of one byte only that byte is stored
    return begin


_UNPACKERS: Mapping[str, Callable[[bytes, int], bytes]] = MappingProxyType(
    {"br": _brotli, "bz2": _bzip2, "gz": _gzip, "snappy": _snappy, "zstd": _zstd}
)
