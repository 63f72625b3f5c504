"""Writing systems: which write words without blanks, and what two spellings of one word have in common."""

import re
import unicodedata
from functools import lru_cache

# First words of the Unicode names of the characters of scripts that put no blanks between words.
_SYLLABLES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO"})
_UNSPACED = _SYLLABLES | {"KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "TAI"}
# They lengthen or modify the syllable before them.
_SMALL_KANA = frozenset("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮーｰｧｨｩｪｫｬｭｮｯ")
# Accents of Latin, Greek and Cyrillic letters; points of Hebrew; vowel marks and tatweel of Arabic; points of Syriac.
_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0898-\u089f\u08ca-\u08e1\u08e3-\u08ff"
    "\u0711\u0730-\u074a]"
)
# Letters that Unicode does not decompose; the Arabic one is alef with wasla.
_PLAIN = str.maketrans(
    {"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ħ": "h", "ı": "i", "\u0671": "\u0627"}
    | {"〇": "零", "萬": "万", "億": "亿", "兩": "两", "點": "点", "負": "负"}
)
# Marks of half-width kana, and Thai and Lao vowels that Unicode calls letters though they begin over the one before.
_MARKS_BY_USE = frozenset("\uff9e\uff9f\u0e33\u0eb3")
_SPOKEN_PUNCTUATION = frozenset("&%@#§")


@lru_cache(maxsize=1 << 14)
def _script(char: str) -> str:
    return unicodedata.name(unicodedata.normalize("NFKC", char)[:1] or char, "").partition(" ")[0]


def is_unspaced(char: str) -> bool:
    """Whether the character is of a script that puts no blanks between words, as Chinese or Thai."""
    return not char.isascii() and _script(char) in _UNSPACED


def is_syllable(char: str) -> bool:
    """Whether the character alone is spoken as a syllable, as Han characters and kana are."""
    return not char.isascii() and _script(char) in _SYLLABLES and not modifies_syllable(char)


def modifies_syllable(char: str) -> bool:
    """Whether the character is spoken with the one before it, as small kana and the mark of a long vowel are."""
    return char in _SMALL_KANA


def blank_between(before: str, after: str) -> bool:
    """Whether a text has a blank between two words of which only this is known; `before` may be empty."""
    return not any(map(_joins, (before[-1:], after[:1])))


def _joins(char: str) -> bool:
    if not char or char.isascii():
        return False
    wide_punctuation = unicodedata.category(char)[0] == "P" and unicodedata.east_asian_width(char) in "WF"
    return wide_punctuation or is_unspaced(char)


def is_mark(char: str) -> bool:
    """Whether the character belongs to the one before it: a combining mark, a joiner or a zero-width blank."""
    return unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf") or char in _MARKS_BY_USE


def is_punctuation(char: str) -> bool:
    """Whether the character is not spoken: punctuation and controls, without "%" and the like."""
    if unicodedata.category(char)[0] not in "PC":
        return False
    return unicodedata.normalize("NFKC", char) not in _SPOKEN_PUNCTUATION


def clusters(text: str) -> list[str]:
    """The characters of a text, each with the marks that follow it."""
    found: list[str] = []
    for char in text:
        if found and is_mark(char):
            found[-1] += char
        else:
            found.append(char)
    return found


def without_marks(text: str) -> str:
    """The text, lower-case and decomposed, without accents and vowel marks; ligatures as plain letters."""
    if text.isascii():
        return text.lower()
    return _MARKS.sub("", unicodedata.normalize("NFKD", text.casefold()).translate(_PLAIN))


def is_optional_mark(char: str) -> bool:
    """Whether texts of one language are written both with and without this mark, as Arabic vowel marks are."""
    return _MARKS.fullmatch(char) is not None


def unspaced_pieces(token: str) -> list[str]:
    """The parts of a word without blanks that are looked up on their own; joined they are the word.

    One for each character of an unspaced script, and one for each stretch of other letters and digits between them.
    Punctuation belongs to the part before it; opening brackets and quotes to the part after them.
    """
    found: list[str] = []
    opening = ""  # belongs to the next part
    runs = False  # the last part is a stretch that may grow
    parts = clusters(token)
    for place, part in enumerate(parts):
        char = part[0]
        if is_punctuation(char) and not char.isascii() and not _inside_number(parts, place):
            runs = False
            if unicodedata.category(char) in ("Ps", "Pi") or opening or not found:
                opening += part
            else:
                found[-1] += part
            continue
        if (char.isascii() or not is_unspaced(char) or char.isdecimal()) and runs and not opening:
            found[-1] += part
        else:
            found.append(opening + part)
        runs = char.isascii() or not is_unspaced(char) or char.isdecimal()
        opening = ""
    if opening and found:
        found[-1] += opening
    return found or [token]


def _inside_number(parts: list[str], place: int) -> bool:
    """Full-width signs between full-width digits, as in １２．５."""
    around = parts[max(place - 1, 0) : place] + parts[place + 1 : place + 2]
    return len(around) == 2 and all(part[0].isdecimal() and not part.isascii() for part in around)
