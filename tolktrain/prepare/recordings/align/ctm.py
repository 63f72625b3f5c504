"""CTM files, as NIST defines them and Kaldi, NeMo and Lhotse write them.

A line has utterance, channel, start, duration and word, and perhaps confidence, type and speaker. Lines that begin with
";;" are comments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tolktrain.prepare.recordings.align.word import number, word, wrong
from tolktrain.prepare.utterances import EntryError, Word

_SILENCE = frozenset(("<eps>", "<sil>", "sil", "SIL", "!SIL"))
_ABSENT = frozenset(("NA", "N/A", "<NA>", "-", "*", "null", "unknown"))
_MARKS = ("<ALT_BEGIN>", "<ALT>", "<ALT_END>")
_NULL_WORD = "@"  # of an alternative in which nothing is said


@dataclass(frozen=True)
class CtmLines:
    """The lines of an utterance or a recording in a CTM file."""

    lines: Sequence[tuple[int, str]]  # with their numbers in the file
    of_utterance: bool  # found by the id of the utterance, not by the name of the file
    channels: frozenset[str]  # of all lines of the file


@dataclass(frozen=True)
class _Row:
    number: int  # of the line
    channel: str
    start: str
    duration: str
    text: str
    confidence: str | None
    speaker: str | None


def ctm_words(found: CtmLines, channel: int | None, speaker: str, note: Callable[[str], None]) -> tuple[Word, ...]:
    """The words of one channel, and of one speaker where the file names several.

    Args:
        found: the lines.
        channel: of the utterance, counted from 0: 0 is written as 1 or A, or as 0 in a file that has a channel 0. None
            if the utterance is not one of several channels.
        speaker: of the utterance; empty if unknown.
        note: called with the name of each column that is not used.

    Raises `EntryError` that names the line, or the channels or speakers between which the utterance does not choose.
    """
    rows = [_row(place, line) for place, line in found.lines]
    rows = _of_channel(rows, found, channel, speaker, note)
    rows = _of_speaker(rows, speaker, note)
    if any(row.confidence is not None for row in rows):
        note("confidence (column 6 of .ctm)")
    if any(row.speaker is not None for row in rows):
        note("type of the word (column 7 of .ctm)")
    return tuple(_word(row) for row in _first_alternatives(rows, note) if row.text not in _SILENCE)


def _row(place: int, line: str) -> _Row:
    columns = line.split()
    if not 5 <= len(columns) <= 8:
        raise wrong(
            f"line {place}: expected utterance, channel, start, duration and word, and perhaps confidence, type and"
            f" speaker; got {line.strip()!r:.80}"
        )
    _, channel, start, duration, text, *others = columns
    confidence, _, speaker = [*others, None, None, None][:3]
    if confidence is not None and confidence not in _ABSENT:
        try:
            float(confidence)
        except ValueError:
            raise wrong(
                f"line {place}: the confidence must be a number or NA, got {confidence!r:.80}; a word has no blanks"
            ) from None
    return _Row(place, channel, start, duration, text, confidence, "" if speaker in _ABSENT else speaker)


def _of_channel(
    rows: list[_Row], found: CtmLines, channel: int | None, speaker: str, note: Callable[[str], None]
) -> list[_Row]:
    names = list(dict.fromkeys(row.channel for row in rows))
    if channel is None:
        if len(names) == 1:
            return rows
        if speaker in names:
            return [row for row in rows if row.channel == speaker]
        raise wrong(
            f"it has the channels {_listed(names)}; give each channel an entry with its key channel, 0 for the"
            " first, 1 for the second"
        )
    denoting = {str(channel if "0" in found.channels else channel + 1), *(chr(ord(a) + channel) for a in "Aa")}
    chosen = [row for row in rows if row.channel in denoting]
    if chosen:
        return chosen
    if found.of_utterance and len(found.channels) == 1 and names[0] in ("0", "1"):
        # Kaldi writes 1 whatever the channel is, because its utterances already are of one.
        note(f"channel (column 2 of .ctm), which is {names[0]} in all lines")
        return rows
    raise wrong(
        f"it has the channels {_listed(names)}, none of which is the utterance's channel {channel}, written as"
        f" {_listed(sorted(denoting))}; correct column 2, or the key channel of the entry"
    )


def _of_speaker(rows: list[_Row], speaker: str, note: Callable[[str], None]) -> list[_Row]:
    names = list(dict.fromkeys(row.speaker for row in rows if row.speaker))
    if not names or names == [speaker]:
        return rows
    if speaker in names:
        return [row for row in rows if row.speaker == speaker]
    if speaker and len(names) > 1:
        raise wrong(
            f"it has words of the speakers {_listed(names)}, and none of the utterance's speaker {speaker!r:.80}"
        )
    note("speaker (column 8 of .ctm)")
    return rows


def _first_alternatives(rows: Sequence[_Row], note: Callable[[str], None]) -> list[_Row]:
    """Without the marks of alternatives, and of these only the first."""
    result = []
    begin: _Row | None = None
    is_first = True
    for row in rows:
        if row.text in _MARKS:
            if (row.text == _MARKS[0]) != (begin is None):
                raise wrong(f"line {row.number}: {row.text} is out of place")
            begin = None if row.text == _MARKS[2] else row
            is_first = row.text != _MARKS[1]
        elif not is_first:
            note("alternatives after the first in .ctm")
        elif begin is None or row.text != _NULL_WORD:
            result.append(row)
    if begin is not None:
        raise wrong(f"line {begin.number}: alternatives begin that do not end")
    return result


def _word(row: _Row) -> Word:
    try:
        start, duration = number(row.start, row.text), number(row.duration, row.text)
        if duration < 0:
            raise wrong(f"{row.text!r} lasts {duration} s")
        return word(row.text, start, round(start + duration, 9))
    except EntryError as error:
        raise wrong(f"line {row.number}: {error.detail}") from None


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names):.200}"
