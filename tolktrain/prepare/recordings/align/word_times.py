"""Given times of words: files that aligners write, and what must hold of all times.

Silence is dropped where an aligner marks it as a word; "spn" and "<unk>" denote words and are kept. Times are those of
the utterance, in seconds.
"""

import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO

from tolktrain.files.reading import (
    DESCRIPTION_BYTES,
    UTF_16_MARKS,
    RepeatedKeyError,
    bounded_lines,
    decode_text,
    open_regular,
    parse_json,
    read_bytes,
)
from tolktrain.prepare.recordings.align.ctm import CtmLines, ctm_words
from tolktrain.prepare.recordings.align.textgrid import parse_textgrid
from tolktrain.prepare.recordings.align.word import number, word, wrong
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Reason, Word

_OVERLAP_SECONDS = 0.1  # more than aligners make neighbouring words overlap
TOLERANCE_SECONDS = 0.1
"""The last word may end this much after the audio."""

ALIGNMENTS_SUFFIX = ".alignment.txt"
"""Of LibriSpeech-Alignments: a line has an utterance, its words and their ends."""

_TEXTGRID_SILENCE = frozenset(("<eps>", "sil", "sp", "<sil>", "SIL"))
_CUT_OFF_SECONDS = 0.01
_LONGEST_LINE = 1 << 22  # bytes, of CTM and .alignment.txt
_MOST_CHANNELS = 64
_MOST_SHOWN = 3  # ids of a file, in a message
_UTF_8_MARK = b"\xef\xbb\xbf"
_WORD_LISTS = ("words", "word_segments")  # keys of JSON files
_RECOGNIZED_LISTS = ("result", "chunks")  # likewise, of Vosk and transformers
_USED_KEYS = frozenset((*_WORD_LISTS, "segments", "tiers"))
# An object with `words` is what a recognizer heard if it has some of the first and none of the second keys.
_OF_RECOGNIZERS = frozenset(("task", "language", "segments", "word_segments"))
_OF_DESCRIPTIONS = frozenset(("id", "offset", "speaker", "source", "channel"))
_WORD_KEYS = frozenset(("word", "text", "start", "end"))


@dataclass(frozen=True)
class Named:
    """Audio that lines of a CTM file may be named after."""

    audio: str  # path
    offset: float = 0.0  # of the utterance in the audio, in seconds
    namesake: str | None = None  # other audio of the same name, with the same CTM file


def read_word_times(
    path: str,
    utterance_id: str,
    channel: int | None = None,
    speaker: str = "",
    unused: Unused | None = None,
    named: Named | None = None,
) -> tuple[Word, ...]:
    """The words of an utterance in a TextGrid, CTM, JSON or .alignment.txt file.

    TextGrid: the interval tier named word or words (also "speaker - words"), an interval per word. CTM and
    .alignment.txt may hold many utterances; the lines are those that begin with `utterance_id`, or else with the name
    of the file without its suffix or, in CTM, with the name or path of the audio `named`, with or without its suffix.
    JSON: a list of {word or text, start, end} or [word, start, end], or an object with such a list under `words` or
    `word_segments`, or in its `segments`, as aligners write, or tiers as the Montreal Forced Aligner does. `channel`
    and `speaker` choose among those of the file. What is not used is counted in `unused`.

    Raises `EntryError` when the file is missing or malformed, or holds nothing of the utterance, or of several channels
    or speakers of which none is the utterance's. Whether the times are possible is checked by `check_words`.
    """
    name = path.lower()
    noted = Unused() if unused is None else unused

    def note(what: str) -> None:
        noted.add(what, path)

    try:
        if name.endswith(".textgrid"):
            return _textgrid_words(path, speaker, note)
        if name.endswith(".ctm"):
            return ctm_words(_lines_of(path, utterance_id, ".ctm", named), channel, speaker, note)
        if name.endswith(ALIGNMENTS_SUFFIX):
            return _alignment_words(_lines_of(path, utterance_id, ALIGNMENTS_SUFFIX).lines)
        if name.endswith(".json"):
            return _json_words(path, speaker, note)
    except OSError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path} {error}") from None
    except EntryError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path}: {error.detail}") from None
    raise wrong(f"{path} has no known suffix; word times are read from .TextGrid, .ctm, .json and {ALIGNMENTS_SUFFIX}")


