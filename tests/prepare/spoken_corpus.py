"""Two hundred utterances of real audio: spoken by espeak-ng, coded as MP3, FLAC and Opus, some of them spoilt."""

import ctypes
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sample_corpus import espeak
from sample_corpus.espeak import SAMPLE_RATE, Utterance, Voice, speak_passages
from sample_corpus.stories import stories

VOICES = tuple(
    Voice(name, rate, pitch)
    for name, rate, pitch in (
        ("en-us", 185, 45), ("en-us+f1", 190, 50), ("en-gb-x-rp+m3", 180, 55), ("en-us+m1", 195, 50),
        ("en-us+f3", 180, 60), ("en-gb-x-rp", 190, 40), ("en-us+m5", 185, 50), ("en-us+f2", 175, 55),
    )
)  # fmt: skip
PER_VOICE = 25
CODERS = {
    "mp3": ("-c:a", "libmp3lame", "-b:a", "64k"),
    "flac": ("-c:a", "flac"),
    "opus": ("-c:a", "libopus", "-b:a", "32k"),
}
CORRUPTED = (11, 46, 87)  # one of each coding
EMPTY, STEREO, WRONG_TEXT, NOISY, CLIPPED = 120, 132, 152, 163, 174


@dataclass(frozen=True)
class Spoken:
    """The corpus on disk."""

    manifest: Path
    entries: list[dict[str, Any]]  # lines of the manifest, with every word's time by espeak-ng
    texts: list[str]


def need_programs() -> None:
    """Skip, naming the package, where a program is not installed."""
    try:
        ctypes.CDLL(espeak.LIBRARY)
    except OSError:
        pytest.skip(f"needs the Debian package {espeak.PACKAGE}")
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the Debian package ffmpeg")


def speak_corpus(folder: Path) -> Spoken:
    """Speak, code and spoil the corpus, and write its manifest."""
    wavs = folder / "wav"
    wavs.mkdir(parents=True)
    tales = [story.words[:PER_VOICE] for story in stories(7, len(VOICES))]
    entries: list[dict[str, Any]] = []
    for number, utterances in enumerate(speak_passages(list(zip(VOICES, tales, strict=True)), processes=2)):
        for place, (utterance, words) in enumerate(zip(utterances, tales[number], strict=True)):
            entries.append(_entry(len(entries), number, place, utterance, words))
            _write_wav(wavs / f"{len(entries) - 1:03}.wav", utterance.samples, len(entries) - 1)
    _code(wavs, folder, [entry["audio"] for entry in entries])
    for index in CORRUPTED:
        path = folder / entries[index]["audio"]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 3] if index != CORRUPTED[0] else bytes(reversed(content)))
    (folder / entries[EMPTY]["audio"]).write_bytes(b"")
    entries[WRONG_TEXT]["text"] = "Nobody ever said these words to anyone in this whole story, not even once."
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return Spoken(manifest, entries, [" ".join(words) for tale in tales for words in tale])


def _entry(index: int, voice: int, place: int, utterance: Utterance, words: list[str]) -> dict[str, Any]:
    ends = (utterance.word_ends / SAMPLE_RATE).tolist()
    starts = [0.0, *ends[:-1]]
    return {
        "id": f"{VOICES[voice].name}-{place:03}",
        "audio": f"{index:03}.{list(CODERS)[index % 3]}",
        "source": f"story-{voice}",
        "speaker": VOICES[voice].name,
        "duration": len(utterance.samples) / SAMPLE_RATE,
        "text": " ".join(words),
        "words": [
            {"word": word, "start": start, "end": end} for word, start, end in zip(words, starts, ends, strict=True)
        ],
    }


def _write_wav(path: Path, samples: np.ndarray, index: int) -> None:
    if index == NOISY:
        noise = np.random.default_rng(0).normal(0, 300, len(samples))
        samples = np.clip(samples + noise, -32768, 32767).astype(np.int16)
    if index == CLIPPED:
        samples = np.clip(samples.astype(np.int32) * 8, -32768, 32767).astype(np.int16)
    soundfile.write(path, samples, SAMPLE_RATE)


def _code(wavs: Path, folder: Path, names: list[str]) -> None:
    """Code every WAV file; many of them by one process of ffmpeg, which takes long to start."""
    for begin in range(0, len(names), 40):
        numbers = range(begin, min(begin + 40, len(names)))
        command = ["ffmpeg", "-loglevel", "error", "-y"]
        for index in numbers:
            command += ["-i", str(wavs / f"{index:03}.wav")]
        for place, index in enumerate(numbers):
            stereo = ["-ac", "2", "-ar", "44100"] if index == STEREO else []
            coder = CODERS[names[index].rsplit(".", 1)[1]]
            command += ["-map", str(place), *stereo, *coder, str(folder / names[index])]
        subprocess.run(command, check=True, capture_output=True)
