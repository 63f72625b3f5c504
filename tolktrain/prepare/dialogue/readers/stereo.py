"""Stereo recordings of dialogues with word times, as moshi-finetune reads them.

```
{"path": "a.wav", "duration": 24.5}       a.wav: left the assistant, right the user
a.json: {"alignments": [["Hello", [0.4, 0.7], "SPEAKER_MAIN"], ...]}
```

Consecutive words of a speaker are a turn; turns are in the order of their first words. If there are no words of the
right channel, the stretches in which it is heard, which pauses of half a second separate, are in place of its words.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tolktrain.data.records import ASSISTANT
from tolktrain.files.reading import DESCRIPTION_BYTES, read_json
from tolktrain.prepare.dialogue.readers import Reader
from tolktrain.prepare.dialogue.talk import Context, Said, Talk, bad, list_in, note_unused, object_in, path_in, text_in
from tolktrain.prepare.recordings.align.word import word
from tolktrain.prepare.recordings.audio import AudioReader
from tolktrain.prepare.utterances import EntryError, Reason, Utterance, Word
from tolktrain.units.base import Samples

_MAIN = "SPEAKER_MAIN"
_LEFT, _RIGHT = 0, 1
_RATE = 16_000
_FRAMES_PER_SECOND = 50
_PAUSE_SECONDS = 0.5
_LEVEL_DB = 30.0  # below the loudest frame, from which on a channel is silent
_MARGIN_SECONDS = 0.1
_LARGEST = 16 * DESCRIPTION_BYTES


def read_stereo(entry: Mapping[str, Any], context: Context) -> Talk:
    """The turns of both speakers, in the order in which they begin."""
    note_unused(entry, ("path", "duration", "id"), context)
    audio = path_in(entry.get("path"), "path", context)
    said = _words(os.path.splitext(audio)[0] + ".json", context)
    user = context.config.roles.get("user", "user")
    if all(one.channel == _LEFT for one in said):
        said += [_Stretch(_RIGHT, begin, end) for begin, end in _heard(audio, context)]
        said.sort(key=lambda one: one.begin)
    return Talk(
        tuple(
            _turn(ASSISTANT if channel == _LEFT else user, audio, list(run))
            for channel, run in groupby(said, key=lambda one: one.channel)
        )
    )


@dataclass(frozen=True)
class _Stretch:
    """A word, or a stretch of speech whose words are not known."""

    channel: int
    begin: float  # seconds
    end: float
    text: str | None = None


def _turn(role: str, audio: str, run: Sequence[_Stretch]) -> Said:
    """The turn of consecutive stretches of a channel."""
    begin, end = run[0].begin, max(one.end for one in run)
    words = tuple(Word(one.text, one.begin - begin, one.end - begin) for one in run if one.text is not None)
    return Said(role, None, audio, run[0].channel, begin, end - begin, words or None)


def _words(path: str, context: Context) -> list[_Stretch]:
    """Words in the order of their beginnings."""
    try:
        content = read_json(path, _LARGEST)
    except OSError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path} is not JSON ({error})") from None
    found = object_in(content, path)
    note_unused(found, ("alignments",), context, " of alignments")
    result = []
    for number, item in enumerate(list_in(found.get("alignments"), f"{path}: alignments"), 1):
        where = f"{path}: word {number}"
        if not isinstance(item, list) or len(item) != 3 or not isinstance(item[1], list) or len(item[1]) != 2:
            raise bad(f"{where}: expected [word, [start, end], speaker], got {json.dumps(item)[:80]}")
        text, (start, end), speaker = item
        if not text_in(text, where).strip():
            continue
        one = word(text.strip(), start, end)
        if not 0 <= one.start <= one.end:
            raise EntryError(Reason.WORD_TIMES, f"{where} begins at {one.start} s and ends at {one.end} s")
        channel = _LEFT if text_in(speaker, where) == _MAIN else _RIGHT
        result.append(_Stretch(channel, one.start, one.end, one.text))
    if not result:
        raise EntryError(Reason.WORD_TIMES, f"{path} has no words")
    return sorted(result, key=lambda one: one.begin)


def _heard(audio: str, context: Context) -> list[tuple[float, float]]:
    """Stretches of the right channel that are not silent, in seconds."""
    try:
        with AudioReader(bounds=context.config.bounds) as reader:
            samples = reader.read(Utterance(audio, audio, "", audio, channel=_RIGHT), _RATE)
    except EntryError as error:
        if error.reason == Reason.SILENT:
            return []
        raise
    return stretches(samples)


def stretches(samples: Samples) -> list[tuple[float, float]]:
    """Where audio at 16 kHz [n] is within 30 dB of its loudest 20 ms, joined over pauses of less than half a second."""
    size = _RATE // _FRAMES_PER_SECOND
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    powers = frames.var(axis=1, dtype=np.float64)
    if not len(powers) or not powers.max():
        return []
    loud = np.flatnonzero(powers > powers.max() * 10 ** (-_LEVEL_DB / 10))
    cuts = np.flatnonzero(np.diff(loud) > _PAUSE_SECONDS * _FRAMES_PER_SECOND)
    firsts, lasts = loud[np.append(0, cuts + 1)], loud[np.append(cuts, len(loud) - 1)] + 1
    total = len(samples) / _RATE
    return [
        (
            max(first / _FRAMES_PER_SECOND - _MARGIN_SECONDS, 0.0),
            min(last / _FRAMES_PER_SECOND + _MARGIN_SECONDS, total),
        )
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]


READER = Reader(lambda first: "path" in first and "duration" in first, read_stereo)
