"""An entry of a manifest, whatever format it came from: keys and values are checked here, and nowhere else."""

import difflib
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from tolktrain.files.reading import is_count
from tolktrain.prepare.recordings.align.word_times import check_words, words_of
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

KEYS = ("id", "audio", "offset", "duration", "text", "speaker", "source", "channel", "words", "word_times")

_KEY_SET = frozenset(KEYS)
_SPEAKER = "client_id"  # as Common Voice names it
_LONGEST_SECONDS = 1e8  # three years
_NEAR = 0.8
_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("audio_filepath", "audio_path", "audio_file", "path", "wav", "file", "filename"), "audio"),
        **dict.fromkeys(("start", "begin", "start_time"), "offset"),
        **dict.fromkeys(("end", "end_time", "length"), "duration"),
        **dict.fromkeys(("transcript", "transcription", "sentence", "normalized_text"), "text"),
        **dict.fromkeys(("spk", "spk_id", "speaker_id"), "speaker"),
        **dict.fromkeys(("alignment", "alignments"), "words"),
    }
)


def utterance_of(entry: Any, root: str, unused: Unused, place: str) -> Utterance:
    """The utterance of an entry with the keys `KEYS`, of which only `audio` is required.

    Relative paths start from `root`. Without `id`, it is the path of the audio as written, with @offset and #channel
    where they are given; without `source`, the path. Without `speaker`, `client_id` is the speaker. Other keys are
    counted in `unused`, with the `place` of the entry, unless they are near one of ours that is absent. Raises
    `EntryError` that names the key, the value and what was expected.
    """
    if not isinstance(entry, dict):
        raise _bad(f"expected an object with the key audio, got {entry!r:.80}")
    if not entry.keys() <= _KEY_SET:
        _refuse_near_keys(entry)
    speaker, speaker_key = _speaker(entry)
    if not entry.keys() <= _KEY_SET:
        for key in entry:
            if key not in _KEY_SET and key != speaker_key:
                unused.add(f"the key {key!r:.80}", place)
    audio = _text(entry, "audio")
    if audio is None:
        raise _bad(f"the key audio is missing; the keys are {', '.join(map(repr, entry)) or 'none':.200}")
    offset = _seconds(entry, "offset") or 0.0
    duration = _seconds(entry, "duration")
    if duration is not None and duration <= 0:
        raise _bad(f"duration must be above 0, got {duration}")
    channel = entry.get("channel")
    if channel is not None and not is_count(channel):
        raise _bad(f"channel must be a whole number from 0 on, got {channel!r:.80}")
    given, word_times = entry.get("words"), _path(entry, "word_times")
    if given is not None and word_times is not None:
        raise _bad("both words and word_times are given; leave one of them out")
    words = None if given is None else words_of(given, lambda what: unused.add(what, place))
    if words is not None:
        check_words(words, duration)
    name = audio + (f"@{offset}" if offset else "") + (f"#{channel}" if channel is not None else "")
    return Utterance(
        id=_text(entry, "id", numbers=True) or name,
        source=_text(entry, "source", numbers=True) or audio,
        speaker=speaker,
        audio=_joined(root, _path(entry, "audio") or audio),
        offset=offset,
        duration=duration,
        channel=channel,
        text=_text(entry, "text"),
        words=words,
        word_times=None if word_times is None else _joined(root, word_times),
        place=place,
    )


def _speaker(entry: Mapping[str, Any]) -> tuple[str, str | None]:
    """The speaker, empty if unknown, and the key that names it."""
    given = _text(entry, "speaker", numbers=True)
    if given is not None:
        return given, "speaker"
    other = entry.get(_SPEAKER)
    if isinstance(other, str | int) and not isinstance(other, bool):
        return _text(entry, _SPEAKER, numbers=True) or "", _SPEAKER
    return "", None


def failure_of(error: EntryError, entry: Any, place: str) -> Failure:
    """The failure of an entry, under its id where it has a usable one, else under its place in the manifest."""
    name = entry.get("id") if isinstance(entry, dict) else None
    usable = isinstance(name, str) and name.strip() and _is_text(name)
    identity, detail = (str(name), f"{place}: {error.detail}") if usable else (place, error.detail)
    return Failure(identity, error.reason, detail, place)


def mistaken_key(key: str) -> str | None:
    """The key of ours that an unknown one was probably meant for."""
    return _OTHER_NAMES.get(key.lower()) or next(iter(difflib.get_close_matches(key.lower(), KEYS, 1, _NEAR)), None)


_mistaken_key = lru_cache(maxsize=1024)(mistaken_key)  # the same keys come on every line


def _refuse_near_keys(entry: Mapping[Any, Any]) -> None:
    for key in entry:
        meant = _mistaken_key(key) if isinstance(key, str) and key not in _KEY_SET else None
        if meant is not None and meant not in entry:
            raise _bad(f"the key {key!r} is not known; did you mean {meant}?")


def _text(entry: Mapping[str, Any], key: str, numbers: bool = False) -> str | None:
    """Text without blanks around it; None where it is absent, null or blank."""
    value = entry.get(key)
    if value is None:
        return None
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:d}" if abs(value) < 1 << 63 else None
    if not isinstance(value, str):
        raise _bad(f"{key} must be a string, got {entry[key]!r:.80}")
    if not _is_text(value):
        raise _bad(f"{key} holds a character that no file can have: {value!r:.80}")
    return value.strip() or None


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8, and does not end early where it is a path."""
    if "\0" in value:
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _path(entry: Mapping[str, Any], key: str) -> str | None:
    """As written: the names of files may begin or end with blanks."""
    return None if _text(entry, key) is None else str(entry[key])


def _seconds(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(f"{key} must be a number of seconds, got {value!r:.80}")
    if not 0 <= value <= _LONGEST_SECONDS or not math.isfinite(value):
        raise _bad(f"{key} must be seconds from 0 to {_LONGEST_SECONDS:g}, got {value!r:.80}")
    return float(value)


def _joined(root: str, path: str) -> str:
    return path if path.startswith("/") else os.path.join(root, path)


def _bad(detail: str) -> EntryError:
    return EntryError(Reason.MANIFEST, detail)
