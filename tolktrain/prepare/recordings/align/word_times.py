"""Given times of words: files that aligners write, and what must hold of all times.

Silence is dropped where an aligner marks it as a word; "spn" and "<unk>" denote words and are kept. Times are those of
the utterance, in seconds.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

from tolktrain.files.reading import DESCRIPTION_BYTES, bounded_lines, open_regular, parse_json, read_bytes, read_text
from tolktrain.prepare.recordings.align.textgrid import Tier, parse_textgrid
from tolktrain.prepare.utterances import EntryError, Reason, Word

TOLERANCE_SECONDS = 0.1
"""The last word may end this much after the audio."""

ALIGNMENTS_SUFFIX = ".alignment.txt"
"""Of LibriSpeech-Alignments: a line has an utterance, its words and their ends."""

_TEXTGRID_SILENCE = frozenset(("<eps>", "sil", "sp", "<sil>", "SIL"))
_CTM_SILENCE = frozenset(("<eps>", "<sil>", "sil", "SIL", "!SIL"))
_CUT_OFF_SECONDS = 0.01
_LONGEST_LINE = 1 << 22  # bytes, of CTM and .alignment.txt


def read_word_times(path: str, utterance_id: str) -> tuple[Word, ...]:
    """The words of an utterance in a TextGrid, CTM, JSON or .alignment.txt file.

    TextGrid: the interval tier named word or words (also "speaker - words"), an interval per word. CTM and
    .alignment.txt may hold many utterances; the lines are those that begin with `utterance_id` or with the name of the
    file without its suffix. JSON: a list of {word or text, start, end} or [word, start, end], or an object with such a
    list under `words` or `word_segments`, as aligners write.

    Raises `EntryError` when the file is missing or malformed, or holds nothing of the utterance. Whether the times are
    possible is checked by `check_words`.
    """
    name = path.lower()
    try:
        if name.endswith(".textgrid"):
            return _textgrid_words(path)
        if name.endswith(".ctm"):
            return _ctm_words(_lines_of(path, utterance_id, ".ctm"))
        if name.endswith(ALIGNMENTS_SUFFIX):
            return _alignment_words(_lines_of(path, utterance_id, ALIGNMENTS_SUFFIX))
        if name.endswith(".json"):
            return _json_words(path)
    except OSError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeError:
        raise EntryError(Reason.WORD_TIMES, f"{path} is not UTF-8 text") from None
    except EntryError as error:
        raise EntryError(Reason.WORD_TIMES, f"{path}: {error.detail}") from None
    raise _wrong(f"{path} has no known suffix; word times are read from .TextGrid, .ctm, .json and {ALIGNMENTS_SUFFIX}")


def check_words(words: Sequence[Word], duration: float | None) -> None:
    """Raise `EntryError` unless there are words, and their times are finite, not falling, and within the audio.

    `duration` is the audio's in seconds; None where it is not known.
    """
    if not words:
        raise _wrong("there are no words")
    before = Word("", 0.0, 0.0)
    for word in words:
        if not (math.isfinite(word.start) and math.isfinite(word.end)):
            raise _wrong(f"the times of {word.text!r} are not finite: {word.start} to {word.end}")
        if word.start < 0:
            raise _wrong(f"{word.text!r} begins before the audio, at {word.start} s")
        if word.end < word.start:
            raise _wrong(f"{word.text!r} ends before it begins: {word.start} to {word.end} s")
        if word.start < before.start or word.end < before.end:
            raise _wrong(
                f"times fall from {before.text!r} ({before.start} to {before.end} s)"
                f" to {word.text!r} ({word.start} to {word.end} s)"
            )
        before = word
    if duration is not None and before.end > duration + TOLERANCE_SECONDS:
        raise _wrong(f"{before.text!r} ends at {before.end} s, after the audio of {duration:.2f} s")


def words_of(value: Any) -> tuple[Word, ...]:
    """Words from a list of {word or text, start, end} or [word, start, end]. Raises `EntryError`."""
    if not isinstance(value, list):
        raise _wrong(f"words must be a list, got {type(value).__name__}")
    return tuple(map(_word_of, value))


def word(text: Any, start: Any, end: Any) -> Word:
    """A word whose parts may be of any type. Raises `EntryError` unless they are a text without blanks and numbers."""
    if not isinstance(text, str) or len(text.split()) != 1:
        raise _wrong(f"expected one word without blanks, got {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong(f"{text!r:.80} is not text: half of a surrogate pair") from None
    return Word(text.strip(), _seconds(start, text), _seconds(end, text))


def _word_of(item: Any) -> Word:
    if isinstance(item, dict):
        text = item.get("word", item.get("text"))
        if "start" not in item or "end" not in item:
            raise _wrong(f"the word {text!r:.80} has no times; the aligner did not find it")
        return word(text, item["start"], item["end"])
    if isinstance(item, list) and len(item) == 3:
        return word(*item)
    raise _wrong(f"expected {{word, start, end}} or [word, start, end], got {item!r:.80}")


def _seconds(value: Any, text: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(f"the times of {text!r:.80} must be numbers, got {value!r:.80}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise _wrong(f"the times of {text!r:.80} must be finite, got {value!r:.80}")
    return seconds


def _number(text: str, of: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _wrong(f"the times of {of!r:.80} must be numbers, got {text!r:.80}") from None
    return _seconds(value, of)


def _wrong(detail: str) -> EntryError:
    return EntryError(Reason.WORD_TIMES, detail)


def _textgrid_words(path: str) -> tuple[Word, ...]:
    content = read_bytes(path)
    try:
        found = parse_textgrid(content)
    except ValueError as error:
        raise _wrong(f"it is not a TextGrid ({error})") from None
    tiers: dict[str, Tier] = {}
    for tier in found:
        tiers.setdefault(tier.name, tier)
    named = [name for name in tiers if name.lower() in ("word", "words")]
    named = named or [name for name in tiers if name.lower().endswith(" - words")]
    if len(named) != 1 or not tiers[named[0]].has_intervals:
        names = ", ".join(map(repr, tiers)) or "none"
        raise _wrong(f"expected one interval tier named words; found the tiers {names:.200}")
    tier = tiers[named[0]]
    # Praat's intervals fill a tier to its end.
    if not tier.intervals or tier.intervals[-1][1] < tier.end - _CUT_OFF_SECONDS:
        raise _wrong("the words end before their tier does; the file is cut off")
    labelled = ((label.strip(), start, end) for start, end, label in tier.intervals)
    return tuple(word(label, start, end) for label, start, end in labelled if label and label not in _TEXTGRID_SILENCE)


def _lines_of(path: str, utterance_id: str, suffix: str) -> list[str]:
    """The lines of an utterance in a file that may hold many."""
    status = os.stat(path)
    places = _index(path, status.st_mtime_ns, status.st_size)
    own_name = os.path.basename(path)[: -len(suffix)]
    found = places.get(utterance_id.encode()) or places.get(own_name.encode("utf-8", "surrogateescape"))
    if found is None:
        raise _wrong(f"it has no line of {utterance_id}")
    lines = []
    if sum(end - begin for begin, end in found) > DESCRIPTION_BYTES:
        raise _wrong(f"the lines of {utterance_id!r:.80} have more than {DESCRIPTION_BYTES} bytes")
    with open_regular(path) as file:
        for begin, end in found:
            file.seek(begin)
            lines += file.read(end - begin).decode().split("\n")
    return [line for line in lines if line.strip()]


def _own_lines(file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from bounded_lines(file, _LONGEST_LINE)
    except ValueError as error:
        raise _wrong(str(error)) from None


@lru_cache(maxsize=2)
def _index(path: str, modified: int, size: int) -> dict[bytes, list[tuple[int, int]]]:
    """Where the lines of each utterance are: such a file may cover a whole corpus, and each utterance looks into it."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    position = 0
    with open_regular(path) as file:
        for line in _own_lines(file):
            begin, position = position, position + len(line)
            columns = line.split(None, 1)
            if not columns or columns[0].startswith(b";;"):
                continue
            spans = places.setdefault(columns[0], [])
            if spans and spans[-1][1] == begin:
                spans[-1] = (spans[-1][0], position)
            else:
                spans.append((begin, position))
    return places


