"""How English speakers say what is written with digits, signs, units, Roman numerals and abbreviations.

Each rule gives the usual ways to say it, the likeliest first, because texts are compared with what was said.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, product

from tolktrain.prepare.recordings.align.english_words import (
    ABBREVIATIONS,
    ABBREVIATIONS_WITH_PERIOD,
    AMBIGUOUS_UNITS,
    COUNTRIES,
    CURRENCY_CODES,
    CURRENCY_NAMES,
    MAGNITUDE_WORDS,
    MAGNITUDES,
    MONTH_NAMES,
    MONTHS,
    NUMBERED,
    SIGNS,
    UNITS,
)
from tolktrain.prepare.recordings.align.spoken_numbers import CURRENCY_SIGNS, Numbers, Spoken

Readings = tuple[Spoken, ...]
Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], Readings]]

MOST_READINGS = 96

_NUMBER = r"(?:\d+(?:[.,]\d+)*|(?<![\w.])\.\d+)"
_END = r"(?![^\W_])"  # of a stretch of letters and digits
_MAGNITUDE = rf"(?:-?(?i:(k|mn|m|bn|b|tn|[tmb]r?illion|thousand)){_END})?"
_COUNTRY = rf"({'|'.join(COUNTRIES)})?"
_MONEY = rf"{_COUNTRY}([{CURRENCY_SIGNS}])({_NUMBER}){_MAGNITUDE}"
_SECOND_AMOUNT = rf"{_COUNTRY}([{CURRENCY_SIGNS}])?({_NUMBER}){_MAGNITUDE}"
_UNIT_NAMES = "|".join(re.escape(name) for name in sorted(UNITS, key=len, reverse=True))
_UNIT = re.compile(rf"({_UNIT_NAMES})([²³23])?(?:[/p]({_UNIT_NAMES})[²³2]?)?{_END}")
_DASH = "[-–—−]"
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_ROMAN = re.compile(r"(?=[IVXLCDM])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_TELEPHONE = re.compile(
    r"(?:\d{3}-\d{4}|\(\d{3}\)\d{3}-\d{4}|(?=(?:\D?\d){7})\+?\(?\d{1,4}\)?(?:[-.]\d{2,4}){2,})(?![-\d])"
)
_QUANTITY = re.compile(r"\d[\d.,/]*\)?$|(?i:\b(?:hundred|thousand|million|billion|trillion)$)")
_OUTER = "\"'“”‘’()[]{}.,;:!?…"


def plural(word: str) -> str:
    """The regular plural."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith("x") else "s")


