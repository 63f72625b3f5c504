"""Audio of utterances: the wanted piece of a file, one channel, at the wanted rate."""

import os
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import BoundsConfig
from tolktrain.errors import UserError
from tolktrain.files.reading import open_regular
from tolktrain.prepare.recordings.audio_stream import UNKNOWN_FRAMES, AudioStream, FileRange, open_audio, open_raw
from tolktrain.prepare.recordings.bounds import Powers, check_channels, check_level
from tolktrain.prepare.recordings.containers import READ_TO_THE_END, Content, content_of
from tolktrain.prepare.recordings.not_audio import HEAD_BYTES, content_instead_of_audio
from tolktrain.prepare.recordings.notes import named_notes
from tolktrain.prepare.utterances import EntryError, Reason, Utterance
from tolktrain.units.base import Samples

if TYPE_CHECKING:
    from soundfile import SoundFile

Block = npt.NDArray[np.float32]  # [n] or [n, channels]

TOLERANCE_SECONDS = 0.1
"""Audio may be this much shorter than expected, because manifests round and codecs pad."""

_BLOCK_VALUES = 1 << 20
_UNEXPLAINED = "; it is damaged, or its codec is not decoded: copy it again, or convert it with `ffmpeg -i IN OUT.flac`"
_MISSING = (
    "does not exist or is not a file; correct the path or recordings.audio_root (~ and $NAME are not expanded in a"
    " manifest)"
)
_SLOWEST_RATE, _FASTEST_RATE = 1_000, 768_000
_MOST_SAMPLES = 1 << 29  # of an utterance: 2 GiB, 9 hours at 16 kHz; a megabyte of FLAC may hold days of silence
_LOUDEST = 8.0  # decoders overshoot a little; integers stored as floating point exceed this by far
_LARGEST_SIZE = 0x7F00_0000  # bytes of a file from which on the sizes in its header may be too small for it