def check_words(words: Sequence[Word], duration: float | None) -> None:
    """Raise `EntryError` unless there are words, and their times are finite, not falling, and within the audio.

    If most words begin well before the end of the word before them, what is called the end is something else.

    `duration` is the audio's in seconds; None where it is not known.
    """
    if not words:
        raise wrong("there are no words")
    before = Word("", 0.0, 0.0)
    overlapping: list[Word] = []
    for item in words:
        if not (math.isfinite(item.start) and math.isfinite(item.end)):
            raise wrong(f"the times of {item.text!r} are not finite: {item.start} to {item.end}")
        if item.start < 0:
            raise wrong(f"{item.text!r} begins before the audio, at {item.start} s")
        if item.end < item.start:
            raise wrong(f"{item.text!r} ends before it begins: {item.start} to {item.end} s")
        if item.start < before.start or item.end < before.end:
            raise wrong(
                f"times fall from {before.text!r} ({before.start} to {before.end} s)"
                f" to {item.text!r} ({item.start} to {item.end} s); words must be in the order of their times"
            )
        if before.start < item.start < before.end - _OVERLAP_SECONDS:  # the same start for all words means none
            overlapping.append(item)
        before = item
    if len(words) > 2 and 2 * len(overlapping) > len(words) - 1:
        raise wrong(
            f"{len(overlapping)} of {len(words)} words begin before the word before them ends, the first is"
            f" {overlapping[0].text!r} at {overlapping[0].start} s; a CTM file has durations in column 4, and other"
            " formats have the start and the end of each word"
        )
    if duration is not None and before.end > duration + TOLERANCE_SECONDS:
        raise wrong(
            f"{before.text!r} ends at {before.end} s, after the audio of {duration:.2f} s; times must be in seconds"
            " from the start of the utterance, and a CTM file has durations in column 4, not ends"
        )


def words_of(value: Any, note: Callable[[str], None]) -> tuple[Word, ...]:
    """Words from a list of {word or text, start, end} or [word, start, end]. Raises `EntryError`.

    `note` is called with each kind of key that is not used.
    """
    if not isinstance(value, list):
        raise wrong(f"words must be a list, got {type(value).__name__}")
    words = tuple(map(_word_of, value))
    others = dict.fromkeys(key for item in value if isinstance(item, dict) for key in item if key not in _WORD_KEYS)
    for key in others:
        if key != "timestamp" or any("start" in item for item in value if isinstance(item, dict)):
            note(f"the key {key!r:.80} of words")
    return words


def is_word_times(value: Any) -> bool:
    """Whether the content of a JSON file is what an aligner such as WhisperX writes."""
    if isinstance(value, list):
        return _is_list_of_words(value)
    if not isinstance(value, dict) or "word_times" in value:
        return False
    if "words" in value:
        return bool(value.keys() & _OF_RECOGNIZERS) and not value.keys() & _OF_DESCRIPTIONS
    segments = value.get("segments")
    return (
        isinstance(value.get("word_segments"), list)
        or any(_is_list_of_words(value.get(key)) for key in _RECOGNIZED_LISTS)
        or (isinstance(segments, list) and all(isinstance(segment, dict) for segment in segments))
        or _json_tiers(value) is not None
    )


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_timed_word, value))


def _is_timed_word(item: Any) -> bool:
    if isinstance(item, dict):
        return bool(item.keys() & {"word", "text"})
    return isinstance(item, list) and len(item) == 3 and isinstance(item[0], str)


