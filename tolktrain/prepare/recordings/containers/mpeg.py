"""MPEG audio (MP3): frames, of which each header gives the length."""

from dataclasses import dataclass
from typing import BinaryIO

from tolktrain.prepare.recordings.containers.content import Content, before_tags, past_tag, past_zeros, read_at

_BLOCK_BYTES = 1 << 16
_HEADER_BYTES = 4
_MASK = 0xFFFF_FE00  # what the length of a frame depends on: sync, version, layer, bit rate, sample rate, padding
_KIND = 0xFFFE_0C00  # what does not change inside of a stream: sync, version, layer, sample rate
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version
_KILOBITS = {
    (True, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # by whether it is MPEG 1, and the bits of the layer (3: layer I)
_PADDING_FRAMES = 3  # at most this much of a stream is what encoders add at its ends


@dataclass(frozen=True)
class Frame:
    """What the header of a frame says."""

    num_bytes: int
    seconds: float


def mpeg_content(file: BinaryIO, begin: int, size: int) -> Content:
    """Counts the frames. Between them, tags may occur; what is in front of the first one is no loss of audio."""
    end = before_tags(file, begin, size)
    position = _next_frame(file, begin, end)
    if position is None:
        return Content()
    first = position
    window = _Window(file)
    num_frames, seconds, unknown, place = 0, 0.0, 0, 0
    frame: Frame | None = None
    while position + _HEADER_BYTES <= end:
        frame = window.frame(position)
        if frame is not None:
            if position + frame.num_bytes > end:
                break
            num_frames += 1
            seconds += frame.seconds
            position += frame.num_bytes
            continue
        after = past_tag(file, position, end) or past_zeros(file, position, end)
        if after <= position:
            after = _next_frame(file, position, end) or end
            place = place or position
            unknown += after - position
        position = after
    problem = None
    if unknown:
        problem = (
            f"it is damaged, or files were joined: of its {size - first} bytes of audio, {unknown} (from byte {place}"
            " on) are neither MPEG audio nor a known tag; encode it again"
        )
    return Content(problem, seconds, min(num_frames, _PADDING_FRAMES) * window.longest_seconds)


class _Window:
    """Reads headers of a file in order."""

    def __init__(self, file: BinaryIO) -> None:
        self.longest_seconds = 0.0
        self._file = file
        self._block = b""
        self._begin = 0
        self._known: dict[int, Frame | None] = {}

    def frame(self, position: int) -> Frame | None:
        """The frame whose header is at a position."""
        place = position - self._begin
        if not 0 <= place <= len(self._block) - _HEADER_BYTES:
            self._block, self._begin, place = read_at(self._file, position, _BLOCK_BYTES), position, 0
        word = int.from_bytes(self._block[place : place + _HEADER_BYTES], "big") & _MASK
        if word not in self._known:
            frame = self._known[word] = _frame(word)
            if frame is not None:
                self.longest_seconds = max(self.longest_seconds, frame.seconds)
        return self._known[word]


def _frame(word: int) -> Frame | None:
    """The frame of a header; None if it is none, or has no bit rate from which its length follows."""
    version, layer = word >> 19 & 3, word >> 17 & 3
    kilobits, rate, padding = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    if word >> 21 != 0x7FF or version == 1 or layer == 0 or kilobits in (0, 15) or rate == 3:
        return None
    bits = _KILOBITS[version == 3, layer][kilobits - 1] * 1000
    samples_per_second = _RATES[version][rate]
    if layer == 3:
        return Frame((12 * bits // samples_per_second + padding) * 4, 384 / samples_per_second)
    samples = 576 if layer == 1 and version != 3 else 1152
    return Frame(samples // 8 * bits // samples_per_second + padding, samples / samples_per_second)


def _next_frame(file: BinaryIO, begin: int, end: int) -> int | None:
    """The position of the first frame that another one of its kind follows, or the end of the file."""
    while begin < end:
        block = read_at(file, begin, min(_BLOCK_BYTES, end - begin))
        place = block.find(0xFF)
        while place >= 0:
            word = int.from_bytes(block[place : place + _HEADER_BYTES], "big")
            frame = _frame(word & _MASK) if place + _HEADER_BYTES <= len(block) else None
            if frame is not None:
                after = begin + place + frame.num_bytes
                following = int.from_bytes(read_at(file, after, _HEADER_BYTES), "big")
                if after == end or (after < end and (following ^ word) & _KIND == 0):
                    return begin + place
            place = block.find(0xFF, place + 1)
        if begin + len(block) >= end:
            return None
        begin += len(block) - _HEADER_BYTES + 1
    return None
