"""TextGrid files of Praat, long or short, in time and memory that grow with their size.

Praat reads free values - numbers, text in quotes, flags such as <exists> - and takes all else for comments. The
long form differs from the short one by such comments alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tolktrain.files.reading import UTF_16_MARKS, decode_text

_WORD = re.compile(r"[^\s=]+")
_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 40  # characters

_Value = float | str | bytes  # bytes: a flag


@dataclass(frozen=True)
class Tier:
    """A tier, with as many intervals as it declares."""

    name: str
    has_intervals: bool  # otherwise points, which are left out
    end: float  # seconds
    intervals: list[tuple[float, float, str]] = field(default_factory=list)  # start and end in seconds, label


def parse_textgrid(content: bytes) -> list[Tier]:
    """The tiers of a file in UTF-8, or in UTF-16 with its mark.

    Raises ValueError, with the line, if it is no TextGrid, or does not hold the tiers, intervals and points that it
    declares. UnicodeError if it is in another encoding.
    """
    text = content.decode("utf-16") if content.startswith(UTF_16_MARKS) else decode_text(content)
    values = _Values(text)
    try:
        tiers = _tiers(values)
    except EOFError:
        raise ValueError("it ends before its tiers begin") from None
    except ValueError as error:
        raise ValueError(f"line {values.line}: {error}") from None
    return tiers


def _tiers(values: "_Values") -> list[Tier]:
    if not values.text().startswith("ooTextFile") or values.text() != "TextGrid":
        raise ValueError("its first lines are those of another kind of file")
    values.number(), values.number()  # where it begins and ends
    exists = values.flag() == b"<exists>"
    num_tiers = values.count() if exists else 0
    tiers: list[Tier] = []
    while len(tiers) < num_tiers:
        try:
            tiers.append(_tier(values))
        except EOFError:
            raise ValueError(
                f"it declares {num_tiers:.15g} tiers and holds {len(tiers)}; the file is cut off, or was edited by hand"
            ) from None
    if values.more():
        last = f"its last tier {tiers[-1].name!r:.80} declares" if tiers else "it declares"
        raise ValueError(f"{last} fewer intervals than the file holds, or it declares too few tiers ({num_tiers:.15g})")
    return tiers


def _tier(values: "_Values") -> Tier:
    kind, name = values.text(), values.text()
    if kind not in ("IntervalTier", "TextTier"):
        raise ValueError(f"{kind!r:.80} is no kind of tier")
    _, end = values.number(), values.number()
    tier = Tier(name, kind == "IntervalTier", end)
    declared, held = values.count(), 0
    try:
        while held < declared:
            start = values.number()
            stop = values.number() if tier.has_intervals else start
            label = values.text()
            if tier.has_intervals:
                tier.intervals.append((start, stop, label))
            held += 1
    except (EOFError, ValueError) as error:
        problem = (
            f" ({error}; a quotation mark in a label is written twice)"
            if str(error)
            else "; the file is cut off, or was edited by hand"
        )
        what = "intervals" if tier.has_intervals else "points"
        raise ValueError(f"the tier {name!r:.80} declares {declared:.15g} {what} and holds {held}{problem}") from None
    return tier


class _Values:
    """The free values of a text, one after the other. Methods raise ValueError for a value of another kind, and
    EOFError at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._values = _values_of(text)
        self._place = 0  # of the last value

    @property
    def line(self) -> int:
        """Line of the last value, from 1 on."""
        return self._text.count("\n", 0, self._place) + 1

    def text(self) -> str:
        value = self._next()
        if not isinstance(value, str):
            raise ValueError(f"expected text in quotes, got {_shown(value)}")
        return value

    def number(self) -> float:
        value = self._next()
        if not isinstance(value, float):
            raise ValueError(f"expected a number, got {_shown(value)}")
        return value

    def count(self) -> int:
        value = self.number()
        if not value.is_integer() or value < 0:
            raise ValueError(f"expected how many there are, got {value:g}")
        return int(value)

    def flag(self) -> bytes:
        value = self._next()
        if not isinstance(value, bytes):
            raise ValueError(f"expected <exists>, got {_shown(value)}")
        return value

    def more(self) -> bool:
        """Whether there is another value, which is passed over."""
        try:
            self._next()
        except EOFError:
            return False
        return True

    def _next(self) -> _Value:
        found = next(self._values, None)
        if found is None:
            self._place = len(self._text)
            raise EOFError
        value, self._place = found
        return value


def _shown(value: _Value) -> str:
    return f"{value.decode() if isinstance(value, bytes) else value!r:.80}"


def _values_of(text: str) -> Iterator[tuple[_Value, int]]:
    """Each value and its place in the text."""
    pieces = text.split('"')  # quoted text has the odd places
    number = place = 0
    while True:
        yield from _unquoted(pieces[number], place)
        place += len(pieces[number]) + 1
        number += 1
        if number == len(pieces):
            return
        begin, quoted = place, [pieces[number]]
        place += len(pieces[number]) + 1
        while number + 2 < len(pieces) and not pieces[number + 1]:  # two quotes inside mean one
            number += 2
            quoted.append(pieces[number])
            place += len(pieces[number]) + 2
        number += 1
        if number == len(pieces):
            return  # the file ends inside
        yield '"'.join(quoted), begin


def _unquoted(piece: str, place: int) -> Iterator[tuple[_Value, int]]:
    for found in _WORD.finditer(piece):
        word = found[0]
        if word.startswith("<") and word.endswith(">"):
            yield word.encode(), place + found.start()
        elif len(word) <= _LONGEST_NUMBER and _NUMBER.fullmatch(word):
            yield float(word), place + found.start()