def _word_of(item: Any) -> Word:
    if isinstance(item, dict):
        text, times = item.get("word", item.get("text")), item.get("timestamp")
        if isinstance(times, list) and len(times) == 2 and not item.keys() & {"start", "end"}:
            return word(text, *times)  # of transformers
        if "start" not in item or "end" not in item:
            others = [key for key in item if key not in _WORD_KEYS and isinstance(key, str)]
            raise wrong(
                f"the word {text!r:.80} has no times; the aligner did not find it"
                + f", or they are in other keys than start and end: {', '.join(others):.80}" * bool(others)
            )
        return word(text, item["start"], item["end"])
    if isinstance(item, list) and len(item) == 3:
        return word(*item)
    raise wrong(f"expected {{word, start, end}} or [word, start, end], got {item!r:.80}")


def _textgrid_words(path: str, speaker: str, note: Callable[[str], None]) -> tuple[Word, ...]:
    content = read_bytes(path)
    try:
        found = parse_textgrid(content)
    except UnicodeError as error:
        raise wrong(f"it is not a TextGrid in UTF-8 or UTF-16: it {error}") from None
    except ValueError as error:
        raise wrong(f"it is not a TextGrid, or is damaged: {error}") from None
    tier = found[_word_tier([tier.name for tier in found], speaker, note)]
    if not tier.has_intervals:
        raise wrong(f"the tier {tier.name!r:.80} has points; words need intervals")
    # Praat's intervals fill a tier to its end.
    if not tier.intervals or tier.intervals[-1][1] < tier.end - _CUT_OFF_SECONDS:
        end = tier.intervals[-1][1] if tier.intervals else 0.0
        raise wrong(
            f"the intervals end at {end:g} s, before their tier does at {tier.end:g} s; the file is cut off, or silence"
            ' at the end was left out: write it as an interval with the text ""'
        )
    return _interval_words(tier.intervals)


def _word_tier(names: Sequence[str], speaker: str, note: Callable[[str], None]) -> int:
    """Which of the tiers holds the words: word or words, or "speaker - words"."""
    chosen = [place for place, name in enumerate(names) if name.lower() in ("word", "words")]
    of_speakers = [place for place, name in enumerate(names) if name.lower().endswith(" - words")]
    own = [place for place in of_speakers if names[place][: -len(" - words")] == speaker]
    chosen = chosen or (own if len(of_speakers) > 1 else of_speakers)
    if len(chosen) != 1:
        several = "; the utterance's speaker chooses among tiers of several" if len(of_speakers) > 1 else ""
        shown = ", ".join(map(repr, names)) or "none"
        raise wrong(f"expected one interval tier named words; found the tiers {shown:.200}{several}")
    for place, name in enumerate(names):
        if place != chosen[0]:
            kind = name.rpartition(" - ")[2]  # of speakers there may be any number
            note(f"tiers {kind!r:.80}")
    return chosen[0]


def _interval_words(intervals: Iterable[tuple[float, float, str]]) -> tuple[Word, ...]:
    labelled = ((label.strip(), start, end) for start, end, label in intervals)
    return tuple(word(label, start, end) for label, start, end in labelled if label and label not in _TEXTGRID_SILENCE)


@dataclass(frozen=True)
class _Index:
    """Where the lines of each utterance are in a file that may cover a whole corpus."""

    places: dict[bytes, list[tuple[int, int, int]]]  # begin and end in bytes, number of the first line
    channels: frozenset[str]  # second columns of the file, as far as they are few