def _ctm_words(lines: Iterable[str]) -> tuple[Word, ...]:
    """Columns: utterance, channel, start, duration, word, and perhaps a confidence."""
    words = []
    for line in lines:
        columns = line.split()
        if len(columns) not in (5, 6):
            raise _wrong(f"expected utterance, channel, start, duration and word, got {line.strip()!r:.80}")
        text = columns[4]
        if text in _CTM_SILENCE:
            continue
        start, duration = _number(columns[2], text), _number(columns[3], text)
        if duration < 0:
            raise _wrong(f"{text!r} lasts {duration} s")
        words.append(word(text, start, round(start + duration, 9)))
    return tuple(words)


def _alignment_words(lines: Iterable[str]) -> tuple[Word, ...]:
    """`utterance ",GO,,DO" "0.490,0.890,1.270,1.300"`: words and ends; a word without letters is silence."""
    lines = list(lines)
    columns = lines[0].split()
    if len(lines) != 1 or len(columns) != 3:
        raise _wrong(f"expected one line with the utterance, its words and their ends, got {lines[0].strip()!r:.80}")
    texts, ends = (column.strip('"').split(",") for column in columns[1:])
    if len(texts) != len(ends):
        raise _wrong(f"{columns[0]} has {len(texts)} words and {len(ends)} times")
    times = [0.0, *(_number(end, text) for end, text in zip(ends, texts, strict=True))]
    return tuple(word(text, *times[i : i + 2]) for i, text in enumerate(texts) if text)


def _json_words(path: str) -> tuple[Word, ...]:
    text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _wrong(f"it is not JSON ({error})") from None
    if not isinstance(content, dict):
        return words_of(content)
    for key in ("words", "word_segments"):
        if key in content:
            return words_of(content[key])
    if isinstance(content.get("segments"), list):
        segments = content["segments"]
        if all(isinstance(segment, dict) and isinstance(segment.get("words"), list) for segment in segments):
            return words_of([item for segment in segments for item in segment["words"]])
    found = ", ".join(map(repr, content)) or "nothing"
    raise _wrong(f"expected a list of words, or an object with words; found {found:.80}")