class AudioReader:
    """Reads utterances. A context manager.

    MP3 and Ogg are decoded from the beginning, and the file stays open: utterances of one file in order cost one pass.
    """

    def __init__(self, channel: int | None = None, bounds: BoundsConfig | None = None) -> None:
        """`channel` is read of utterances that name none; None: the mean of all. `bounds`: the defaults if None."""
        self._channel = channel
        self._bounds = bounds or BoundsConfig()
        self._stream: AudioStream | None = None
        self._container: tuple[str, str | None] | None = None  # of the last file: path and libsndfile's name
        self._content: tuple[str, Content] | None = None  # of the file that was examined last

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

        Raises `EntryError` if the file is missing, unreadable or cut off, contains audio that is not decoded, has no
        such piece or channel, holds values that are no audio, or if the piece is empty, silent, or of channels that
        cancel; `UserError` if soundfile or soxr is not installed.
        """
        try:
            import soundfile  # noqa: F401
        except ImportError:
            raise UserError("reading audio needs soundfile; pip install 'tolktrain[audio]'") from None
        path = utterance.audio
        if utterance.channel is None and self._channel is not None:
            utterance = replace(utterance, channel=self._channel)
        try:
            with named_notes(path):
                piece = self._piece(utterance, sample_rate)
            self._check_end(piece, utterance)
        except EntryError as error:
            self.close()
            raise self._explained(error, path) from None
        except (OSError, RuntimeError, ValueError, TypeError) as error:  # soundfile's own are RuntimeError
            self.close()
            failure = EntryError(Reason.AUDIO, f"{path} cannot be read ({_message(error)})")
            explained = self._explained(failure, path)
            raise EntryError(
                explained.reason, explained.detail + (_UNEXPLAINED if explained is failure else "")
            ) from None
        if not len(piece.samples):
            raise EntryError(Reason.EMPTY, f"{path} has no audio between the given times")
        samples = resampled(piece.samples, piece.rate, sample_rate)
        if not len(samples):
            raise EntryError(Reason.EMPTY, f"{path}: less than a sample is between the given times")
        self._check_bounds(piece, samples, sample_rate, path)
        return samples

    def _piece(self, utterance: Utterance, wanted_rate: int) -> "_Piece":
        """The piece as it is in the file. Resampled to `wanted_rate` it is no more than can be held."""
        path = utterance.audio
        if not os.path.isfile(path):
            if os.path.islink(path):
                raise EntryError(
                    Reason.AUDIO,
                    f"{path} is a link to {os.readlink(path)}, which does not exist or is not a file; get the file"
                    " (git annex get, datalad get), or correct the link",
                )
            raise EntryError(Reason.AUDIO, f"{path} {_MISSING}")
        size = os.path.getsize(path)
        if not size:
            raise EntryError(Reason.EMPTY, f"{path} has 0 bytes; download or copy the audio again")
        stream = self._stream
        same_file = stream is not None and stream.path == path
        if stream is not None and same_file and stream.position <= _count(utterance.offset, stream.sample_rate):
            self._container = (path, stream.container)
            return _stream_piece(stream, utterance, wanted_rate)
        self._container = None
        with open_regular(path) as file:
            instead = content_instead_of_audio(file.read(HEAD_BYTES))
        if instead is not None:
            raise EntryError(Reason.AUDIO, f"{path} {instead}")
        self._container = (path, None)
        with open_audio(path) as audio:
            container = str(audio.format)
            self._container = (path, container)
            if audio.format not in ("MP3", "OGG"):
                is_delimited = size <= _LARGEST_SIZE and container not in READ_TO_THE_END
                raw = None if is_delimited else self._examined(path).raw
                if raw is None:
                    return _file_piece(audio, utterance, wanted_rate)
                with FileRange(path, raw.begin, raw.end) as part, open_raw(part, audio, raw.endian) as whole:
                    return _file_piece(whole, utterance, wanted_rate)
        self.close()
        self._stream = AudioStream(path, container)
        return _stream_piece(self._stream, utterance, wanted_rate)

    def _examined(self, path: str) -> Content:
        """What the file contains, if it may be audio. Examined once while its utterances are read in order."""
        if self._container is None or self._container[0] != path:
            return Content()
        if self._content is None or self._content[0] != path:
            self._content = (path, content_of(path, self._container[1]))
        return self._content[1]

    def _check_end(self, piece: "_Piece", utterance: Utterance) -> None:
        """Raise `EntryError` if the piece reaches the end of what is decoded, and the file contains more audio."""
        ends_early, total = utterance.duration is not None, piece.total
        if ends_early and total is not None and piece.end < total - TOLERANCE_SECONDS:
            return
        content = self._examined(utterance.audio)
        least = None if content.seconds is None else content.seconds - content.padding_seconds - TOLERANCE_SECONDS
        if ends_early and total is None and least is not None and piece.end < least:
            return
        problem, decoded = content.problem, piece.end if total is None else total
        if problem is None and least is not None and decoded < least:
            problem = (
                f"more audio follows: decoding ends after {decoded:.2f} s, the file contains {content.seconds:.2f} s;"
                " encode it again, or separate joined files"
            )
        if problem is not None:
            raise EntryError(Reason.AUDIO, f"{utterance.audio}: {problem}")

    def _explained(self, error: EntryError, path: str) -> EntryError:
        """The error with what the content of the file says about its cause."""
        if error.reason not in (Reason.AUDIO, Reason.EMPTY):
            return error
        try:
            problem = self._examined(path).problem
        except OSError:
            return error
        if problem is None or problem in error.detail:
            return error
        return EntryError(Reason.AUDIO, f"{error.detail}; {problem}")

    def _check_bounds(self, piece: "_Piece", samples: Samples, sample_rate: int, path: str) -> None:
        channels = piece.channels
        try:
            if channels is not None and piece.mean is not None:
                check_channels(channels, piece.mean, self._bounds)
            check_level(samples, sample_rate, channels, self._bounds)
        except EntryError as error:
            raise EntryError(error.reason, f"{path}: {error.detail}") from None


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of a file."""

    samples: Block  # [n], mono
    rate: int  # samples per second
    end: float  # of the piece in the file, in seconds
    total: float | None  # of what is decoded, in seconds; None: the file does not say
    channels: Powers | None  # of a file with several
    mean: float | None  # power of their mean, if that is what was read


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


