"""From text as it is written to words as they are spoken, each written word keeping its own.

Rules are word by word, with a glance at the next word ("$5 million", "No. 7", "St. Paul"). They are fullest for
English; in other languages numbers and amounts of money are spelled out by num2words, and a few signs have names. Not
read: Roman numerals, and acronyms as letters unless they have periods or "&" or no vowel. A word is what is between
blanks, so that scripts without blanks must be cut into words beforehand.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product, zip_longest

from tolktrain.prepare.recordings.align.spoken_numbers import CURRENCY_SIGNS, Numbers, Spoken, is_letter

_MOST_READINGS = 24

# How titles and a few Latin words are spoken, the likeliest first; the second table needs the period.
_ABBREVIATIONS: dict[str, tuple[str, ...]] = {
    "mr": ("mister",),
    "mrs": ("missus", "mistress"),
    "ms": ("miz", "miss"),
    "dr": ("doctor", "drive"),
    "prof": ("professor",),
    "jr": ("junior",),
    "sr": ("senior",),
    "vs": ("versus",),
    "etc": ("et cetera", "etcetera"),
}
_ABBREVIATIONS_WITH_PERIOD: dict[str, tuple[str, ...]] = {
    "e.g": ("for example", "for instance", "e g"),
    "i.e": ("that is", "i e"),
    "st": ("saint", "street"),
    "no": ("number", "no"),
}
_ENGLISH_SIGNS = {
    "&": "and",
    "%": "percent",
    "@": "at",
    "+": "plus",
    "=": "equals",
    "#": "number",
    "°": "degrees",
    "×": "times",
    "§": "section",
    "²": "squared",
    "³": "cubed",
}
_OTHER_SIGNS = {
    "de": {"&": "und", "%": "prozent", "+": "plus", "=": "gleich", "°": "grad", "²": "quadrat"},
    "fr": {"&": "et", "%": "pour cent", "+": "plus", "=": "égale", "°": "degrés", "²": "au carré"},
    "es": {"&": "y", "%": "por ciento", "+": "más", "=": "igual a", "°": "grados"},
    "it": {"&": "e", "%": "per cento", "+": "più", "=": "uguale", "°": "gradi"},
    "nl": {"&": "en", "%": "procent", "+": "plus", "°": "graden"},
    "pt": {"&": "e", "%": "por cento", "+": "mais", "=": "igual a", "°": "graus"},
}
_MAGNITUDES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_MAGNITUDE_WORDS = frozenset({"hundred", "thousand", "million", "billion", "trillion"})
_UNITS = {
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "mph": ("mile per hour", "miles per hour"),
}
_FRACTIONS = dict(zip("½⅓⅔¼¾⅛⅜⅝⅞", ("1/2", "1/3", "2/3", "1/4", "3/4", "1/8", "3/8", "5/8", "7/8"), strict=True))
_APOSTROPHES = str.maketrans("’ʼ‘`´", "'''''")

_NUMBER = r"\d+(?:[.,]\d+)*"
_PATTERNS = {
    "money": re.compile(rf"([{CURRENCY_SIGNS}])({_NUMBER})(?:(k|m|bn|b|tn)(?!\w))?", re.IGNORECASE),
    "money_after": re.compile(rf"({_NUMBER})([{CURRENCY_SIGNS}])"),
    "time": re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?!\d)"),
    "half_day": re.compile(r"(?<=\d)([ap])\.?m\b\.?", re.IGNORECASE),
    "decade": re.compile(r"(\d{2,3}0)'?s\b"),
    "ordinal": re.compile(r"(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE),
    "fraction": re.compile(r"(\d{1,2})/(\d{1,2})(?![/\d])"),
    "span": re.compile(r"(\d{1,4})[-–](?=(\d{1,4})(?![-–\d.,]))"),
    "minus": re.compile(rf"(?<![^\W_])[-−](?=[{CURRENCY_SIGNS}]?\d)"),
    "temperature": re.compile(r"°([CF])\b"),
    "unit": re.compile(r"(?<=\d)(km|cm|mm|kg|mg|mph)\b"),
    "initials": re.compile(r"(?:[^\W\d_]\.){2,}[^\W\d_]?(?![^\W_])"),
    "pair": re.compile(r"([^\W\d_]{1,2})&([^\W\d_]{1,2})(?![^\W_])"),
    "number": re.compile(_NUMBER),
}
_PLAIN = re.compile(r"[\"'(\[“”‘’]*([A-Za-z]+(?:['’][A-Za-z]+)*)[\"'.,;:!?)\]“”’]*")
_VOWELS = frozenset("aeiouy")


@dataclass(frozen=True)
class Written:
    """A written word and what is spoken for it."""

    text: str  # with its punctuation; a lone dash or the like follows after a blank
    spoken: Spoken  # lower-case; empty if nothing is spoken, as for an emoji
    readings: tuple[Spoken, ...]  # all ways to speak it that are considered, `spoken` first


def _letters(text: str) -> Spoken:
    """Each letter; regular expressions take raised digits for letters too."""
    return tuple(char for char in text.lower() if char.isalpha())


def spoken_words(text: str, language: str) -> list[Written]:
    """The written words of a text, in order, with what is spoken for each.

    The texts joined by blanks are the given text with each stretch of blanks made one. A word of nothing but
    punctuation belongs to the word before it, at the beginning to the word after it. Raises `UserError` if the
    language is unknown to num2words, or num2words is missing and the text has digits.
    """
    tokens = _joined(text.split())
    reader = _Reader(language, any(char.islower() for char in text))
    written = []
    owed = ""  # sign of an amount whose magnitude is the next word
    for token, after in zip_longest(tokens, tokens[1:], fillvalue=""):
        readings = reader.word(token, after)
        if owed:
            readings = tuple(reading + reader.numbers.currency_name(owed) for reading in readings)
        owed = reader.owed(token, after)
        if owed:
            readings = reader.word(token.replace(owed, "", 1), after)
        written.append(Written(token, readings[0], readings))
    return written


def letters(reading: Spoken) -> str:
    """A reading without blanks, apostrophes and accents: what two ways to write the same speech have in common."""
    joined = "".join(reading).replace("'", "")
    if joined.isascii():
        return joined
    return "".join(char for char in unicodedata.normalize("NFD", joined) if not "\u0300" <= char <= "\u036f")


def _joined(tokens: Iterable[str]) -> list[str]:
    joined: list[str] = []
    begun = False  # something else than punctuation has come
    for token in tokens:
        punctuation = _is_punctuation(token)
        if joined and (punctuation or not begun):
            joined[-1] += " " + token
        else:
            joined.append(token)
        begun = begun or not punctuation
    return joined


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(char)[0] in "PC" and char not in _ENGLISH_SIGNS for char in token)


class _Reader:
    """Reads single words of one language."""

    def __init__(self, language: str, mixed_case: bool) -> None:
        self.numbers = Numbers(language)
        self._mixed_case = mixed_case  # an acronym differs from other words
        self._signs = _ENGLISH_SIGNS if self.numbers.english else _OTHER_SIGNS.get(language[:2], {})

    def word(self, token: str, after: str) -> tuple[Spoken, ...]:
        """Readings of a token that precedes `after`, at least one."""
        plain = _PLAIN.fullmatch(token)
        if plain and not self._is_special(plain[1]):
            return ((plain[1].lower().replace("’", "'"),),)
        if self.numbers.english and (abbreviated := self._abbreviation(token, after)):
            return abbreviated
        return self._pieces(_clean(token))

    def owed(self, token: str, after: str) -> str:
        """The sign of an amount as in "$5 million", which is spoken after the next word."""
        money = _PATTERNS["money"].search(_clean(token))
        core = "".join(re.findall(r"[a-z]+", after.lower()))
        return money[1] if self.numbers.english and money and not money[3] and core in _MAGNITUDE_WORDS else ""

    def _is_special(self, core: str) -> bool:
        if self.numbers.english and (core.lower() in _ABBREVIATIONS or core.lower() in _ABBREVIATIONS_WITH_PERIOD):
            return True
        return self._is_acronym(core)

    def _is_acronym(self, core: str) -> bool:
        return self._mixed_case and 1 < len(core) <= 5 and core.isupper() and not _VOWELS & set(core.lower())

    def _abbreviation(self, token: str, after: str) -> tuple[Spoken, ...]:
        found = re.fullmatch(r"\W*?([A-Za-z.]*[A-Za-z])(\.?)\W*", token)
        if not found:
            return ()
        core, period = found[1].lower(), found[2]
        if core in _ABBREVIATIONS:
            readings = _ABBREVIATIONS[core]
        elif period and core in _ABBREVIATIONS_WITH_PERIOD:
            readings = _ABBREVIATIONS_WITH_PERIOD[core]
            before_number = after.lstrip("#")[:1].isdigit()
            before_name = after[:1].isupper()
            if (core == "no" and not before_number) or (core == "st" and not before_name):
                readings = readings[::-1]
        else:
            return ()
        return tuple(dict.fromkeys((*(tuple(reading.split()) for reading in readings), (core.replace(".", ""),))))

    def _pieces(self, text: str) -> tuple[Spoken, ...]:
        """All combinations of the readings of the parts of a word."""
        parts = [part for part in self._scan(text) if part != ((),)]
        combined = islice(product(*parts), _MOST_READINGS)
        return tuple(dict.fromkeys(tuple(word for part in choice for word in part) for choice in combined))

    def _scan(self, text: str) -> Iterator[tuple[Spoken, ...]]:
        place = 0
        while place < len(text):
            for name, pattern in _PATTERNS.items():
                if found := pattern.match(text, place):
                    yield self._read(name, found)
                    place = found.end()
                    break
            else:
                end = _run_end(text, place)
                yield self._run(text[place:end]) if end > place else self._sign(text[place])
                place = max(end, place + 1)

    def _run(self, run: str) -> tuple[Spoken, ...]:
        lower = run.lower()
        return (tuple(lower), (lower,)) if self._is_acronym(run) else ((lower,),)

    def _sign(self, char: str) -> tuple[Spoken, ...]:
        if char in CURRENCY_SIGNS:
            return (self.numbers.currency_name(char),)
        return (tuple(self._signs.get(char, "").split()),)

    def _read(self, name: str, found: re.Match[str]) -> tuple[Spoken, ...]:
        numbers = self.numbers
        if name == "money":
            if not found[3]:
                return numbers.currency(found[1], found[2])
            end = (_MAGNITUDES[found[3].lower()], *numbers.currency_name(found[1]))
            return tuple(reading + end for reading in numbers.readings(found[2]))
        if name == "money_after":
            return numbers.currency(found[2], found[1])
        if name == "time":
            return self._time(found)
        if name == "half_day":
            return ((found[1].lower(), "m"),)
        if name == "ordinal":
            return numbers.ordinals(found[1])
        if name == "fraction":
            return self._fraction(int(found[1]), int(found[2]), mixed=found.string[: found.start()].endswith(" "))
        if name == "minus":
            return (("minus",),) if numbers.english else ((),)
        if name == "initials":
            return (_letters(found[0]),)
        if name == "pair":
            return ((*_letters(found[1]), *self._signs.get("&", "").split(), *_letters(found[2])),)
        if name == "number":
            return numbers.readings(found[0])
        return self._english(name, found)

    def _english(self, name: str, found: re.Match[str]) -> tuple[Spoken, ...]:
        """Rules for English only; in other languages the digits or letters alone."""
        english = self.numbers.english
        if name == "decade":
            reading = self.numbers.readings(found[1])[0]
            return ((*reading[:-1], _plural(reading[-1])) if english else reading,)
        if name == "span":
            if (len(found[1]), len(found[2])) == (3, 4):  # a telephone number
                return (self.numbers.digits(found[1]),)
            readings = self.numbers.readings(found[1])
            rising = len(found[2]) >= len(found[1]) and int(found[2]) > int(found[1])
            return (*(r + ("to",) for r in readings), *readings) if english and rising else readings
        if name == "temperature":
            scale = {"C": "celsius", "F": "fahrenheit"}[found[1]]
            return (("degrees", scale), ("degrees",)) if english else ((*self._sign("°")[0], scale),)
        assert name == "unit"
        one = found.string[: found.start()] == "1"
        return (tuple(_UNITS[found[1]][0 if one else 1].split()) if english else (found[1],),)

    def _time(self, found: re.Match[str]) -> tuple[Spoken, ...]:
        numbers = self.numbers
        hour, minute = numbers.readings(str(int(found[1])))[0], numbers.readings(str(int(found[2])))[0]
        second = numbers.readings(str(int(found[3])))[0] if found[3] else ()
        if not numbers.english:
            return (hour + minute + second,)
        if int(found[2]) == 0 and not second:
            return hour + ("o'clock",), hour, hour + ("hundred",)
        if int(found[2]) < 10:
            return hour + ("oh",) + minute + second, hour + minute + second
        return (hour + minute + second,)

    def _fraction(self, above: int, below: int, mixed: bool) -> tuple[Spoken, ...]:
        top, bottom = self.numbers.readings(str(above))[0], self.numbers.readings(str(below))[0]
        if not self.numbers.english:
            return (top + bottom,)
        if not 0 < above < below <= 20:
            return top + bottom, top + ("over",) + bottom, top + ("slash",) + bottom
        parts = {2: ("half",), 4: ("quarter",)}.get(below) or self.numbers.ordinals(str(below))[0]
        if above > 1:
            parts = (*parts[:-1], "halves" if below == 2 else _plural(parts[-1]))
        readings = [top + parts, top + ("over",) + bottom]
        if above == 1:
            readings.append(("a", *parts))
        return tuple(("and", *reading) for reading in readings) if mixed else tuple(readings)


def _run_end(text: str, place: int) -> int:
    """Where the letters that begin at `place` end; `place` itself if there are none."""
    # A mark alone, such as the one that makes a sign an emoji, is not spoken.
    if not text[place].isalpha():
        return place
    while place < len(text) and (
        is_letter(text[place]) or (text[place] == "'" and place + 1 < len(text) and is_letter(text[place + 1]))
    ):
        place += 1
    return place


def _plural(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith("x") else "s")


def _clean(token: str) -> str:
    """One form for each character: composed letters, ASCII digits, the plain apostrophe; fractions as 1/2."""
    chars: list[str] = []
    for char in unicodedata.normalize("NFC", token.translate(_APOSTROPHES)):
        if char in _FRACTIONS:
            chars.append((" " if chars and chars[-1].isdigit() else "") + _FRACTIONS[char])
        elif char.isdecimal():
            chars.append(str(unicodedata.decimal(char)))
        elif (unicodedata.category(char) in ("No", "Nl") and char not in "²³") or "\uff01" <= char <= "\uff5e":
            chars.append(unicodedata.normalize("NFKC", char))
        elif unicodedata.category(char) != "Cf":  # soft hyphens, joiners
            chars.append(char)
    return "".join(chars)
