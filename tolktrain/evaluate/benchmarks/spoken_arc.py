"""Spoken ARC: questions of ARC (arXiv 1803.05457) in text and speech, with choices in text and, perhaps, in speech.

A folder has JSON lines, a file per set, with the fields of `allenai/ai2_arc` (`id`, `question`, `choices` with `text`
and `label`, `answerKey`) and paths of audio: `audio` of the question, and a list `audio` in `choices`. `voice` is
optional.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import AudioFile, Benchmark, Found, ItemSet, Problems, list_folder
from tolktrain.evaluate.benchmarks.questions import DIRECTIONS, Asked, sets_of
from tolktrain.files.names import inside
from tolktrain.files.reading import bounded_lines, open_regular, parse_json

_ARCHIVE = "a spoken ARC (docs/evaluation.md describes its files)"
_LONGEST_LINE = 1 << 20  # bytes
_SUFFIXES = (".wav", ".flac", ".mp3")
_KEYS = {"id", "question", "choices", "answerKey", "audio", "voice"}
_CHOICE_KEYS = {"text", "label", "audio"}


def read(folder: Path) -> Found:
    """A set for each file and direction. Raises `UserError` if there is no file, or a line is something else."""
    names = [name for name in list_folder(folder) if name.endswith(".jsonl")]
    if not names:
        raise UserError(f"{folder} holds no file NAME.jsonl; name the folder of {_ARCHIVE}")
    sets: list[ItemSet] = []
    used: set[Path] = set()
    missing: list[str] = []
    doubled: list[str] = []
    for name in names:
        asked: dict[tuple[str, str], Asked] = {}
        for place, entry in _lines(folder / name):
            one = _asked(folder, entry, place)
            files = [found for found in (one.audio, *one.recordings.values()) if found is not None]
            used |= {file.path for file in files}
            absent = [str(file.path.relative_to(folder)) for file in files if not file.path.is_file()]
            missing += absent
            if (one.id, one.voice) in asked:
                doubled.append(f"{name}: {one.id}{f', voice {one.voice}' if one.voice else ''}")
            elif not absent:
                asked[one.id, one.voice] = one
        sets += sets_of(name.removesuffix(".jsonl"), list(asked.values()), DIRECTIONS)
    recordings = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    extra = tuple(str(path.relative_to(folder)) for path in recordings if path not in used)
    return Found(tuple(sets), Problems(tuple(dict.fromkeys(missing)), tuple(doubled), extra))


def _lines(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    try:
        with open_regular(path) as file:
            for number, line in enumerate(bounded_lines(file, _LONGEST_LINE), start=1):
                if not line.strip():
                    continue
                entry = parse_json(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"line {number} is no JSON object")
                found.append((f"{path}, line {number}", entry))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected JSON lines") from None
    return found


def _asked(folder: Path, entry: Mapping[str, Any], place: str) -> Asked:
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise UserError(f"{place}: the key {unknown[0]!r} is unknown; known are {', '.join(sorted(_KEYS))}")
    choices = entry.get("choices")
    if not isinstance(choices, dict) or set(choices) - _CHOICE_KEYS:
        raise UserError(
            f"{place}: choices must be an object with text, label and, perhaps, audio, found {choices!r:.80}"
        )
    lists = {key: _texts(choices.get(key), f"{place}: choices.{key}") for key in choices if choices[key] is not None}
    labels, texts = lists.get("label", []), lists.get("text", [])
    if len(labels) < 2 or any(len(own) != len(labels) for own in lists.values()) or len(set(labels)) < len(labels):
        raise UserError(f"{place}: choices needs at least two different labels, and as many entries in each list")
    if not texts:
        raise UserError(f"{place}: choices has no text")
    values = {key: entry.get(key) for key in ("id", "question", "answerKey")}
    for key, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: {key} must be a text that is not empty, found {value!r:.80}")
    if values["answerKey"] not in labels:
        raise UserError(f"{place}: answerKey is {values['answerKey']!r}, which is none of {', '.join(labels)}")
    for key in ("audio", "voice"):
        if not isinstance(entry.get(key), (str, type(None))):
            raise UserError(f"{place}: {key} must be a text, found {entry[key]!r:.80}")
    spoken = [AudioFile(inside(folder, path, place)) for path in lists.get("audio", [])]
    return Asked(
        str(values["id"]),
        dict(zip(labels, texts, strict=True)),
        str(values["answerKey"]),
        str(values["question"]),
        None if entry.get("audio") is None else AudioFile(inside(folder, entry["audio"], place)),
        dict(zip(labels, spoken, strict=True)) if spoken else {},
        entry.get("voice") or "",
    )


def _texts(value: Any, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise UserError(f"{place} must be a list of texts that are not empty, found {value!r:.80}")
    return value


BENCHMARK = Benchmark("spoken_arc", "spoken ARC", _ARCHIVE, read)
