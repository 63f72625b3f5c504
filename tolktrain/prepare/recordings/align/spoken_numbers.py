"""Numbers as they are spoken, through the num2words library."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align.chinese import is_chinese, readings

Spoken = tuple[str, ...]

# Longer ones are names of things (telephones, cards), and are read digit by digit.
_LONGEST_CARDINAL = 15
# Written 1,234.5 there; everywhere else 1.234,5.
_POINT_LANGUAGES = frozenset({"en", "he", "ja", "kn", "ko", "te", "th", "bn", "zh"})
CURRENCIES = {
    "$": "USD",
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "₹": "INR",
    "₩": "KRW",
    "₽": "RUB",
    "₺": "TRY",
    "₪": "ILS",
}
"""The signs of currencies and their names in num2words."""

CURRENCY_SIGNS = "".join(CURRENCIES)


def is_letter(char: str) -> bool:
    """Letters, and the marks that belong to the letter before them."""
    return unicodedata.category(char)[0] in "LM" or char == "〇"


def letters_of(text: str) -> Spoken:
    """Lower-case words of a text: runs of letters, marks and inner apostrophes."""
    kept = "".join(char if is_letter(char) or char == "'" else " " for char in text.lower())
    return tuple(word for part in kept.split() if (word := part.strip("'")))


@dataclass(frozen=True)
class Numbers:
    """Reads numbers aloud in one language."""

    language: str  # as num2words names it

    @property
    def english(self) -> bool:
        """Whether the fuller English rules apply."""
        return self.language[:2] == "en"

    def check(self) -> None:
        """Raise `UserError` if num2words does not know the language."""
        _converter(self.language)

    def parse(self, written: str) -> tuple[str, str] | None:
        """Digits before and after the decimal sign of 1,234.5 or 1.234,5; None if it is neither, as 10.0.1 is."""
        point, comma = (".", ",") if self.language[:2] in _POINT_LANGUAGES else (",", ".")
        if re.fullmatch(rf"\d{{1,3}}(?:[{comma}]\d{{3}})+(?:[{point}]\d+)?", written):
            written = written.replace(comma, "")
        whole, *rest = re.split("[.,]", written)
        return (whole, "".join(rest)) if len(rest) < 2 else None

    def readings(self, written: str) -> tuple[Spoken, ...]:
        """Ways to say a number written in digits, the likeliest first; at least one."""
        parsed = self.parse(written)
        if parsed is None:
            return (self._parts(written),)
        whole, decimals = parsed
        if decimals:
            return self._decimals(whole, decimals)
        found: list[Spoken] = []
        # Japanese years would be those of an emperor.
        if len(whole) == 4 and whole == written and 1100 <= int(whole) < 2100 and self.language != "ja":
            found += self._both(self._say(int(whole), "year"))
        leading_zero = len(whole) > 1 and whole[0] == "0"
        if len(whole) <= _LONGEST_CARDINAL and not leading_zero:
            found += self.cardinals(int(whole))
        if self.english:
            found += self._grouped(whole)
        elif len(whole) > 2 or leading_zero:
            found.append(self.digits(whole))
        return tuple(dict.fromkeys(found))

    def cardinals(self, number: int) -> tuple[Spoken, ...]:
        """Ways to say a whole number, as "one hundred and fifty", "a hundred fifty"."""
        said = self._both(self._say(number, "cardinal"))
        if not self.english:
            return said
        found = [*said, *(("a", *reading[1:]) for reading in said if reading[:1] == ("one",) and len(reading) > 1)]
        if 1000 < number < 10_000 and number // 100 % 10:
            hundreds = (*self._say(number // 100, "cardinal"), "hundred")
            rest = self._say(number % 100, "cardinal") if number % 100 else ()
            found += [hundreds + rest, *([hundreds + ("and",) + rest] if rest else [])]
        return tuple(dict.fromkeys(found))

    def ordinals(self, digits: str) -> tuple[Spoken, ...]:
        """Ways to say 3rd."""
        if len(digits) > _LONGEST_CARDINAL:
            return (self.digits(digits),)
        said = self._both(self._say(int(digits), "ordinal"))
        if not self.english:
            return said
        bare = [reading[1:] for reading in said if reading[0] == "one" and len(reading) > 1]
        return (*said, *(("a", *reading) for reading in bare), *bare)

    def spelled(self, digits: str) -> tuple[Spoken, ...]:
        """Ways to say digits one by one in English: with "zero", "oh", "double oh"."""
        zero = self.digits(digits)
        oh = tuple("oh" if word == "zero" else word for word in zero)
        return tuple(dict.fromkeys((zero, oh, _doubled(oh), _doubled(zero))))

    def pairs(self, digits: str) -> Spoken:
        """Two digits at a time in English, as in "seven forty seven" and "twenty oh five"; empty if it is not said."""
        first = len(digits) % 2
        groups = [digits[:first]] * first + [digits[i : i + 2] for i in range(first, len(digits), 2)]
        spoken: Spoken = ()
        for place, group in enumerate(groups):
            if group == "00":
                if not place:
                    return ()
                spoken += ("hundred",)
            elif group[0] == "0" and len(group) == 2:
                spoken += ("oh", *self._say(int(group), "cardinal"))
            else:
                spoken += self._say(int(group), "cardinal")
        return spoken

    def _grouped(self, digits: str) -> list[Spoken]:
        """English ways to say digits as those of a telephone, a house or a flight."""
        if digits == "0":
            return [("oh",), ("o",), ("nought",), ("nil",), ("nothing",)]
        if len(digits) == 1:
            return [("a",), ("an",)] if digits == "1" else []
        spelled = self.spelled(digits)
        if digits[0] == "0":
            return [*spelled, *([("oh", *self._say(int(digits), "cardinal"))] if len(digits) == 2 else [])]
        pairs = self.pairs(digits) if 2 < len(digits) <= 8 else ()
        found = [*([pairs] if pairs else []), *spelled]
        if len(digits) == 4 and digits[2] == "0":
            found.append(tuple(word for word in pairs if word != "oh"))
        return [reading for reading in found if reading]

    def digits(self, digits: str) -> Spoken:
        """Digit by digit."""
        return tuple(word for digit in digits for word in self._say(int(digit), "cardinal"))

    def currency(self, sign: str, written: str) -> tuple[Spoken, ...]:
        """Ways to say an amount of money, in languages other than English."""
        parsed = self.parse(written)
        if parsed is None or len(parsed[0]) > _LONGEST_CARDINAL or len(parsed[1]) not in (0, 2):
            return tuple(reading + self.currency_name(sign) for reading in self.readings(written))
        whole, decimals = parsed
        if not decimals:
            return (self._say(int(whole), "cardinal") + self.currency_name(sign, whole),)
        return (self._say(float(f"{whole}.{decimals}"), "currency", currency=CURRENCIES[sign]),)

    def currency_name(self, sign: str, amount: str = "2") -> Spoken:
        """The name of a currency in a language other than English, in the plural unless the amount is 1."""
        # num2words has no name of a currency alone; the number before it is taken off.
        number = 1.0 if amount == "1" else 2.0
        words = self._say(number, "currency", currency=CURRENCIES[sign])
        return words[1:2]

    def _parts(self, written: str) -> Spoken:
        """A token that is no single number: a version, an address, a list."""
        spoken: Spoken = ()
        for part in re.findall(r"\d+|\.", written):
            if part != ".":
                spoken += self.readings(part)[0]
            elif self.english:
                spoken += ("point",)
        return spoken

    def _decimals(self, whole: str, decimals: str) -> tuple[Spoken, ...]:
        if len(whole) > _LONGEST_CARDINAL:
            return (self.digits(whole + decimals),)
        number = int(whole or 0)
        if not self.english:
            return (self._say(float(f"{whole or 0}.{decimals}"), "cardinal"),)
        before = list(self.cardinals(number)) if number else [("zero",), (), ("nought",), ("oh",)]
        if not whole:
            before[:2] = before[1::-1]
        after = list(self.spelled(decimals)[:2])
        if len(decimals) == 2 and decimals[0] != "0":
            after.append(self._say(int(decimals), "cardinal"))
        found = [start + ("point",) + rest for start in before for rest in after]
        part = _PARTS_OF_ONE.get(decimals)
        if part and number:
            found += [start + ("and", *part) for start in before]
        elif part:
            found += [part, part[1:], *([("half", "a"), ("half", "an")] if decimals == "5" else [])]
        if len(decimals) == 2 and number:
            found.append(before[0] + (self.pairs("1" + decimals)[1:] or ("hundred",)))
        return tuple(dict.fromkeys(found))

    def _both(self, spoken: Spoken) -> tuple[Spoken, ...]:
        """With and without the "and" of "one hundred and one", of which speakers leave out many."""
        if self.english and "and" in spoken:
            return spoken, tuple(word for word in spoken if word != "and")
        return (spoken,)

    def _say(self, number: int | float, kind: str, **options: str) -> Spoken:
        if isinstance(number, int) and kind == "cardinal" and self.english and number < len(_SMALL):
            return (_SMALL[number],)
        convert = _converter(self.language)
        try:
            return letters_of(convert(number, to=kind, **options))
        # The languages of num2words lack kinds and sizes of numbers in many ways, some by mistakes of their own.
        except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
            if kind != "cardinal":
                return self._say(number, "cardinal")
            return ()


_PARTS_OF_ONE = {"5": ("a", "half"), "25": ("a", "quarter"), "75": ("three", "quarters")}
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _doubled(spoken: Spoken) -> Spoken:
    """Two equal digits as a double one."""
    result: list[str] = []
    for word in spoken:
        if result and result[-1] == word and (len(result) < 2 or result[-2] != "double"):
            result[-1:] = ["double", word]
        else:
            result.append(word)
    return tuple(result)


def _converter(language: str) -> Callable[..., str]:
    if is_chinese(language):
        return _chinese
    known = known_languages()
    if language not in known:
        raise UserError(
            f"alignment.language {language!r} is not a language of num2words; use one of {', '.join([*known, 'zh'])}"
        )
    import num2words

    def convert(number: int | float, to: str, **options: str) -> str:
        text: str = num2words.num2words(number, to=to, lang=language, **options)
        return unicodedata.normalize("NFC", text)

    return convert


def _chinese(number: int | float, to: str, **options: str) -> str:
    """As `num2words.num2words`."""
    prefix = "第" if to == "ordinal" else ""
    said = readings(str(number))
    if not said or to == "currency":
        raise NotImplementedError
    return prefix + said[0]


def known_languages() -> list[str]:
    """Languages that numbers can be spelled out in. Raises `UserError` if num2words is missing."""
    try:
        import num2words
    except ImportError:
        raise UserError(
            "spelling numbers out needs the num2words library; install it with pip install 'tolktrain[audio]'"
        ) from None
    return sorted(num2words.CONVERTER_CLASSES)
