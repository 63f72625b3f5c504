"""Spoken prompts: a folder of WAV files with prompts.json, which describes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.errors import UserError
from tolktrain.files.reading import open_regular
from tolktrain.generate.inputs import entry_path, read_entries
from tolktrain.units.base import Samples

_LONGEST_SECONDS = 600.0
_MOST_VALUES = 1 << 27  # samples of all channels: ten minutes in stereo at 96 kHz
_SLOWEST_RATE, _FASTEST_RATE = 1_000, 768_000  # resampling from others takes memory without bound


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
    """Mono samples of an audio file at `sample_rate`. Raises UserError if it is missing, unreadable, empty or long."""
    import soundfile

    try:
        with open_regular(path) as file, soundfile.SoundFile(file) as opened:
            rate = int(opened.samplerate)
            if not _SLOWEST_RATE <= rate <= _FASTEST_RATE:
                raise UserError(f"{path} claims {rate} samples a second; restore it from its source")
            # A few kilobytes may hold days of silence.
            most = min(int(_LONGEST_SECONDS * rate), _MOST_VALUES // int(opened.channels))
            waveform = opened.read(min(int(opened.frames), most + 1), dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable audio file ({error}); expected WAV, FLAC or MP3") from None
    if not len(waveform):
        raise UserError(f"{path} holds no audio; expected a spoken prompt")
    if len(waveform) > most:
        raise UserError(f"{path} is longer than {most / rate:.0f} s; expected a spoken prompt")
    mono = waveform.mean(axis=1)
    if rate != sample_rate:
        from scipy.signal import resample_poly

        divisor = int(np.gcd(rate, sample_rate))
        mono = resample_poly(mono, sample_rate // divisor, rate // divisor)
    return np.clip(mono, -1.0, 1.0).astype(np.float32)


def _read(folder: Path, entry: dict[str, Any], sample_rate: int) -> Prompt:
    path = entry_path(folder, entry)
    return Prompt(
        name=path.stem,
        samples=read_waveform(path, sample_rate),
        text=str(entry.get("text", "")),
        voice=str(entry.get("voice", "")),
        ends_utterance=bool(entry.get("ends_utterance", True)),
    )
