"""Short spoken prompts: one held-out sentence per voice, as WAV files with their place in the held-out records."""

import io
import json
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sample_corpus.spoken import SpokenPassage
from tolktrain.files.writing import write_synced

PROMPTS_FILE = "prompts.json"
SECONDS = (3.0, 4.0)


def write_wav(path: Path, samples: npt.NDArray[np.int16], sample_rate: int) -> None:
    """Write mono audio of 16 bits."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())
    write_synced(path, content.getvalue())


def write_prompts(folder: Path, spoken: Iterable[SpokenPassage], sample_rate: int) -> list[dict[str, Any]]:
    """Write one prompt per voice: the first sentence after a story's fourth that lasts 3 to 4 seconds.

    prompts.json lists for each: file, text, voice, the record it is part of, the record's words it consists of
    (first, and one past the last), its utterance and its seconds.
    """
    folder.mkdir(parents=True)
    entries: dict[str, dict[str, Any]] = {}
    for passage in spoken:
        voice = passage.passage.voice.name
        chosen = None if voice in entries else _sentence(passage, sample_rate)
        if chosen is None:
            continue
        words = passage.passage.story.words
        first = sum(map(len, words[:chosen]))
        samples = passage.sentences[chosen].samples
        name = f"prompt-{len(entries) + 1}.wav"
        write_wav(folder / name, samples, sample_rate)
        entries[voice] = {
            "file": name,
            "text": " ".join(words[chosen]),
            "voice": voice,
            "record": passage.passage.id,
            "words": [first, first + len(words[chosen])],
            "utterance": chosen,
            "seconds": round(len(samples) / sample_rate, 3),
        }
    text = json.dumps(list(entries.values()), indent=2) + "\n"
    write_synced(folder / PROMPTS_FILE, text.encode())
    return list(entries.values())


def _sentence(passage: SpokenPassage, sample_rate: int) -> int | None:
    for index, sentence in enumerate(passage.sentences):
        if index >= 4 and SECONDS[0] <= len(sentence.samples) / sample_rate <= SECONDS[1]:
            return index
    return None