def _file_piece(audio: "SoundFile", utterance: Utterance, wanted_rate: int) -> _Piece:
    rate = _plausible_rate(audio, utterance)
    total = audio.frames if audio.frames < UNKNOWN_FRAMES else None
    begin, wanted = _bounds(utterance, rate, total)
    if begin:
        audio.seek(begin)
    return _read(audio, begin, wanted, total, utterance, _most_samples(rate, wanted_rate))


def _stream_piece(stream: AudioStream, utterance: Utterance, wanted_rate: int) -> _Piece:
    rate = _plausible_rate(stream, utterance)
    begin, wanted = _bounds(utterance, rate, stream.frames)
    while stream.position < begin:
        if not len(stream.read(min(begin - stream.position, _BLOCK_VALUES // stream.channels))):
            raise _past_end(utterance, stream.position / rate)
    return _read(stream, begin, wanted, stream.frames, utterance, _most_samples(rate, wanted_rate))


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
        f"{utterance.audio} lasts {seconds:.2f} s; the manifest has the utterance begin at {utterance.offset:.2f} s;"
        " offset and duration are seconds",
    )


def _count(seconds: float, rate: int) -> int:
    """Whole samples; what no file can hold is brought within the integers of libsndfile."""
    assert seconds >= 0, "manifests are read without negative times"
    return round(min(seconds * rate, float(UNKNOWN_FRAMES)))


def _most_samples(rate: int, wanted_rate: int) -> int:
    return min(_MOST_SAMPLES, _MOST_SAMPLES * rate // wanted_rate)


def _read(
    audio: "SoundFile | AudioStream",
    begin: int,
    wanted: int | None,
    total: int | None,
    utterance: Utterance,
    most: int,
) -> _Piece:
    """Up to `wanted` mono samples. In blocks, because a damaged header may promise any number of them."""
    rate = audio.sample_rate if isinstance(audio, AudioStream) else int(audio.samplerate)
    blocks: list[Block] = []
    block_frames = _BLOCK_VALUES // audio.channels
    got, channels, mean = 0, np.zeros(audio.channels), 0.0
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
        if audio.channels > 1:
            channels += len(block) * block.var(axis=0, dtype=np.float64)
            mean += len(block) * float(blocks[-1].var(dtype=np.float64))
    _check_length(got, wanted, rate, utterance)
    return _Piece(
        samples=np.concatenate(blocks) if blocks else np.zeros(0, np.float32),
        rate=rate,
        end=(begin + got) / rate,
        total=None if total is None else total / rate,
        channels=channels / got if audio.channels > 1 and got else None,
        mean=mean / got if utterance.channel is None and got else None,
    )


def _mono(block: Block, utterance: Utterance) -> Block:
    if utterance.channel is not None:
        block = block[:, utterance.channel : utterance.channel + 1]
    peak = float(np.abs(block).max())
    if not peak <= _LOUDEST:
        if not np.isfinite(peak):
            raise EntryError(
                Reason.AUDIO, f"{utterance.audio} holds values that are not finite (NaN or infinity); export it again"
            )
        raise EntryError(Reason.AUDIO, f"{utterance.audio} holds values up to {peak:g}; audio must be within -1 and 1")
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _check_length(got: int, wanted: int | None, rate: int, utterance: Utterance) -> None:
    if wanted is not None and wanted - got > TOLERANCE_SECONDS * rate:
        raise EntryError(
            Reason.AUDIO,
            f"{utterance.audio} has {got / rate:.2f} s from {utterance.offset:.2f} s on, expected {wanted / rate:.2f}"
            " s; the file is cut off or the manifest is wrong",
        )


def _message(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    # libsndfile says so of MPEG audio that libmpg123 refuses; that the file exists has been seen.
    return "its beginning is no audio" if "is not a regular file" in text else text
