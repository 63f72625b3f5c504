"""Audio of utterances: the wanted piece of a file, one channel, at the wanted rate."""

import os
import re
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.audio_stream import UNKNOWN_FRAMES, AudioStream, open_audio
from tolktrain.prepare.utterances import EntryError, Reason, Utterance
from tolktrain.units.base import Samples

if TYPE_CHECKING:
    from soundfile import SoundFile

Block = npt.NDArray[np.float32]  # [n] or [n, channels]

TOLERANCE_SECONDS = 0.1
"""Audio may be this much shorter than expected, because manifests round and codecs pad."""

_BLOCK_VALUES = 1 << 20
_SLOWEST_RATE, _FASTEST_RATE = 1_000, 768_000
_MOST_SAMPLES = 1 << 29  # of an utterance: 2 GiB, 9 hours at 16 kHz; a megabyte of FLAC may hold days of silence
_LOUDEST = 8.0  # decoders overshoot a little; integers stored as floating point exceed this by far
_OPEN_DATA_BYTES = 0x7FFF_0000  # programs that write into a pipe declare about the largest size there is


class AudioReader:
    """Reads utterances. A context manager.

    MP3 and Ogg are decoded from the beginning, and the file stays open: utterances of one file in order cost one pass.
    """

    def __init__(self) -> None:
        self._stream: AudioStream | None = None

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def read(self, utterance: Utterance, sample_rate: int) -> Samples:
        """Mono audio of an utterance at `sample_rate`: [n] float32 within -1 and 1, n at least 1.

        Raises `EntryError` if the file is missing, unreadable or cut off, has no such piece or channel, holds values
        that are no audio, or if the piece is empty; `UserError` if soundfile or soxr is not installed.
        """
        try:
            import soundfile  # noqa: F401
        except ImportError:
            raise UserError("reading audio needs soundfile; pip install 'tolktrain[audio]'") from None
        path = utterance.audio
        try:
            samples, rate = self._piece(utterance, sample_rate)
        except EntryError:
            self.close()
            raise
        except (OSError, RuntimeError, ValueError, TypeError) as error:  # soundfile's own are RuntimeError
            self.close()
            raise EntryError(Reason.AUDIO, f"{path} cannot be read ({_message(error)})") from None
        if not len(samples):
            raise EntryError(Reason.EMPTY, f"{path} has no audio between the given times")
        samples = resampled(samples, rate, sample_rate)
        if not len(samples):
            raise EntryError(Reason.EMPTY, f"{path}: less than a sample is between the given times")
        return samples

    def _piece(self, utterance: Utterance, wanted_rate: int) -> tuple[Block, int]:
        """Mono samples of the piece, and their rate. Resampled to `wanted_rate` they are no more than can be held."""
        path = utterance.audio
        if not os.path.isfile(path):
            raise EntryError(Reason.AUDIO, f"{path} does not exist or is not a file")
        if not os.path.getsize(path):
            raise EntryError(Reason.EMPTY, f"{path} has 0 bytes")
        stream = self._stream
        same_file = stream is not None and stream.path == path
        if stream is not None and same_file and stream.position <= _count(utterance.offset, stream.sample_rate):
            return _stream_piece(stream, utterance, wanted_rate)
        with open_audio(path) as audio:
            if audio.format not in ("MP3", "OGG"):
                return _file_piece(audio, utterance, wanted_rate)
            is_mp3 = audio.format == "MP3"
        self.close()
        self._stream = AudioStream(path, is_mp3)
        return _stream_piece(self._stream, utterance, wanted_rate)


def resampled(samples: Samples, sample_rate: int, wanted_rate: int) -> Samples:
    """Audio at another rate: [n] float32, clipped to -1 and 1. Raises `UserError` if soxr is not installed."""
    if sample_rate != wanted_rate and len(samples):
        try:
            import soxr  # type: ignore[import-untyped]
        except ImportError:
            raise UserError("audio of another rate needs soxr; pip install 'tolktrain[audio]'") from None
        samples = soxr.resample(samples, sample_rate, wanted_rate)
    return np.ascontiguousarray(np.clip(samples, -1, 1), np.float32)


def read_audio(utterance: Utterance, sample_rate: int) -> Samples:
    """As `AudioReader.read`, for one utterance."""
    with AudioReader() as reader:
        return reader.read(utterance, sample_rate)


def _file_piece(audio: "SoundFile", utterance: Utterance, wanted_rate: int) -> tuple[Block, int]:
    rate = _plausible_rate(audio, utterance)
    total = audio.frames if audio.frames < UNKNOWN_FRAMES else None
    begin, wanted = _bounds(utterance, rate, total)
    if begin:
        audio.seek(begin)
    samples = _read(audio, wanted, utterance, _most_samples(rate, wanted_rate))
    _check_length(len(samples), wanted, rate, audio.extra_info, utterance)
    return samples, rate


