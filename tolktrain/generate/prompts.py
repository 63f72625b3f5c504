"""Spoken prompts: a folder of WAV files with prompts.json, which describes them."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.prepare import BoundsConfig
from tolktrain.errors import UserError
from tolktrain.files.reading import open_regular
from tolktrain.generate.inputs import entry_path, read_entries
from tolktrain.prepare.recordings.audio import AudioReader
from tolktrain.prepare.recordings.audio_stream import UNKNOWN_FRAMES
from tolktrain.prepare.utterances import EntryError, Reason, Utterance
from tolktrain.units.base import Samples

_LONGEST_SECONDS = 600.0
_SLOWEST_RATE = 1_000
_MOST_VALUES = 1 << 27  # samples of all channels: ten minutes in stereo at 96 kHz


@dataclass(frozen=True, eq=False)
class Prompt:
    """A spoken prompt."""

    name: str  # of its file, without .wav
    samples: Samples  # mono, at the tokenizer's rate
    text: str
    voice: str
    ends_utterance: bool  # whether EOS follows it


def read_prompts(folder: str | Path, sample_rate: int) -> list[Prompt]:
    """The prompts of a folder, in the order of prompts.json.

    prompts.json is a list of objects: `file` (required), `text`, `voice`, and `ends_utterance` (true if absent: a
    prompt is a whole utterance, after which the model begins the next one). Audio of several channels is mixed, and of
    another rate resampled.

    Raises UserError when the folder, prompts.json or an audio file is missing, unreadable or too long, or two files
    have the same stem.
    """
    folder = Path(folder)
    return [_read(folder, entry, sample_rate) for entry in read_entries(folder)]


def read_waveform(path: Path, sample_rate: int) -> Samples:
    """Mono samples of an audio file at `sample_rate`, read as `tolktrain prepare` reads recordings.

    Raises UserError if it is missing, unreadable, cut off, empty or long, or contains something else than audio.
    """
    if not path.is_file():
        reason = "not a file" if path.exists() else "it does not exist"
        raise UserError(f"{path} is not a readable audio file ({reason}); expected WAV, FLAC or MP3")
    longest = _seconds_if_long(path)
    if longest is not None:
        raise UserError(f"{path} is longer than {longest:.0f} s; expected a spoken prompt")
    try:
        with AudioReader(bounds=BoundsConfig(min_level_db=None, max_cancellation_db=None)) as reader:
            return reader.read(Utterance(path.name, path.name, "", str(path)), sample_rate)
    except EntryError as error:
        if error.reason == Reason.EMPTY and path.stat().st_size:
            raise UserError(f"{path} holds no audio; expected a spoken prompt") from None
        detail = error.detail.removeprefix(f"{path} ").removeprefix("cannot be read ")
        raise UserError(f"{path} is not a readable audio file ({detail}); expected WAV, FLAC or MP3") from None


def _seconds_if_long(path: Path) -> float | None:
    """Most seconds of a prompt, if the file holds more; None also if it cannot be read."""
    import soundfile

    with contextlib.suppress(OSError, RuntimeError), open_regular(path) as file, soundfile.SoundFile(file) as opened:
        rate, frames = int(opened.samplerate), int(opened.frames)
        if rate < _SLOWEST_RATE:
            return None  # a damaged header, which the reader refuses
        # A few kilobytes may hold days of silence.
        most = min(int(_LONGEST_SECONDS * rate), _MOST_VALUES // int(opened.channels))
        if frames > most and frames >= UNKNOWN_FRAMES:
            frames = len(opened.read(most + 1, dtype="float32", always_2d=True))
        return most / rate if frames > most else None
    return None


def _read(folder: Path, entry: dict[str, Any], sample_rate: int) -> Prompt:
    path = entry_path(folder, entry)
    return Prompt(
        name=path.stem,
        samples=read_waveform(path, sample_rate),
        text=str(entry.get("text", "")),
        voice=str(entry.get("voice", "")),
        ends_utterance=bool(entry.get("ends_utterance", True)),
    )
