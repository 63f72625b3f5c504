"""Numbers as they are spoken in Chinese, for which num2words has no rules.

Characters are simplified; `scripts.without_marks` makes traditional ones of numbers equal to them.
"""

import re

from tolktrain.prepare.recordings.align.scripts import is_syllable

LANGUAGES = frozenset({"zh", "cmn", "yue"})
DIGITS = "零一二三四五六七八九"

_UNITS = ((10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十"))
_CURRENCIES = {"$": "美元", "€": "欧元", "£": "英镑", "¥": "元", "₩": "韩元", "₽": "卢布", "₹": "卢比"}
_OTHER_NAMES = {"$": ("美金",), "¥": ("块", "块钱", "人民币", "日元")}
_LARGEST = 10**16
_OUTER = "\"'“”‘’()[]{}（）《》「」『』.,;:!?。，、；：！？…"
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"


def is_chinese(language: str) -> bool:
    """Whether the name of a language, such as zh or zh-TW, is one of Chinese."""
    return re.split("[-_]", language.lower())[0] in LANGUAGES


def beside_chinese(before: str, after: str) -> bool:
    """Whether a word with these neighbours is between characters that Chinese may be written with."""
    return is_syllable(before[-1:] or " ") or is_syllable(after[:1] or " ")


def readings(word: str) -> tuple[str, ...]:
    """Ways to say what is written with digits: a number, an amount, a share, a time, a fraction, a range.

    Empty if it is none of these.
    """
    word = word.strip(_OUTER)
    if re.fullmatch(_NUMBER, word):
        return _number(word)
    signs = "".join(_CURRENCIES)
    for pattern, say in (
        (rf"({_NUMBER})%", lambda m: tuple(f"百分之{said}" for said in _number(m[1]))),
        (rf"-({_NUMBER})", lambda m: tuple(f"负{said}" for said in _number(m[1]))),
        (r"(\d+)/(\d+)", lambda m: _joined(m[2], "分之", m[1])),
        (rf"({_NUMBER})\s*[-~～–]\s*({_NUMBER})", lambda m: (*_joined(m[1], "到", m[2]), *_joined(m[1], "至", m[2]))),
        (rf"([{signs}])({_NUMBER})", lambda m: _amount(m[1], m[2])),
        (rf"({_NUMBER})([{signs}])", lambda m: _amount(m[2], m[1])),
        (r"(\d{1,2}):([0-5]\d)", lambda m: _time(int(m[1]), int(m[2]))),
    ):
        found = re.fullmatch(pattern, word)
        if found:
            return say(found)
    return ()


def cardinals(number: int) -> tuple[str, ...]:
    """Ways to say a whole number below 10^16: 一百五十, 一百五; 二千, 两千; 十五, 一十五."""
    assert 0 <= number < _LARGEST
    full = _say(number)
    begun = full.removeprefix("一") if full.startswith("一十") else full
    found = [begun, full]
    # The last unit is left out if it follows from the one before it: 一千五 is 1500.
    short = re.fullmatch(r"(.*(?:百|千|万)[一二三四五六七八九])[十百千]", begun)
    if short and re.search(r"(百.十|千.百|万.千)$", begun):
        found.append(short[1])
    for said in tuple(found):
        found += [re.sub("二(?=[千万亿])", "两", said), re.sub("二(?=[百千万亿])", "两", said)]
    return tuple(dict.fromkeys(["二", "两"] if number == 2 else found))


def digits(written: str) -> tuple[str, ...]:
    """Ways to say digits one by one; 1 is 幺 in the numbers of telephones and rooms."""
    plain = "".join(DIGITS[int(digit)] for digit in written)
    return tuple(dict.fromkeys((plain, plain.replace("一", "幺"))))


def _say(number: int) -> str:
    for unit, name in _UNITS:
        if number >= unit:
            high, low = divmod(number, unit)
            zero = "零" if 0 < low < unit // 10 else ""
            return _say(high) + name + zero + (_say(low) if low else "")
    return DIGITS[number]


def _number(written: str) -> tuple[str, ...]:
    whole, _, decimals = written.replace(",", "").partition(".")
    leading_zero = len(whole) > 1 and whole[0] == "0"
    said = () if leading_zero or int(whole) >= _LARGEST else cardinals(int(whole))
    if decimals:
        return tuple(f"{one}点{digits(decimals)[0]}" for one in said or digits(whole))
    return tuple(dict.fromkeys((*said, *(digits(whole) if len(whole) > 1 else ()))))


def _joined(first: str, between: str, second: str) -> tuple[str, ...]:
    return tuple(f"{one}{between}{other}" for one in _number(first)[:3] for other in _number(second)[:3])


def _amount(sign: str, written: str) -> tuple[str, ...]:
    names = (_CURRENCIES[sign], *_OTHER_NAMES.get(sign, ()))
    return tuple(said + name for name in names for said in _number(written))


def _time(hours: int, minutes: int) -> tuple[str, ...]:
    found = []
    for hour in cardinals(hours):
        if not minutes:
            found += [f"{hour}点", f"{hour}点整"]
            continue
        minute = ("零" if minutes < 10 else "") + cardinals(minutes)[0]
        found += [f"{hour}点{minute}分", f"{hour}点{minute}", f"{hour}点{cardinals(minutes)[0]}分"]
        found += [f"{hour}点半"] if minutes == 30 else []
        found += [f"{hour}点{cardinals(minutes // 15)[0]}刻"] if minutes in (15, 45) else []
    return tuple(dict.fromkeys(found))