def _stream_piece(stream: AudioStream, utterance: Utterance, wanted_rate: int) -> tuple[Block, int]:
    rate = _plausible_rate(stream, utterance)
    begin, wanted = _bounds(utterance, rate, stream.frames)
    while stream.position < begin:
        if not len(stream.read(min(begin - stream.position, _BLOCK_VALUES // stream.channels))):
            raise _past_end(utterance, stream.position / rate)
    samples = _read(stream, wanted, utterance, _most_samples(rate, wanted_rate))
    _check_length(len(samples), wanted, rate, stream.log, utterance)
    return samples, rate


def _plausible_rate(audio: "SoundFile | AudioStream", utterance: Utterance) -> int:
    rate = audio.sample_rate if isinstance(audio, AudioStream) else int(audio.samplerate)
    if not _SLOWEST_RATE <= rate <= _FASTEST_RATE:
        raise EntryError(Reason.AUDIO, f"{utterance.audio} claims {rate} samples a second; its header is damaged")
    channel = utterance.channel
    if channel is not None and not 0 <= channel < audio.channels:
        raise EntryError(
            Reason.AUDIO, f"{utterance.audio} has no channel {channel}; it has {audio.channels}, counted from 0"
        )
    return rate


def _bounds(utterance: Utterance, rate: int, total: int | None) -> tuple[int, int | None]:
    """First sample, and number of samples; None: to the end, wherever that is."""
    begin = _count(utterance.offset, rate)
    if total == 0:
        raise EntryError(Reason.EMPTY, f"{utterance.audio} has no samples")
    if total is not None and begin >= total:
        raise _past_end(utterance, total / rate)
    if utterance.duration is not None:
        return begin, _count(utterance.offset + utterance.duration, rate) - begin
    return begin, None if total is None else total - begin


def _past_end(utterance: Utterance, seconds: float) -> EntryError:
    return EntryError(
        Reason.AUDIO,
        f"{utterance.audio} lasts {seconds:.2f} s; the manifest has the utterance begin at {utterance.offset:.2f} s",
    )


def _count(seconds: float, rate: int) -> int:
    """Whole samples; what no file can hold is brought within the integers of libsndfile."""
    assert seconds >= 0, "manifests are read without negative times"
    return round(min(seconds * rate, float(UNKNOWN_FRAMES)))


def _most_samples(rate: int, wanted_rate: int) -> int:
    return min(_MOST_SAMPLES, _MOST_SAMPLES * rate // wanted_rate)


def _read(audio: "SoundFile | AudioStream", wanted: int | None, utterance: Utterance, most: int) -> Block:
    """Up to `wanted` mono samples. In blocks, because a damaged header may promise any number of them."""
    blocks: list[Block] = []
    block_frames = _BLOCK_VALUES // audio.channels
    got = 0
    while wanted is None or got < wanted:
        frames = block_frames if wanted is None else min(block_frames, wanted - got)
        if isinstance(audio, AudioStream):
            block = audio.read(frames)
        else:
            block = audio.read(frames, dtype="float32", always_2d=True)
        if not len(block):
            break
        got += len(block)
        if got > most:
            raise EntryError(
                Reason.AUDIO,
                f"{utterance.audio} has more than {most} samples from {utterance.offset:.2f} s on, too many for one"
                " utterance; give offset and duration of shorter ones",
            )
        blocks.append(_mono(block, utterance))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _mono(block: Block, utterance: Utterance) -> Block:
    if utterance.channel is not None:
        block = block[:, utterance.channel : utterance.channel + 1]
    peak = float(np.abs(block).max())
    if not peak <= _LOUDEST:
        if not np.isfinite(peak):
            raise EntryError(Reason.AUDIO, f"{utterance.audio} holds values that are not finite")
        raise EntryError(Reason.AUDIO, f"{utterance.audio} holds values up to {peak:g}; audio must be within -1 and 1")
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _check_length(got: int, wanted: int | None, rate: int, log: str, utterance: Utterance) -> None:
    if wanted is not None and wanted - got > TOLERANCE_SECONDS * rate:
        raise EntryError(
            Reason.AUDIO,
            f"{utterance.audio} has {got / rate:.2f} s from {utterance.offset:.2f} s on, expected {wanted / rate:.2f}"
            " s; the file is cut off or the manifest is wrong",
        )
    if utterance.duration is None and _is_cut_off(log):
        raise EntryError(Reason.AUDIO, f"{utterance.audio} is cut off: the file ends before its audio does")


def _is_cut_off(log: str) -> bool:
    """Whether libsndfile noticed the missing end of a WAV or Ogg file; it reads these without an error."""
    declared = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if declared is not None:
        return int(declared[2]) < int(declared[1]) < _OPEN_DATA_BYTES
    return "Last page lacks an end-of-stream bit" in log


def _message(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
