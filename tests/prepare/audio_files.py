"""The same recording in the containers and codings that people have, written by ffmpeg and sox."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tolktrain.prepare.recordings.audio import read_audio
from tolktrain.prepare.utterances import EntryError, Reason, Utterance

RATE = 16_000
SECONDS = 1.5
Waveform = npt.NDArray[np.float32]

# What each file is, and the program that writes it from a WAV file; through a pipe, lengths are unknown when a header
# is written.
FFMPEG = {
    "plain.wav": "-c:a pcm_s16le",
    "24.wav": "-c:a pcm_s24le",
    "unsigned.wav": "-c:a pcm_u8",
    "float.wav": "-c:a pcm_f32le",
    "alaw.wav": "-c:a pcm_alaw",
    "mulaw.wav": "-c:a pcm_mulaw",
    "adpcm.wav": "-c:a adpcm_ms",
    "extensible.wav": "-c:a pcm_s32le",
    "rf64.wav": "-rf64 always",
    "bext.wav": "-write_bext 1 -metadata description=x",
    "plain.w64": "",
    "plain.aiff": "",
    "little-endian.aiff": "-c:a pcm_s16le",
    "plain.caf": "",
    "plain.au": "",
    "plain.flac": "",
    "vorbis.ogg": "-c:a libvorbis",
    "plain.opus": "-c:a libopus -ar 16000",
    "constant.mp3": "-b:a 48k",
    "variable.mp3": "-q:a 5",
    "no-xing.mp3": "-q:a 5 -write_xing 0",
}
FFMPEG_PIPE = {"piped.wav": "-f wav", "piped.flac": "-f flac", "piped.aiff": "-f aiff", "piped.au": "-f au"}
SOX = {
    "sox.wav": "",
    "big-endian.wav": "-B",
    "sox.sph": "",
    "sox.aiff": "",
    "sox.flac": "",
    "sox.ogg": "",
    "sox.mp3": "",
    "sox.voc": "",
}
SOX_PIPE = {"sox-piped.wav": "wav", "sox-piped.aiff": "aiff"}
NAMES = (*FFMPEG, *FFMPEG_PIPE, *SOX, *SOX_PIPE)

# Their header says where the audio ends.
DECLARED = (
    *("plain.wav", "24.wav", "float.wav", "alaw.wav", "adpcm.wav", "extensible.wav", "rf64.wav", "bext.wav"),
    *("sox.wav", "big-endian.wav", "plain.aiff", "sox.aiff", "little-endian.aiff", "plain.caf", "plain.au"),
    *("plain.w64", "sox.sph"),
    *("plain.flac", "sox.flac", "vorbis.ogg", "sox.ogg", "plain.opus", "constant.mp3", "variable.mp3"),
)


@dataclass(frozen=True)
class AudioFiles:
    """Files by name, and how many samples a decoder returns of each."""

    folder: Path
    waveform: Waveform

    def path(self, name: str) -> Path:
        """A file. Skips if a program that writes it is missing."""
        path = self.folder / name
        if not path.exists():
            self._write(path)
        return path

    def _write(self, path: Path) -> None:
        is_sox = path.name in SOX or path.name in SOX_PIPE
        program, package = ("sox", "sox and libsox-fmt-all") if is_sox else ("ffmpeg", "ffmpeg")
        if shutil.which(program) is None:
            pytest.skip(f"needs the Debian package {package}")
        source = self.folder / "source.flac"
        if not source.exists():
            soundfile.write(source, self.waveform, RATE)
        name = path.name
        if name in FFMPEG:
            call = f"ffmpeg -v error -i {source} {FFMPEG[name]} {path}"
        elif name in FFMPEG_PIPE:
            call = f"ffmpeg -v error -i {source} {FFMPEG_PIPE[name]} - | cat > {path}"
        elif name in SOX:
            call = f"sox {source} {SOX[name]} {path}"
        else:
            # From standard input, of which sox does not know the length.
            raw = "-t raw -r 16k -e signed -b 16 -c 1 -"
            call = f"sox {source} {raw} | sox {raw} -t {SOX_PIPE[name]} - | cat > {path}"
        subprocess.run(["bash", "-o", "pipefail", "-c", call], check=True)


def speech_like(seconds: float, seed: int = 0) -> Waveform:
    """Loud and quiet stretches that differ from each other."""
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(times))
    return ((0.3 * np.sin(2 * np.pi * (200 + 90 * times) * times) + 0.05 * noise) * (times % 0.5 + 0.1)).astype("f")


def utterance(path: Path, **fields: object) -> Utterance:
    """The whole file, or a piece of it."""
    return Utterance(id="u", source="s", speaker="", audio=str(path), **fields)  # type: ignore[arg-type]


def read(path: Path, **fields: object) -> Waveform:
    """As prepare reads it."""
    return read_audio(utterance(path, **fields), RATE)


def failure(path: Path, **fields: object) -> EntryError:
    """The error of an utterance that must not be read."""
    with pytest.raises(EntryError) as caught:
        read(path, **fields)
    assert str(path) in caught.value.detail
    return caught.value


def audio_failure(path: Path, **fields: object) -> str:
    """Its message; the reason must be the audio."""
    error = failure(path, **fields)
    assert error.reason is Reason.AUDIO
    return error.detail
