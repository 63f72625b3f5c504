"""Small corpora of tones for words, with their times, and a plain way from them to records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tokenizers import Tokenizer

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Record
from tolktrain.data.text_tokenizer import END_OF_TEXT, train_tokenizer
from tolktrain.units.base import SpeechTokenizer

RATE = 16_000
TONES = {"do": 262, "re": 294, "mi": 330, "fa": 349, "sol": 392, "la": 440, "ti": 494, "da": 523}


@dataclass(frozen=True, eq=False)
class Sung:
    """An utterance whose words are tones."""

    id: str
    source: str
    speaker: str
    words: tuple[str, ...]
    ends: tuple[float, ...]  # seconds
    samples: np.ndarray  # [n] float32


def sing(rng: np.random.Generator, identity: str, source: str, speaker: str, num_words: int = 8) -> Sung:
    """Random words; the voice of a speaker has overtones of its own."""
    words = tuple(rng.choice(list(TONES), num_words).tolist())
    voice = np.random.default_rng(len(speaker) + sum(map(ord, speaker))).random(4)
    pieces, ends, now = [], [], 0.0
    for word in words:
        seconds = float(rng.uniform(0.12, 0.4))
        time = np.arange(round(seconds * RATE)) / RATE
        tone = sum(share * np.sin(2 * np.pi * TONES[word] * (k + 1) * time) for k, share in enumerate(voice))
        pieces.append(0.2 * np.asarray(tone))
        now += len(time) / RATE
        ends.append(now)
    noise = rng.normal(0, 0.003, sum(map(len, pieces)))
    return Sung(identity, source, speaker, words, tuple(ends), (np.concatenate(pieces) + noise).astype(np.float32))


def corpus(num_sources: int = 4, per_source: int = 5, seed: int = 0) -> list[Sung]:
    """Songs of a few speakers."""
    rng = np.random.default_rng(seed)
    return [
        sing(rng, f"s{source}-{number}", f"s{source}", f"speaker {source % 3}")
        for source in range(num_sources)
        for number in range(per_source)
    ]


def entry(song: Sung, audio: Path) -> dict[str, Any]:
    """The line of a manifest."""
    starts = (0.0, *song.ends[:-1])
    words = [
        {"word": word, "start": start, "end": end}
        for word, start, end in zip(song.words, starts, song.ends, strict=True)
    ]
    return {
        "id": song.id,
        "audio": str(audio),
        "source": song.source,
        "speaker": song.speaker,
        "text": " ".join(song.words),
        "words": words,
    }


def write_corpus(folder: Path, songs: list[Sung]) -> Path:
    """WAV files and a manifest; returns the manifest."""
    (folder / "audio").mkdir(parents=True)
    lines = []
    for song in songs:
        audio = folder / "audio" / f"{song.id}.wav"
        soundfile.write(audio, song.samples, RATE, subtype="FLOAT")
        lines.append(json.dumps(entry(song, Path("audio") / audio.name)))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def write_text_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer with a few merges."""
    return write_words_tokenizer(folder, [" ".join(TONES)] * 3, 264)


def write_words_tokenizer(folder: Path, texts: list[str], vocab_size: int = 512) -> Path:
    """A byte-level tokenizer of these texts, as Hugging Face lays it out."""
    folder.mkdir(parents=True)
    train_tokenizer([" " + text for text in texts], vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    return folder


def configuration(folder: Path, manifest: Path, output: Path | str, **changes: Any) -> dict[str, Any]:
    """Settings of a preparation, as YAML has them."""
    settings: dict[str, Any] = {
        "name": "songs",
        "output": str(output),
        "text_tokenizer": str(folder / "text_tokenizer"),
        "recordings": {
            "manifest": str(manifest),
            "speech_tokenizer": {"path": str(folder / "units"), "fit": {"num_units": 24, "hours": 0.01}},
        },
        "passages": {"tokens": 60, "shortest_tokens": 5},
        "heldout": {"sources": 0, "speakers": 0},
        "parts": {"items": 5},
        "processes": 2,
    }
    return settings | changes


def parsed(settings: dict[str, Any]) -> PrepareConfig:
    """The checked configuration."""
    return PrepareConfig.model_validate(settings)


def plain_records(songs: list[Sung], speech: SpeechTokenizer, text: Tokenizer, tokens: int) -> list[dict[str, Any]]:
    """Records of one source after the other, written as loops over words and frames."""
    records: list[dict[str, Any]] = []
    for source in dict.fromkeys(song.source for song in songs):
        current: dict[str, list[Any]] | None = None
        first_record = len(records)
        for song in [song for song in songs if song.source == source]:
            if current is None:
                names = ("text_ids", "units", "run_lengths", "word_text_ends", "word_unit_ends")
                current = {name: [] for name in (*names, "utterance_text_ends", "utterance_unit_ends")}
                records.append({"id": song.id, **current})
            frames = speech.encode(song.samples)[:, 0].tolist()
            bounds = []  # the frame at which each run ends
            first = len(current["units"])
            for number, unit in enumerate(frames):
                if number and frames[number - 1] == unit:
                    current["run_lengths"][-1] += 1
                    bounds[-1] += 1
                else:
                    current["units"].append(unit)
                    current["run_lengths"].append(1)
                    bounds.append(number + 1)
            nearest = -1
            for place, (word, end) in enumerate(zip(song.words, song.ends, strict=True)):
                current["text_ids"] += text.encode(" " + word).ids
                current["word_text_ends"].append(len(current["text_ids"]))
                words_left = len(song.words) - 1 - place
                frame = round(end * 25) if words_left else len(frames)
                least, most = nearest + 1, len(bounds) - 1 - words_left
                nearest = min(range(len(bounds)), key=lambda run: (abs(bounds[run] - frame), -run))
                nearest = min(max(nearest, least), most)
                current["word_unit_ends"].append(first + nearest + 1)
            current["utterance_text_ends"].append(len(current["text_ids"]))
            current["utterance_unit_ends"].append(len(current["units"]))
            if _length(current) >= tokens:
                current = None
        if current is not None and len(records) > first_record + 1 and 2 * _length(current) < tokens:
            _lengthen(records[-2], records.pop())
    return records


def _length(record: dict[str, Any]) -> int:
    return min(len(record["text_ids"]), len(record["units"])) + len(record["utterance_text_ends"])


def _lengthen(record: dict[str, Any], rest: dict[str, Any]) -> None:
    num_text, num_units = len(record["text_ids"]), len(record["units"])
    for name in ("text_ids", "units", "run_lengths"):
        record[name] += rest[name]
    for name in ("word_text_ends", "utterance_text_ends"):
        record[name] += [end + num_text for end in rest[name]]
    for name in ("word_unit_ends", "utterance_unit_ends"):
        record[name] += [end + num_units for end in rest[name]]


def as_lists(record: Record) -> dict[str, Any]:
    """A record in the form of `plain_records`."""
    names = (
        "run_lengths",
        "text_ids",
        "word_text_ends",
        "word_unit_ends",
        "utterance_text_ends",
        "utterance_unit_ends",
    )
    values = {name: getattr(record, name).tolist() for name in names}
    return {"id": record.id, "units": record.units[:, 0].tolist(), **values}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a preparation by its name, without what a killed process had not finished writing."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".tolktrain-")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
