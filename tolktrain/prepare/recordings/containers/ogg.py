"""Ogg: pages, of which each has its size. Vorbis, Opus, Speex and FLAC are inside."""

from typing import BinaryIO

from tolktrain.prepare.recordings.containers.content import Content, num_bytes_unknown, read_at

_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4  # flags of a page
_CORRECTION = "separate joined files, or encode them as one (`ffmpeg -i IN OUT` reads all of it)"


def ogg_content(file: BinaryIO, begin: int, size: int) -> Content:
    """All streams must begin together, before the first page of audio: libsndfile ends where the first one ends."""
    position, flags = begin, _LAST
    is_past_headers = False
    while (page := _page(file, position, size)) is not None:
        flags, after = page
        if flags & _FIRST and is_past_headers:
            return Content(problem=_joined(position, size))
        is_past_headers = is_past_headers or not flags & _FIRST
        position = after
    if not flags & _LAST:
        return Content(
            problem=f"it is cut off or damaged: its pages end after {position} of {size} bytes, without a last page;"
            " copy it again"
        )
    unknown = num_bytes_unknown(file, position, size)
    if unknown:
        return Content(
            problem=f"of its {size} bytes the first {size - unknown} are Ogg; the {unknown} that follow are no known"
            f" tag and are not decoded; {_CORRECTION}"
        )
    return Content()


def _page(file: BinaryIO, begin: int, size: int) -> tuple[int, int] | None:
    """Flags of the page at a position, and the position after it; None if there is no whole page."""
    head = read_at(file, begin, _HEADER_BYTES + 255)
    if len(head) < _HEADER_BYTES or head[:4] != b"OggS" or len(head) < _HEADER_BYTES + head[26]:
        return None
    lengths = head[_HEADER_BYTES : _HEADER_BYTES + head[26]]
    after = begin + _HEADER_BYTES + len(lengths) + sum(lengths)
    return (head[5], after) if after <= size else None


def _joined(position: int, size: int) -> str:
    return (
        f"more audio follows: its stream ends after {position} bytes, and another one begins there, of"
        f" {size - position} bytes ({size} in all), which is not decoded; {_CORRECTION}"
    )
