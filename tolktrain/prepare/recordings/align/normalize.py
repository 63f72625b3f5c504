"""From text as it is written to words as they are spoken, each written word keeping its own.

Rules are word by word, with a glance at the words around ("$5 million", "No. 7", "May 3", "Henry VIII"). They are
fullest for English (`English`); in other languages numbers and amounts of money are spelled out by num2words, and a few
signs have names. There are libraries that read a text aloud, but they give one reading for a sentence; here each word
needs its own, and the other usual ones, to be compared with what was said. Acronyms are read as letters if they have
periods or "&" or no vowel. A word is what is between blanks; in scripts without blanks, a character.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tolktrain.prepare.recordings.align.chinese import beside_chinese, is_chinese
from tolktrain.prepare.recordings.align.chinese import readings as chinese_readings
from tolktrain.prepare.recordings.align.english import Context, English, Readings, Rule, combined, distinct
from tolktrain.prepare.recordings.align.scripts import (
    blank_between,
    is_punctuation,
    is_unspaced,
    unspaced_pieces,
    without_marks,
)
from tolktrain.prepare.recordings.align.spoken_numbers import CURRENCY_SIGNS, Numbers, Spoken, is_letter

_OTHER_SIGNS = {
    "de": {"&": "und", "%": "prozent", "+": "plus", "=": "gleich", "°": "grad", "²": "quadrat"},
    "fr": {"&": "et", "%": "pour cent", "+": "plus", "=": "égale", "°": "degrés", "²": "au carré"},
    "es": {"&": "y", "%": "por ciento", "+": "más", "=": "igual a", "°": "grados"},
    "it": {"&": "e", "%": "per cento", "+": "più", "=": "uguale", "°": "gradi"},
    "nl": {"&": "en", "%": "procent", "+": "plus", "°": "graden"},
    "pt": {"&": "e", "%": "por cento", "+": "mais", "=": "igual a", "°": "graus"},
}
_APOSTROPHES = str.maketrans("’ʼ‘`´′", "''''''")
_FRACTION_SLASH = "\u2044"
_KEPT_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_NUMBER = r"\d+(?:[.,]\d+)*"
_INITIALS = re.compile(r"(?:[^\W\d_]\.){2,}[^\W\d_]?(?![^\W_])")
_PAIR = re.compile(r"([^\W\d_]{1,2})&([^\W\d_]{1,2})(?![^\W_])")
_PLAIN = re.compile(r"[\"'(\[“”‘’]*([A-Za-z]+(?:['’][A-Za-z]+)*)[\"'.,;:!?)\]“”’]*")
_OUTER = "\"'“”‘’()[]{}.,;:!?…"
_VOWELS = frozenset("aeiouy")


@dataclass(frozen=True)
class Written:
    """A written word and what is spoken for it."""

    text: str  # with its punctuation; a lone dash or the like follows after a blank
    spoken: Spoken  # lower-case; empty if nothing is spoken, as for an emoji
    readings: tuple[Spoken, ...]  # all ways to speak it that are considered, `spoken` first
    spaced: bool = True  # whether a blank precedes it in the text


def spoken_words(text: str, language: str) -> list[Written]:
    """The written words of a text, in order, with what is spoken for each.

    The texts, with a blank before each that is `spaced`, are the given text with each stretch of blanks made one; the
    first is `spaced` unless its script has no blanks. What such scripts write is cut into characters, and the Latin
    words and numbers between them. A word of nothing but punctuation belongs to the word before it, at the beginning to
    the word after it. Raises `UserError` if the language is unknown to num2words, or num2words is missing and the text
    has digits.
    """
    tokens = list(_tokens(text))
    reader = _Reader(language, any(char.islower() for char in text))
    cleaned = ["", *(_clean(token) for token, _ in tokens), ""]
    grouped = reader.groups(cleaned[1:-1])
    chinese = is_chinese(language) or language[:2] == "en"
    written = []
    owed: Readings = ()  # the currency of an amount whose magnitude is the next word
    for place, (token, spaced) in enumerate(tokens):
        context = Context(cleaned[place].strip(), cleaned[place + 1], cleaned[place + 2].strip())
        readings = reader.word(token, context)
        if owed:
            readings = (*combined(readings, owed), *readings)
        owed = reader.owed(context)
        if owed:
            readings = (*reader.word(token, reader.without_currency(context)), *readings)
        if chinese and beside_chinese(context.before, context.after):
            # The digits of Chinese are spoken in Chinese, also if the configuration does not name the language.
            said = tuple((reading,) for reading in chinese_readings(context.word))
            readings = (*said, *readings) if is_chinese(language) else (*readings, *said)
        together, likely = grouped.get(place, ((), False))
        readings = distinct([*together, *readings] if likely else [*readings, *together])
        written.append(Written(token, readings[0], readings, spaced))
    return written


def letters(reading: Spoken) -> str:
    """A reading without blanks, apostrophes and accents: what two ways to write the same speech have in common."""
    return without_marks("".join(reading).replace("'", ""))


def verbatim(token: str) -> str:
    """A word as it is written, for comparison with one that is written the same: digits and signs are kept."""
    return letters((_clean(token).strip(_OUTER + " -–—").lower(),))


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """The words of a text, and whether a blank precedes each."""
    for place, token in enumerate(_joined(text.split())):
        pieces = unspaced_pieces(token) if any(map(is_unspaced, token)) else [token]
        for number, piece in enumerate(pieces):
            yield piece, number == 0 and (place > 0 or blank_between("", piece))


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
    return all(map(is_punctuation, token))


class _Reader:
    """Reads single words of one language."""

    def __init__(self, language: str, mixed_case: bool) -> None:
        self._numbers = Numbers(language)
        self._english = English(self._numbers) if self._numbers.english else None
        self._mixed_case = mixed_case  # an acronym differs from other words
        self._signs = _OTHER_SIGNS.get(language[:2], {})
        self._rules: tuple[Rule, ...] = (
            (_INITIALS, lambda m: (_letters(m[0]),)),
            (_PAIR, self._pair),
            *(self._english.rules if self._english else self._other_rules()),
        )

    def word(self, token: str, context: Context) -> Readings:
        """Readings of a word, at least one."""
        special = self._english.word(context) if self._english else ()
        if special:
            return special
        plain = _PLAIN.fullmatch(token)
        if plain and not self._is_acronym(plain[1]):
            return ((plain[1].lower().replace("’", "'"),),)
        return combined(*(part for part in self._scan(context.word) if part != ((),)))

    def owed(self, context: Context) -> Readings:
        """The currency of an amount as in "$5 million", which is spoken after the next word."""
        found = self._english.owed(context) if self._english else None
        return self._english.currency(*found) if self._english and found else ()

    def without_currency(self, context: Context) -> Context:
        """The same word as a plain number."""
        kept = re.sub(rf"(?:[A-Z]+)?[{CURRENCY_SIGNS}]", "", context.word)
        return Context(context.before, kept, context.after)

    def groups(self, cleaned: list[str]) -> dict[int, tuple[Readings, bool]]:
        """Readings of numbers as 10 000, and whether they are the likeliest, by place.

        The first group is spoken for all of them, the others are not spoken.
        """
        found: dict[int, tuple[Readings, bool]] = {}
        for place, token in enumerate(cleaned):
            if place in found or not re.fullmatch(r"[1-9]\d{0,2}", token):
                continue
            later: list[str] = []
            for other in cleaned[place + 1 : place + 5]:
                later += [other.rstrip(_OUTER)] if re.fullmatch(r"\d{3}", other.rstrip(_OUTER)) else []
                if not later or later[-1] != other:
                    break
            if later:
                likely = len(later) > 1 or later[0][0] == "0"
                found[place] = self._numbers.cardinals(int(token + "".join(later))), likely
                found.update(dict.fromkeys(range(place + 1, place + 1 + len(later)), (((),), likely)))
        return found

    def _is_acronym(self, core: str) -> bool:
        return self._mixed_case and 1 < len(core) <= 5 and core.isupper() and not _VOWELS & set(core.lower())

    def _scan(self, text: str) -> Iterator[Readings]:
        place = 0
        while place < len(text):
            for pattern, rule in self._rules:
                found = pattern.match(text, place)
                if found and found.end() > place:
                    yield rule(found)
                    place = found.end()
                    break
            else:
                end = _run_end(text, place)
                yield self._run(text[place:end]) if end > place else self._sign(text[place])
                place = max(end, place + 1)

    def _run(self, run: str) -> Readings:
        lower = run.lower()
        return (_letters(lower), (lower,)) if self._is_acronym(run) else ((lower,),)

    def _sign(self, char: str) -> Readings:
        if self._english:
            return self._english.sign(char)
        if char in CURRENCY_SIGNS:
            return (self._numbers.currency_name(char),)
        return (tuple(self._signs.get(char, "").split()),)

    def _pair(self, found: re.Match[str]) -> Readings:
        sides = _letters(found[1]), _letters(found[2])
        return tuple((*sides[0], *sign, *sides[1]) for sign in (*self._sign("&"), ()))

    def _other_rules(self) -> tuple[Rule, ...]:
        """Rules for languages other than English."""
        numbers = self._numbers

        def read(digits: str) -> Spoken:
            return numbers.readings(str(int(digits)))[0]

        return (
            (re.compile(rf"([{CURRENCY_SIGNS}])({_NUMBER})"), lambda m: numbers.currency(m[1], m[2])),
            (re.compile(rf"({_NUMBER})([{CURRENCY_SIGNS}])"), lambda m: numbers.currency(m[2], m[1])),
            (
                re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?!\d)"),
                lambda m: (read(m[1]) + read(m[2]) + (read(m[3]) if m[3] else ()),),
            ),
            (re.compile(r"(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE), lambda m: numbers.ordinals(m[1])),
            (re.compile(r"(\d{1,2})/(\d{1,2})(?![/\d])"), lambda m: (read(m[1]) + read(m[2]),)),
            (re.compile(_NUMBER), lambda m: numbers.readings(m[0])),
        )


def _letters(text: str) -> Spoken:
    """Each letter; regular expressions take raised digits for letters too."""
    return tuple(char for char in text.lower() if char.isalpha())


def _run_end(text: str, place: int) -> int:
    """Where the letters that begin at `place` end; `place` itself if there are none."""
    # A mark alone, such as the one that makes a sign an emoji, is not spoken.
    if not text[place].isalpha() and text[place] != "〇":
        return place
    while place < len(text) and (
        is_letter(text[place]) or (text[place] == "'" and place + 1 < len(text) and is_letter(text[place + 1]))
    ):
        place += 1
    return place


def _clean(token: str) -> str:
    """One form for each character: composed letters, ASCII digits and apostrophes, no ligatures; fractions as 1/2."""
    chars: list[str] = []
    for char in unicodedata.normalize("NFC", token.translate(_APOSTROPHES)):
        category = unicodedata.category(char)
        if char.isascii() or char in _KEPT_SUPERSCRIPTS:
            chars.append(char)
        elif char.isdecimal():
            chars.append(str(unicodedata.decimal(char)))
        elif category == "Cf":  # soft hyphens, joiners
            continue
        elif (category[0] in "NLS" and category != "Sk" and char not in "™℠№") or "\uff01" <= char <= "\uff5e":
            plain = unicodedata.normalize("NFKC", char)
            if _FRACTION_SLASH in plain:
                plain = (" " if chars and chars[-1].isdigit() else "") + plain.replace(_FRACTION_SLASH, "/")
            chars.append(plain if "/" in plain else plain.replace(" ", ""))
        else:
            chars.append(char)
    return unicodedata.normalize("NFC", "".join(chars))
