"""TextGrid files of Praat, long or short, in time and memory that grow with their size.

Praat reads free values - numbers, text in quotes, flags such as <exists> - and takes all else for comments. The
long form differs from the short one by such comments alone.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 40  # characters
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_Value = float | str | bytes  # bytes: a flag


@dataclass(frozen=True)
class Tier:
    """A tier, as far as the file has it: one that is cut off has fewer intervals than it declares."""

    name: str
    has_intervals: bool  # otherwise points, which are left out
    end: float  # seconds
    intervals: list[tuple[float, float, str]] = field(default_factory=list)  # start and end in seconds, label


def parse_textgrid(content: bytes) -> list[Tier]:
    """The tiers of a file in UTF-8, or in UTF-16 with its mark. Raises ValueError if it is no TextGrid."""
    text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    values = _Values(text)
    tiers: list[Tier] = []
    try:
        if not values.text().startswith("ooTextFile") or values.text() != "TextGrid":
            raise ValueError("its first lines are those of another kind of file")
        values.number(), values.number()  # where it begins and ends
        exists = values.flag() == b"<exists>"
        num_tiers = values.count() if exists else 0
    except EOFError:
        raise ValueError("it ends before its tiers begin") from None
    try:
        for _ in range(num_tiers):
            kind, name = values.text(), values.text()
            if kind not in ("IntervalTier", "TextTier"):
                raise ValueError(f"{kind!r:.80} is no kind of tier")
            _, end = values.number(), values.number()
            tiers.append(Tier(name, kind == "IntervalTier", end))
            for _ in range(values.count()):
                start = values.number()
                stop = values.number() if kind == "IntervalTier" else start
                label = values.text()
                if kind == "IntervalTier":
                    tiers[-1].intervals.append((start, stop, label))
    except EOFError:
        pass  # the caller sees where the intervals end
    return tiers


class _Values:
    """The free values of a text, one after the other. Methods raise ValueError for a value of another kind, and
    EOFError at the end."""

    def __init__(self, text: str) -> None:
        self._values = _values_of(text)

    def text(self) -> str:
        value = self._next()
        if not isinstance(value, str):
            raise ValueError(f"expected text in quotes, got {value!r:.80}")
        return value

    def number(self) -> float:
        value = self._next()
        if not isinstance(value, float):
            raise ValueError(f"expected a number, got {value!r:.80}")
        return value

    def count(self) -> int:
        value = self.number()
        if not value.is_integer() or value < 0:
            raise ValueError(f"expected how many there are, got {value:g}")
        return int(value)

    def flag(self) -> bytes:
        value = self._next()
        if not isinstance(value, bytes):
            raise ValueError(f"expected <exists>, got {value!r:.80}")
        return value

    def _next(self) -> _Value:
        value = next(self._values, None)
        if value is None:
            raise EOFError
        return value


def _values_of(text: str) -> Iterator[_Value]:
    pieces = text.split('"')  # quoted text has the odd places
    place = 0
    while True:
        yield from _unquoted(pieces[place])
        place += 1
        if place == len(pieces):
            return
        quoted = [pieces[place]]
        while place + 2 < len(pieces) and not pieces[place + 1]:  # two quotes inside mean one
            place += 2
            quoted.append(pieces[place])
        place += 1
        if place == len(pieces):
            return  # the file ends inside
        yield '"'.join(quoted)


def _unquoted(piece: str) -> Iterator[_Value]:
    for word in piece.replace("=", " ").split():
        if word.startswith("<") and word.endswith(">"):
            yield word.encode()
        elif len(word) <= _LONGEST_NUMBER and _NUMBER.fullmatch(word):
            yield float(word)
