"""Given times of words, brought to the words of the text as it is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tolktrain.prepare.recordings.align.cutting import Part, cut_verbatim, merged
from tolktrain.prepare.recordings.align.english import combined
from tolktrain.prepare.recordings.align.normalize import Written, letters, spoken_words, verbatim
from tolktrain.prepare.recordings.align.scripts import blank_between, is_unspaced
from tolktrain.prepare.recordings.align.word_times import check_words
from tolktrain.prepare.utterances import Aligned, EntryError, Reason, Word

# How aligners write a word they do not know, and silence.
_UNKNOWN = frozenset({"<unk>", "[unk]", "<UNK>", "[UNK]", "<spn>", "spn", "<SPOKEN_NOISE>"})
_STATES_PER_WORD = 300  # of a comparison: readings of numbers branch, and doubtful silences multiply
_SILENCE = frozenset({"<eps>", "<sil>", "sil", "sp", "SIL", "<SIL>", "{SL}"})


def align_given(text: str | None, words: Sequence[Word], language: str) -> Aligned:
    """The end of each written word, as given: no time is changed or made up.

    Without a text the given words are the text, without blanks between them in scripts that have none. Otherwise both
    are compared as they are spoken, letter by letter, so that "$3.50" is met by "THREE DOLLARS FIFTY CENTS" and
    "well-known" by "WELL KNOWN"; an unknown word (<unk>, spn) matches any one written word. A written word ends with
    the last given word that holds a letter of it; one that is not spoken ends with the word before it. What is written
    without blanks in a script that has none, as Chinese and Thai, is cut into words where the given words end.

    Raises `EntryError` if there are no words, times fall, or text and given words differ.
    """
    check_words(words, None)
    if text is None:
        return _as_text([word for word in words if word.text not in _SILENCE])
    written = spoken_words(text, language)
    if not written:
        raise EntryError(Reason.TEXT, "the text is empty")
    if not any(word.spoken for word in written):
        raise EntryError(Reason.TEXT, f"nothing of the text {text.strip()[:40]!r} is spoken")
    heard = [word.text if word.text not in _SILENCE else "" for word in words]
    parts = cut_verbatim(written, heard) if any(map(is_unspaced, text)) else None
    if parts is None:
        places = _match(written, words, language)
        parts = [Part(word.text, word.spaced, place) for word, place in zip(written, places, strict=True)]
    parts = merged(parts)
    ends = [words[part.place].end if part.place is not None else 0.0 for part in parts]
    return Aligned(
        tuple(part.text for part in parts), np.array(ends, np.float64), spaced=tuple(part.spaced for part in parts)
    )


def _as_text(words: Sequence[Word]) -> Aligned:
    if not words:
        raise EntryError(Reason.WORD_TIMES, "there are no words")
    for number, word in enumerate(words, 1):
        if word.text in _UNKNOWN or not word.text.strip():
            raise EntryError(Reason.WORD_TIMES, f"word {number} is {word.text!r}, which is not in the text")
    texts = ["", *(word.text for word in words)]
    spaced = tuple(blank_between(before, after) for before, after in pairwise(texts))
    return Aligned(tuple(texts[1:]), np.array([word.end for word in words], np.float64), spaced=spaced)


@dataclass(frozen=True)
class _State:
    """State of a comparison: words begun on both sides, and the letters that only one side has."""

    written: int
    given: int
    rest: str = ""
    rest_is_given: bool = False


@dataclass(frozen=True)
class _Step:
    """How a state was reached."""

    before: _State | None
    last: int | None  # the last given word that has met letters


def _match(written: Sequence[Written], words: Sequence[Word], language: str) -> list[int | None]:
    """For each written word the given word that it ends with; None before the first. Depth first, nothing twice."""
    ours = [_letters_of(word) for word in written]
    theirs = [_given_letters(word.text, language) for word in words]
    glued = [not word.spaced for word in written]
    start = _State(0, 0)
    steps = {start: _Step(None, None)}
    open_states = [start]
    farthest = start
    most_states = _STATES_PER_WORD * (len(ours) + len(theirs)) + _STATES_PER_WORD**2
    while open_states:
        if len(steps) > most_states:
            raise EntryError(
                Reason.WORD_TIMES, f"no way to match it was found: {_difference(farthest, steps, written, words)}"
            )
        state = open_states.pop()
        if (state.written, state.given) > (farthest.written, farthest.given):
            farthest = state
        if state.written == len(ours) and state.given == len(theirs) and not state.rest:
            return _ends(state, steps, ours)
        # The likeliest is taken from the end of the list.
        for following, met in reversed(list(_following(state, ours, theirs, glued))):
            if following not in steps:
                steps[following] = _Step(state, following.given - 1 if met else steps[state].last)
                open_states.append(following)
    raise EntryError(Reason.WORD_TIMES, _difference(farthest, steps, written, words))


def _letters_of(word: Written) -> tuple[str, ...]:
    """Readings of a written word as letters; the last is the word as it is, which a given word may repeat."""
    return tuple(dict.fromkeys([*map(letters, word.readings), *([verbatim(word.text)] if word.spoken else [])]))


def _given_letters(text: str, language: str) -> tuple[str, ...]:
    """Readings of a given word as letters; none for an unknown word."""
    if text in _UNKNOWN:
        return ()
    parts = [tuple((reading,) for reading in _letters_of(word)) for word in spoken_words(text, language)]
    readings = ["".join(reading) for reading in combined(*parts)] if parts else []
    return tuple(dict.fromkeys([*readings, *([""] if text in _SILENCE or not readings else [])]))


def _following(
    state: _State, ours: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]], glued: Sequence[bool]
) -> Iterator[tuple[_State, bool]]:
    """States after one more word of the side with fewer letters, and whether a given word has met letters by it."""
    written, given, rest = state.written, state.given, state.rest
    if rest and not state.rest_is_given:
        if given < len(theirs):
            for reading in theirs[given]:
                if rest.startswith(reading):
                    yield _State(written, given + 1, rest[len(reading) :]), bool(reading)
                elif reading.startswith(rest):
                    yield _State(written, given + 1, reading[len(rest) :], True), True
        return
    if rest:
        if written < len(ours):
            for reading in ours[written]:
                if rest.startswith(reading):
                    yield _State(written + 1, given, rest[len(reading) :], len(rest) > len(reading)), False
                elif reading.startswith(rest):
                    yield _State(written + 1, given, reading[len(rest) :]), False
        return
    if written < len(ours):
        for reading in ours[written]:
            yield _State(written + 1, given, reading), False
    if written < len(ours) and given and not theirs[given - 1] and glued[written]:
        yield _State(written + 1, given), False  # an unknown word of several characters
    if given < len(theirs):
        if not theirs[given] and written < len(ours):
            yield _State(written + 1, given + 1), True
        if "" in theirs[given]:
            yield _State(written, given + 1), False


def _ends(last: _State, steps: dict[_State, _Step], ours: Sequence[tuple[str, ...]]) -> list[int | None]:
    ends: list[int | None] = [None] * len(ours)
    state: _State | None = last
    while state is not None:
        step = steps[state]
        if state.written and (not state.rest or state.rest_is_given):
            ends[state.written - 1] = step.last
        state = step.before
    return ends


def _difference(farthest: _State, steps: dict[_State, _Step], written: Sequence[Written], words: Sequence[Word]) -> str:
    """The words of the text and of the times after the last place where both sides end a word."""
    place = farthest.written - 1 if farthest.rest and not farthest.rest_is_given else farthest.written
    given = farthest.given - 1 if farthest.rest and farthest.rest_is_given else farthest.given
    begin = farthest
    while begin.rest and (before := steps[begin].before) is not None:
        begin = before
    ours = "".join(" " * word.spaced + word.text for word in written[begin.written : place + 1]).strip()
    theirs = " ".join(word.text for word in words[begin.given : given + 1])
    number = min(begin.written + 1, len(written))
    return f"the text has {_shown(ours)} where the times have {_shown(theirs)} (word {number} of the text)"


def _shown(text: str) -> str:
    return f"{text!r:.80}" if text else "no more words"