def _lines_of(path: str, utterance_id: str, suffix: str, named: Named | None = None) -> CtmLines:
    """The lines of an utterance in a file that may hold many."""
    status = os.stat(path)
    index = _index(path, status.st_mtime_ns, status.st_size)
    found = _places_of(index, utterance_id)
    of_utterance = found is not None
    found = found or _places_by_name(index, os.path.basename(path)[: -len(suffix)], named, utterance_id)
    if found is None:
        ids = [name.decode(errors="replace") for name in islice(index.places, _MOST_SHOWN)]
        others = f"; its lines begin with {', '.join(map(repr, ids)):.200}" if ids else "; it is empty"
        raise wrong(f"it has no line of {utterance_id}, the id of the utterance{others}")
    lines: list[tuple[int, str]] = []
    if sum(end - begin for begin, end, _ in found) > DESCRIPTION_BYTES:
        raise wrong(f"the lines of {utterance_id!r:.80} have more than {DESCRIPTION_BYTES} bytes")
    with open_regular(path) as file:
        for begin, end, first in found:
            file.seek(begin)
            content = file.read(end - begin)
            try:
                lines += enumerate(content.decode().split("\n"), first)
            except UnicodeDecodeError as error:
                place = first + content.count(b"\n", 0, error.start)
                raise wrong(f"line {place} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    return CtmLines([(place, line) for place, line in lines if line.strip()], of_utterance, index.channels)


def _places_by_name(
    index: _Index, file_name: str, named: Named | None, utterance_id: str
) -> list[tuple[int, int, int]] | None:
    """Lines that begin with the name of the file or of the audio."""
    parts = os.path.normpath(named.audio).split("/") if named is not None else []
    paths = ["/".join(parts[place:]) for place in range(len(parts))]
    audio_names = [name for path in paths for name in (path, os.path.splitext(path)[0])]
    found = {name: places for name in (file_name, *audio_names) if (places := _places_of(index, name)) is not None}
    if not found:
        return None
    if len({places[0] for places in found.values()}) > 1:
        raise wrong(
            f"it has no line of {utterance_id}, the id of the utterance, but lines of"
            f" {' and of '.join(map(repr, found)):.200}, which may all be meant; write the id in column 1"
        )
    name = next(iter(found))
    if named is not None and name != file_name:
        if named.offset:
            raise wrong(
                f"its lines are of {name!r:.80}, the audio, of which the utterance begins at {named.offset:g} s; times"
                f" are counted from the beginning of the utterance: write them so, with the id {utterance_id!r:.80} in"
                " column 1"
            )
        if named.namesake is not None and "/" not in name:
            raise wrong(
                f"its lines of {name!r:.80} may be of {named.audio} or of {named.namesake}; write the id of the"
                f" utterance, {utterance_id!r:.80}, in column 1"
            )
    return found[name]


def _places_of(index: _Index, name: str) -> list[tuple[int, int, int]] | None:
    """An accent may be written within its letter or after it, and differently in the names of files."""
    forms = dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))))
    keys = (form.encode("utf-8", "surrogateescape") for form in forms)
    return next((index.places[key] for key in keys if key in index.places), None)


