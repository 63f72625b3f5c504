"""Numbers as they are spoken, through the num2words library."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from tolktrain.errors import UserError

Spoken = tuple[str, ...]

# Longer ones are names of things (telephones, cards), and are read digit by digit.
_LONGEST_CARDINAL = 15
# Written 1,234.5 there; everywhere else 1.234,5.
_POINT_LANGUAGES = frozenset({"en", "he", "ja", "kn", "ko", "te", "th", "bn"})
_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR"}
_ENGLISH_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
CURRENCY_SIGNS = "".join(_CURRENCIES)


def is_letter(char: str) -> bool:
    """Letters, and the marks that belong to the letter before them."""
    return unicodedata.category(char)[0] in "LM"


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
            return self._both(self._decimal(whole, decimals))
        found: list[Spoken] = []
        # Japanese years would be those of an emperor.
        if len(whole) == 4 and whole == written and 1100 <= int(whole) < 2100 and self.language != "ja":
            found += self._both(self._say(int(whole), "year"))
        leading_zero = len(whole) > 1 and whole[0] == "0"
        if len(whole) <= _LONGEST_CARDINAL and not leading_zero:
            found += self._both(self._say(int(whole), "cardinal"))
        if len(whole) > 2 or leading_zero:
            found.append(self.digits(whole))
            if self.english:
                found.append(tuple("oh" if word == "zero" else word for word in found[-1]))
        return tuple(dict.fromkeys(found))

    def ordinals(self, digits: str) -> tuple[Spoken, ...]:
        """Ways to say 3rd."""
        if len(digits) > _LONGEST_CARDINAL:
            return (self.digits(digits),)
        return self._both(self._say(int(digits), "ordinal"))

    def digits(self, digits: str) -> Spoken:
        """Digit by digit."""
        return tuple(word for digit in digits for word in self._say(int(digit), "cardinal"))

    def currency(self, sign: str, written: str) -> tuple[Spoken, ...]:
        """Ways to say an amount of money."""
        parsed = self.parse(written)
        if parsed is None or len(parsed[0]) > _LONGEST_CARDINAL or len(parsed[1]) not in (0, 2):
            return tuple(reading + self.currency_name(sign) for reading in self.readings(written))
        whole, decimals = parsed
        if self.english:
            return self._english_money(sign, int(whole), int(decimals or 0))
        if not decimals:
            return (self._say(int(whole), "cardinal") + self.currency_name(sign, whole),)
        return (self._say(float(f"{whole}.{decimals}"), "currency", currency=_CURRENCIES[sign]),)

    def currency_name(self, sign: str, amount: str = "2") -> Spoken:
        """The name of a currency, in the plural unless the amount is 1."""
        if self.english:
            one, many = _ENGLISH_CURRENCIES[sign][:2]
            return (one if amount == "1" else many,)
        # num2words has no name of a currency alone; the number before it is taken off.
        number = 1.0 if amount == "1" else 2.0
        words = self._say(number, "currency", currency=_CURRENCIES[sign])
        return words[1:2]

    def _english_money(self, sign: str, whole: int, cents: int) -> tuple[Spoken, ...]:
        one, many, cent, more_cents = _ENGLISH_CURRENCIES[sign]
        large = self._say(whole, "cardinal") + (one if whole == 1 else many,)
        small = self._say(cents, "cardinal") + (cent if cents == 1 else more_cents,)
        if not cents:
            return self._both(large)
        if not whole:
            return (small,)
        short = self._say(whole, "cardinal") + self._say(cents, "cardinal")
        return (*self._both(large + small), large + ("and",) + small, short, large + small[:-1])

    def _parts(self, written: str) -> Spoken:
        """A token that is no single number: a version, an address, a list."""
        spoken: Spoken = ()
        for part in re.findall(r"\d+|\.", written):
            if part != ".":
                spoken += self.readings(part)[0]
            elif self.english:
                spoken += ("point",)
        return spoken

    def _decimal(self, whole: str, decimals: str) -> Spoken:
        if len(whole) > _LONGEST_CARDINAL:
            return self.digits(whole + decimals)
        if self.english:
            return self._say(int(whole or 0), "cardinal") + ("point",) + self.digits(decimals)
        return self._say(float(f"{whole or 0}.{decimals}"), "cardinal")

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


_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _converter(language: str) -> Callable[..., str]:
    known = known_languages()
    if language not in known:
        raise UserError(
            f"alignment.language {language!r} is not a language of num2words; use one of {', '.join(known)}"
        )
    import num2words

    def convert(number: int | float, to: str, **options: str) -> str:
        text: str = num2words.num2words(number, to=to, lang=language, **options)
        return unicodedata.normalize("NFC", text)

    return convert


def known_languages() -> list[str]:
    """Languages that numbers can be spelled out in. Raises `UserError` if num2words is missing."""
    try:
        import num2words
    except ImportError:
        raise UserError(
            "spelling numbers out needs the num2words library; install it with pip install 'tolktrain[audio]'"
        ) from None
    return sorted(num2words.CONVERTER_CLASSES)