def roman_value(text: str) -> int | None:
    """The number that a Roman numeral in capitals means; None if it is none."""
    if not _ROMAN.fullmatch(text):
        return None
    values = [_ROMAN_VALUES[char] for char in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def combined(*parts: Readings) -> Readings:
    """The combinations of the readings of parts; of too many the unlikeliest readings of a part are left out."""
    counts = [len(part) for part in parts]
    while math.prod(counts) > MOST_READINGS and max(counts) > 1:
        counts[counts.index(max(counts))] -= 1
    choices = islice(product(*(part[:count] for part, count in zip(parts, counts, strict=True))), MOST_READINGS)
    return distinct(tuple(word for part in choice for word in part) for choice in choices)


def distinct(readings: Iterable[Spoken]) -> Readings:
    """The readings, each once."""
    return tuple(dict.fromkeys(readings))


def said(*texts: str) -> Readings:
    """Readings from words with blanks between them."""
    return tuple(tuple(text.split()) for text in texts)


@dataclass(frozen=True)
class Context:
    """A written word, cleaned, and the words around it; empty where there are none."""

    before: str
    word: str
    after: str

    @property
    def core(self) -> str:
        """The word without the punctuation around it."""
        return self.word.strip(_OUTER)


class English:
    """The rules of English: of parts of words, tried in order at each place, and of whole words."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self.rules: tuple[Rule, ...] = (
            (re.compile(r"(\d{4})-(\d{2})-(\d{2})(?!\d)"), lambda m: self._date(m[2], m[3], m[1])),
            (re.compile(r"(\d{1,2})([/.])(\d{1,2})\2(\d{4}|\d{2})(?![\d.])"), self._slashed_date),
            (_TELEPHONE, self._telephone),
            (re.compile(rf"{_MONEY}{_DASH}{_SECOND_AMOUNT}"), self._money_range),
            (re.compile(rf"{_MONEY}(?:/([A-Za-z]+))?"), self._money),
            (
                re.compile(rf"({_NUMBER})([{CURRENCY_SIGNS}])"),
                lambda m: self._amount(m[1], "", CURRENCY_NAMES[m[2]]),
            ),
            (re.compile(rf"(\d+)(?:¢|p{_END})"), self._cents),
            (re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?!\d)"), self._time),
            (re.compile(r"(?<=\d):(?=\d)"), lambda m: said("to", "")),
            (re.compile(rf"(?<=\d)([ap])\.?m{_END}\.?", re.IGNORECASE), lambda m: ((m[1].lower(), "m"),)),
            (re.compile(r"(1[1-9]\d\d|20\d\d)[-–/](\d\d)(?![\d/-])"), self._years),
            (re.compile(r"(\d{1,2})'(?:(\d{1,2})(?:\"|''|”)?)?(?![\ds])"), self._feet),
            (re.compile(rf"'?((?:\d\d?)?\d0)'?s{_END}"), self._decade),
            (re.compile(rf"(?<!\d)'(\d\d){_END}"), self._short_year),
            (re.compile(rf"(\d+(?:,\d{{3}})*)(?:st|nd|rd|th){_END}", re.IGNORECASE), self._ordinal),
            (re.compile(r"(\d+)[- ](\d{1,3})/(\d{1,4})(?![/\d])"), self._mixed),
            (re.compile(r"(\d{1,3})/(\d{1,4})(?![/\d])"), lambda m: self._fraction(int(m[1]), int(m[2]))),
            (re.compile(rf"(?<=[\d%m]){_DASH}(?=[{CURRENCY_SIGNS}]?\d)"), self._dash),
            (re.compile(rf"(?<![^\W_])[-−](?=[{CURRENCY_SIGNS}]?\.?\d)"), lambda m: said("minus", "negative", "")),
            (re.compile(rf"°([CF]){_END}"), self._temperature),
            (re.compile(rf"(?<=\d)-?{_UNIT.pattern}"), self._unit),
            (re.compile(rf"(?<=\d)(k|m|mn|bn|b|tn){_END}", re.IGNORECASE), self._magnitude),
            (re.compile(r"(?<=\d)[x×](?=\d)"), lambda m: said("by", "times", "x")),
            (re.compile(rf"(?<=\d)[x×]{_END}"), lambda m: said("times", "x", "by", "fold")),
            (re.compile(rf"({_NUMBER})'?s{_END}"), self._plural),
            (re.compile(_NUMBER), lambda m: numbers.readings(m[0])),
            (re.compile(rf"[{_SUPERSCRIPTS}]+"), self._power),
            (re.compile(r"(?<=\w)\.(?=\w)"), self._dot),
            (re.compile("/"), lambda m: said("", "slash", "or", "per")),
        )

    def word(self, context: Context) -> Readings:
        """Readings of a word as a whole, which may depend on the words around it; none if no rule is for it."""
        return (
            self._abbreviation(context)
            or self._roman(context)
            or self._day(context)
            or self._magnitude_word(context)
            or self._round_number(context)
            or self._unit_word(context)
            or self._code(context)
            or self._fraction_word(context)
        )

    def owed(self, context: Context) -> tuple[str, str] | None:
        """Country and sign of an amount as in "$5 million", of which the currency is spoken after the next word."""
        found = re.search(rf"{_MONEY}(?:{_DASH}{_NUMBER})?\W*$", context.word)
        core = "".join(re.findall(r"[a-z]+", context.after.lower()))
        large = core in MAGNITUDE_WORDS or core in MAGNITUDES
        return (found[1] or "", found[2]) if found and not found[4] and large else None

    def currency(self, country: str, sign: str) -> Readings:
        """What is spoken after the magnitude of such an amount."""
        return self._names(country, CURRENCY_NAMES[sign], many=True)

    def sign(self, char: str) -> Readings:
        """Ways to say a sign; nothing for other characters."""
        if char in CURRENCY_NAMES:
            return said(*CURRENCY_NAMES[char][1::-1])
        return said(*SIGNS.get(char, ("",)))

    # Money.

    def _names(self, country: str, names: tuple[str, ...], many: bool) -> Readings:
        nouns = names[1::-1] if many else names[:2]
        adjectives = [*said(*COUNTRIES[country]), ()] if country else [()]
        yuan = [("yuan",)] if names[0] == "yen" else []
        return distinct([*(adjective + (noun,) for noun in nouns for adjective in adjectives), *yuan])

    def _money(self, found: re.Match[str]) -> Readings:
        amount = self._amount(found[3], found[1] or "", CURRENCY_NAMES[found[2]], (found[4] or "").lower())
        if not found[5]:
            return amount
        per = found[5].lower()
        return combined(amount, said(f"per {per}", f"a {per}", f"an {per}"))

    def _money_range(self, found: re.Match[str]) -> Readings:
        """$5-10 and $5-$10; the currency may be spoken once."""
        country, sign, first, large, _, other_sign, second, other_large = found.groups()
        names = CURRENCY_NAMES[sign]
        start = self._amount(first, country or "", names, (large or "").lower())
        end = self._amount(second, country or "", names, (other_large or "").lower())
        plain = self._numbers.readings(first)[:3]
        return combined((*plain, *start) if not other_sign else (*start[:2], *plain), said("to", "", "through"), end)

    def _amount(self, number: str, country: str, names: tuple[str, ...], magnitude: str = "") -> Readings:
        parsed = self._numbers.parse(number)
        if parsed is not None and len(parsed[1]) == 2 and not magnitude:
            return self._with_cents(int(parsed[0] or 0), int(parsed[1]), country, names)
        plain = self._numbers.readings(number)
        if parsed is not None and parsed[0] and not parsed[1]:
            plain = distinct([*self._numbers.cardinals(int(parsed[0])), *plain])
        if not magnitude:
            return combined(plain, self._names(country, names, many=number != "1"))
        large = combined(plain, said(MAGNITUDES.get(magnitude, magnitude)))
        letter = combined(plain, said(magnitude)) if len(magnitude) < 3 else ()
        return (*combined(large, self._names(country, names, many=True)), *large, *letter)

    def _with_cents(self, whole: int, part: int, country: str, names: tuple[str, ...]) -> Readings:
        cents = combined(self._numbers.cardinals(part)[:1], said(*(names[2:] if part == 1 else names[:1:-1])))
        if not whole:
            return cents
        amount = (*self._numbers.cardinals(whole), *(said("a") if whole == 1 else ()))
        large = combined(amount, self._names(country, names, many=whole != 1))
        if not part:
            return (*large, *amount)
        bare = self._numbers.cardinals(part)[0]
        few = ("oh", *bare) if part < 10 else bare
        ends = [*cents, *(("and", *cent) for cent in cents), bare, few, (*bare, "p")]
        return (*combined(large[:6], tuple(ends)), *combined(amount, (few, bare)))

    def _cents(self, found: re.Match[str]) -> Readings:
        names = ("cents", "cent") if found[0].endswith("¢") else ("pence", "p", "penny")
        return combined(self._numbers.readings(found[1]), said(*names))

    def _code(self, context: Context) -> Readings:
        """USD and the like next to a number."""
        code = CURRENCY_CODES.get(context.core)
        if code is None or not (_QUANTITY.search(context.before.strip(_OUTER)) or context.after[:1].isdigit()):
            return ()
        names = self._names(code[1], CURRENCY_NAMES[code[0]], many=context.before != "1")
        return (*names, tuple(context.core.lower()), ())

    # Dates and times.

    def _day(self, context: Context) -> Readings:
        """The 3 and 3rd of "May 3", "3 May" and "the 3rd of May"."""
        found = re.fullmatch(r"(\d{1,2})(st|nd|rd|th)?", context.core)
        if not found or not 1 <= int(found[1]) <= 31:
            return ()
        ordinals, cardinals = self._numbers.ordinals(found[1])[:1], self._numbers.readings(found[1])
        the = combined((("the",),), ordinals)
        others = () if found[2] else cardinals
        if _month(context.before) and not context.word.startswith(("(", "$")):
            return (*ordinals, *the, *others)
        if _month(context.after) and context.word == context.core:
            of = (("of",),)
            if found[2] or context.before.lower() == "the":
                return (*combined(ordinals, of), *ordinals, *combined(the, of), *the, *others)
            return (*combined(the, of), *combined(ordinals, of), *ordinals, *the, *others)
        return ()

    def _date(self, month: str, day: str, year: str) -> Readings:
        """A date in digits, as its name first where it is possible."""
        digits = combined(*(self._numbers.readings(str(int(part))) for part in (month, day)), self._years_of(year))
        if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
            return digits
        name = ((MONTH_NAMES[int(month) - 1],),)
        number, the, of = self._numbers.ordinals(str(int(day)))[:1], (("the",),), (("of",),)
        years = (*self._years_of(year), ())
        digits = (
            *digits,
            *combined(self._years_of(year), *(self._numbers.readings(str(int(part))) for part in (month, day))),
        )
        american = (*combined(name, number, years), *combined(name, the, number, years))
        return (*american, *combined(the, number, of, name, years), *combined(number, of, name, years), *digits)

    def _slashed_date(self, found: re.Match[str]) -> Readings:
        first, second, year = found[1], found[3], found[4]
        if found[2] == "." and len(year) < 4:
            return (self._numbers.readings(found[0])[0], *self._dotted(found[0]))
        parts = [self._numbers.readings(str(int(part)))[:1] for part in (first, second)]
        slash = (("slash",) if found[2] == "/" else ("dot",),)
        spelled = combined(parts[0], slash, parts[1], slash, self._years_of(year))
        plain = combined(parts[0], parts[1], self._years_of(year))
        day_first = self._date(second, first, year) if int(second) <= 12 else ()
        month_first = self._date(first, second, year) if int(first) <= 12 else ()
        order = (day_first, month_first) if found[2] == "." else (month_first, day_first)
        return distinct([*order[0], *order[1], *plain, *spelled])

    def _dotted(self, number: str) -> Readings:
        first, *others = (self._numbers.readings(part)[:1] for part in number.split("."))
        return combined(first, *(part for other in others for part in (said("dot", ""), other)))

    def _years_of(self, digits: str) -> Readings:
        readings = self._numbers.readings(digits)
        return (*readings, self._numbers.pairs("20" + digits)) if len(digits) == 2 else readings

    def _time(self, found: re.Match[str]) -> Readings:
        hour, minute = int(found[1]), int(found[2])
        say = self._numbers.cardinals
        if found[3]:
            return combined(say(hour), say(minute), say(int(found[3])))
        hours = say(hour)[:1] if hour <= 12 else (*say(hour)[:1], *say(hour - 12)[:1])
        if minute == 0:
            whole = [*combined(hours, said("o'clock")), *hours, *combined(hours, said("hundred", "hundred hours"))]
            return (
                *whole,
                *said(*{0: ("midnight",), 12: ("noon", "midday", "midnight")}.get(hour, ())),
                *combined(hours, said("oh oh")),
            )
        minutes = combined(said("oh", ""), say(minute)) if minute < 10 else say(minute)
        readings = [*combined(hours, minutes)]
        following = say((hour + 1) % 12 or 12)[:1]
        past, until = {15: said("quarter", "a quarter"), 30: said("half")}.get(minute, say(minute)), say(60 - minute)
        if minute == 45:
            until = said("quarter", "a quarter")
        if minute <= 30:
            readings += [*combined(past, said("past", "after"), hours)]
        else:
            readings += [*combined(until, said("to", "till", "before", "of"), following)]
        return distinct([*readings, *combined(hours, said("to", "verse"), say(minute))])

    def _years(self, found: re.Match[str]) -> Readings:
        """1914-18."""
        first, last = self._numbers.readings(found[1])[:2], found[2]
        if int(last) <= int(found[1][2:]):
            return combined(first, said("", "to"), self._numbers.readings(last))
        full = self._numbers.readings(found[1][:2] + last)
        ends = distinct([*self._numbers.readings(last), *full])
        return combined(first, said("to", "", "through", "until"), ends)

    def _decade(self, found: re.Match[str]) -> Readings:
        readings = [_of_many(reading) for reading in self._numbers.readings(found[1])]
        if len(found[1]) == 2 and found[0][0] != "'":
            return distinct(readings)
        century = [("nineteen", *readings[0])] if len(found[1]) == 2 else []
        return distinct([*readings, *century])

    def _short_year(self, found: re.Match[str]) -> Readings:
        two = self._numbers.readings(found[1])
        short = self._numbers.pairs("1" + found[1])[1:]
        return distinct([short, *two, *combined(said("nineteen", "twenty"), (short,))])

    # Numbers.

    def _ordinal(self, found: re.Match[str]) -> Readings:
        return self._numbers.ordinals(found[1].replace(",", ""))

    def _plural(self, found: re.Match[str]) -> Readings:
        """747s; 5s may be seconds."""
        readings = self._numbers.readings(found[1])
        many = [_of_many(reading) for reading in readings if reading]
        return distinct([*many, *combined(readings[:1], said("seconds", "second", "s"))])

    def _mixed(self, found: re.Match[str]) -> Readings:
        part = self._fraction(int(found[2]), int(found[3]))
        return combined(self._numbers.cardinals(int(found[1])), (("and",),), part) + combined(
            self._numbers.cardinals(int(found[1])), part
        )

    def _fraction(self, above: int, below: int) -> Readings:
        top, bottom = self._numbers.readings(str(above)), self._numbers.readings(str(below))
        others = [*combined(top[:1], said("over", "slash", "", "out of", "of"), bottom[:1])]
        if not 0 < above < below or below > 100 and str(below).strip("0") != "1":
            return distinct([*combined(top[:1], bottom[:1]), *others])
        parts = [list(reading) for reading in self._numbers.ordinals(str(below))]
        named = {2: [["half"]], 4: [["quarter"], *parts]}.get(below, parts)
        if above > 1:
            named = [[*part[:-1], "halves" if part == ["half"] else plural(part[-1])] for part in named]
        readings = [start + tuple(part) for part in named for start in top[:1]]
        if above == 1:
            readings += [(article, *part) for part in named if part[0] != "a" for article in ("a", "an")]
            readings += [("half",), ("half", "a"), ("half", "an")] if below == 2 else [tuple(part) for part in named]
        return distinct([*readings, *others])

    def _fraction_word(self, context: Context) -> Readings:
        """The 1/2 of "3 1/2"."""
        found = re.fullmatch(r"(\d{1,2})/(\d{1,3})", context.core)
        if not found or not re.fullmatch(r"\d{1,3}", context.before) or int(found[1]) >= int(found[2]):
            return ()
        readings = self._fraction(int(found[1]), int(found[2]))
        a_part = [reading for reading in readings if reading[0] == "a"]
        return distinct([*(("and", *reading) for reading in (*a_part, *readings)), *readings])

    def _dash(self, found: re.Match[str]) -> Readings:
        """10-20 is a range, 3-2 a result."""
        before = re.search(r"(\d+)[^\d]*$", found.string[: found.start()])
        after = re.match(r"\D*(\d+)(?!.*[-–—−])", found.string[found.end() :])
        if before and after and len(after[1]) >= len(before[1]) and int(after[1]) > int(before[1]):
            return said("to", "", "through", "till", "until", "or", "and", "dash")
        return said("", "to", "through", "dash", "minus")

    def _telephone(self, found: re.Match[str]) -> Readings:
        parts: list[Readings] = [said("plus", "")] if found[0][0] == "+" else []
        for group in re.findall(r"\d+", found[0]):
            spelled = self._numbers.spelled(group) if len(group) > 1 else self._numbers.readings(group)[:1]
            others = self._numbers.readings(group)[:1] if group.endswith("00") else ()
            pairs = (self._numbers.pairs(group),) if len(group) == 4 and group[0] != "0" else ()
            hundreds = group.endswith("00") and group[0] != "0"
            parts.append(distinct([*others, *spelled, *pairs] if hundreds else [*spelled, *pairs]))
        return combined(*parts)

    def _dot(self, found: re.Match[str]) -> Readings:
        """The dot of an address; not spoken where a blank is missing after a sentence."""
        return said("", "dot") if found.string[found.end()].isupper() else said("dot", "point", "")

    def _power(self, found: re.Match[str]) -> Readings:
        power = str(int("".join(str(_SUPERSCRIPTS.index(char)) for char in found[0])))
        ordinal, cardinal = self._numbers.ordinals(power)[0], self._numbers.cardinals(int(power))[0]
        named = {"2": [("squared",)], "3": [("cubed",)]}.get(power, [])
        # Where it is the number of a footnote it is not spoken.
        return (*named, ("to", "the", *ordinal), ("to", "the", "power", "of", *cardinal), ("to", "the", *cardinal), ())

    # Units.

    def _unit(self, found: re.Match[str]) -> Readings:
        number = re.search(r"[\d.,]+$", found.string[: found.start()])
        hyphen = found[0][0] == "-"
        return self._unit_names(found, one=hyphen or (number is not None and number[0] == "1"))

    def _unit_word(self, context: Context) -> Readings:
        """The kg of "10 kg"; the °C of "20 °C" needs no number before it."""
        found = _UNIT.fullmatch(context.core)
        if not found:
            return ()
        quantity = _QUANTITY.search(context.before.strip(_OUTER)) is not None
        literal = ("".join(filter(str.isalpha, context.core.lower())),)
        if not quantity and not found[3] and not found[2] and (found[1] in AMBIGUOUS_UNITS or len(found[1]) == 1):
            return ()
        names = self._unit_names(found, one=context.before in ("1", "one", "a", "an"))
        if not quantity and not found[1].islower():
            return (tuple(literal[0]), *names)  # GB may be Great Britain
        return (literal, *names) if found[0] == "in" and not context.word.endswith(".") else (*names, literal)

    def _unit_names(self, found: re.Match[str], one: bool) -> Readings:
        single, many, *others = UNITS[found[1]]
        names = said(*((single, many) if one else (many, single)), *others)
        if power := found[2]:
            squared = "squared" if power in "²2" else "cubed"
            adjective = "square" if power in "²2" else "cubic"
            names = tuple(form for name in names for form in ((adjective, *name), (*name, squared)))
        if found[3]:
            per = UNITS[found[3]]
            below = [*said(f"per {per[0]}", f"a {per[0]}", f"an {per[0]}", *(f"per {name}" for name in per[1:]))]
            names = combined(names, tuple(below))
        spelled = tuple(char for char in found[0].lower() if char.isalpha())
        return distinct([*names, spelled])

    def _temperature(self, found: re.Match[str]) -> Readings:
        scales = {"C": ("celsius", "centigrade", "c"), "F": ("fahrenheit", "f")}[found[1]]
        return said(*(f"degrees {scale}" for scale in scales), "degrees", *scales, f"degree {scales[0]}", "degree", "")

    def _magnitude(self, found: re.Match[str]) -> Readings:
        return said(MAGNITUDES[found[1].lower()], found[1].lower())

    def _magnitude_word(self, context: Context) -> Readings:
        """The bn of "$10 bn"."""
        core = context.core.lower()
        money = context.before[:1] in CURRENCY_NAMES or context.before[-1:] in CURRENCY_NAMES
        if core not in MAGNITUDES or not _QUANTITY.search(context.before) or (context.core in UNITS and not money):
            return ()
        return said(MAGNITUDES[core], core)

    def _round_number(self, context: Context) -> Readings:
        """The 100 of "a 100 people", and hundreds written as 100s."""
        found = re.fullmatch(r"(100|1,?000|1,?000,?000)(s?)", context.core)
        is_counted = context.before.lower().strip(_OUTER) in ("a", "an", "another")
        if found is None or not (found[2] or is_counted):
            return ()
        name = {3: "hundred", 4: "thousand", 7: "million"}[len(found[1].replace(",", ""))]
        return said(f"{name}s") if found[2] else said(name, f"one {name}", f"a {name}")

    def _feet(self, found: re.Match[str]) -> Readings:
        """6'2" tall."""
        feet = combined(self._numbers.readings(found[1])[:1], said("foot", "feet"))
        if not found[2]:
            return (*feet, self._numbers.readings(found[1])[0])
        inches = self._numbers.readings(found[2])[:1]
        return combined(
            (*feet, *self._numbers.readings(found[1])[:1]), (*inches, *combined(inches, said("inches", "inch")))
        )

    # Words.

    def _roman(self, context: Context) -> Readings:
        """Roman numerals after a name or a word as "chapter"."""
        numeral = context.core.removesuffix("'s")
        value = roman_value(numeral.upper())
        if value is None:
            return ()
        before = context.before.strip(_OUTER)
        numbered = NUMBERED.fullmatch(before) is not None
        name = before[:1].isupper() and not _month(before)
        century = context.after.lower().strip(_OUTER) in ("century", "centuries")
        # "mix" and "I" are words; "CD" and "MD" are abbreviations.
        if (
            numeral != numeral.upper()
            and not numbered
            or not (numbered or name or century or set(numeral) <= set("IVX"))
        ):
            return ()
        literal = [(context.core.lower(),)]
        cardinals = [*self._numbers.readings(str(value))]
        ordinals = [*self._numbers.ordinals(str(value))]
        of_a_name = [*(("the", *ordinal) for ordinal in ordinals), *ordinals, *cardinals]
        if context.core != numeral:
            of_a_name = [(*reading[:-1], reading[-1] + "'s") for reading in of_a_name]
        if numbered:
            readings = [*cardinals, *of_a_name, *literal]
        elif century:
            readings = [*ordinals, *of_a_name, *literal]
        elif name and len(numeral) > 1 and set(numeral) <= set("IVX" if len(numeral) < 3 else "IVXL"):
            readings = [*of_a_name, *literal]
        elif name or len(numeral) == 1:
            readings = [*literal, *of_a_name]
        else:
            readings = [*cardinals, *literal, *of_a_name]
        return distinct(readings)

    def _abbreviation(self, context: Context) -> Readings:
        found = re.fullmatch(r"\W*?([A-Za-z.]*[A-Za-z])(\.?)\W*", context.word)
        if not found:
            return ()
        core, period, after = found[1].lower(), found[2], context.after
        literal = (core.replace(".", ""),)
        before_number = after.lstrip("#№")[:1].isdigit()
        if core in MONTHS and found[1][0].isupper() and (period or before_number or re.match(r"\d", context.before)):
            return ((MONTHS[core],), literal)
        if core in ABBREVIATIONS:
            readings = ABBREVIATIONS[core]
        elif period and core in ABBREVIATIONS_WITH_PERIOD:
            readings = ABBREVIATIONS_WITH_PERIOD[core]
            if core == "st" and not after[:1].isupper():
                readings = readings[::-1]
            elif (
                core in ("p", "pp", "ch", "vol", "fig", "no", "nos")
                and not before_number
                or (
                    core in ("mt", "gen", "col", "capt", "lt", "sgt", "gov", "sen", "rep", "rev")
                    and not after[:1].isupper()
                )
            ):
                return distinct([literal, *said(*readings)])
        else:
            return ()
        return distinct([*said(*readings), literal])


def _month(word: str) -> bool:
    core = word.strip(_OUTER)
    return core[:1].isupper() and (core.lower() in MONTH_NAMES or core.lower() in MONTHS)


def _of_many(reading: Spoken) -> Spoken:
    return (*reading[:-1], plural(reading[-1]))