def _own_lines(file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from bounded_lines(file, _LONGEST_LINE)
    except ValueError as error:
        raise wrong(str(error)) from None


@lru_cache(maxsize=2)
def _index(path: str, modified: int, size: int) -> _Index:
    """The index of a file, kept because each of its utterances looks into it."""
    places: dict[bytes, list[tuple[int, int, int]]] = {}
    channels: set[str] = set()
    position = 0
    with open_regular(path) as file:
        for place, line in enumerate(_own_lines(file), 1):
            begin, position = position, position + len(line)
            if place == 1 and line.startswith(UTF_16_MARKS):
                raise UnicodeError("is UTF-16 text, not UTF-8; save it as UTF-8")
            if place == 1 and line.startswith(_UTF_8_MARK):
                begin, line = begin + len(_UTF_8_MARK), line.removeprefix(_UTF_8_MARK)
            columns = line.split(None, 2)
            if not columns or columns[0].startswith(b";;"):
                continue
            if len(columns) > 1 and len(channels) < _MOST_CHANNELS:
                channels.add(columns[1].decode(errors="replace"))
            spans = places.setdefault(columns[0], [])
            if spans and spans[-1][1] == begin:
                spans[-1] = (spans[-1][0], position, spans[-1][2])
            else:
                spans.append((begin, position, place))
    return _Index(places, frozenset(channels))


def _alignment_words(numbered: Sequence[tuple[int, str]]) -> tuple[Word, ...]:
    """`utterance ",GO,,DO" "0.490,0.890,1.270,1.300"`: words and ends; a word without letters is silence."""
    place, line = numbered[-1]
    columns = line.split()
    if len(numbered) != 1 or len(columns) != 3:
        raise wrong(
            f"line {place}: expected one line with the utterance, its words and their ends, got {line.strip()!r:.80}"
        )
    texts, ends = (column.strip('"').split(",") for column in columns[1:])
    if len(texts) != len(ends):
        raise wrong(f"line {place}: {columns[0]} has {len(texts)} words and {len(ends)} times")
    times = [0.0, *(number(end, text) for end, text in zip(ends, texts, strict=True))]
    return tuple(word(text, *times[i : i + 2]) for i, text in enumerate(texts) if text)


def _json_words(path: str, speaker: str, note: Callable[[str], None]) -> tuple[Word, ...]:
    text = decode_text(read_bytes(path))
    try:
        content = parse_json(text)
    except RepeatedKeyError as error:
        raise wrong(str(error)) from None
    except ValueError as error:
        raise wrong(f"it is not JSON ({error})") from None
    if not isinstance(content, dict):
        return words_of(content, note)
    others = () if content.keys() & _USED_KEYS else _RECOGNIZED_LISTS
    recognized = [key for key in others if _is_list_of_words(content.get(key))][:1]
    for key in content:
        if key not in _USED_KEYS and key not in recognized:
            note(f"the key {key!r:.80} in .json")
    listed = _listed_words(content, recognized, note)
    if listed is not None:
        return listed
    tiers = _json_tiers(content)
    if tiers is not None:
        names = list(tiers)
        entries = tiers[names[_word_tier(names, speaker, note)]]["entries"]
        if not all(isinstance(item, list) and len(item) == 3 and isinstance(item[2], str) for item in entries):
            raise wrong("the entries of the tier of words must be [start, end, word]")
        return _interval_words(entries)
    found = ", ".join(map(repr, content)) or "nothing"
    raise wrong(f"expected a list of words, or an object with words; found {found:.80}")


def _listed_words(
    content: dict[str, Any], recognized: Sequence[str], note: Callable[[str], None]
) -> tuple[Word, ...] | None:
    """The words of an object that lists them once or, as WhisperX does, twice; None if it does not list them."""
    found = {key: words_of(content[key], note) for key in (*_WORD_LISTS, *recognized) if key in content}
    segments = content.get("segments")
    if isinstance(segments, list) and segments:
        if found and not any(isinstance(one, dict) and one.get("words") for one in segments):
            note("segments without words in .json")
        else:
            found["segments"] = words_of(_segment_words(segments, note), note)
    if len(set(found.values())) > 1:
        raise wrong(f"it lists words in {' and in '.join(found)}, which differ; leave all but one of them out")
    return next(iter(found.values()), None)


def _segment_words(segments: list[Any], note: Callable[[str], None]) -> list[Any]:
    words: list[Any] = []
    for place, segment in enumerate(segments, 1):
        if not isinstance(segment, dict) or not isinstance(segment.get("words"), list):
            raise wrong(f"segment {place} has no list of words; let an aligner or the recognizer write word times")
        text = segment.get("text")
        if not segment["words"] and isinstance(text, str) and text.strip():
            raise wrong(
                f"segment {place} has the text {text.strip()[:40]!r} and no words; the aligner did not find them"
            )
        words += segment["words"]
    for key in dict.fromkeys(key for segment in segments for key in segment if key != "words"):
        note(f"the key {key!r:.80} of segments")
    return words


def _json_tiers(content: dict[str, Any]) -> dict[str, Any] | None:
    """The tiers that the Montreal Forced Aligner writes, each with `entries` of [start, end, label]."""
    tiers = content.get("tiers")
    if not isinstance(tiers, dict) or not tiers:
        return None
    return (
        tiers if all(isinstance(one, dict) and isinstance(one.get("entries"), list) for one in tiers.values()) else None
    )
