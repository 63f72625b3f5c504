"""Numbers as Chinese speakers say them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align.chinese import cardinals, digits, readings
from tolktrain.prepare.recordings.align.given_times import align_given
from tolktrain.prepare.recordings.align.spoken_numbers import Numbers
from tolktrain.prepare.utterances import EntryError, Word

# From textbooks and newspapers.
SAID = {
    "0": "零", "2": "二 两", "10": "十", "11": "十一", "15": "十五", "20": "二十", "22": "二十二", "99": "九十九",
    "100": "一百", "101": "一百零一", "110": "一百一十 一百一", "112": "一百一十二", "200": "二百 两百",
    "250": "二百五十 两百五十 二百五 两百五", "999": "九百九十九", "1000": "一千", "1001": "一千零一",
    "1010": "一千零一十", "1100": "一千一百 一千一", "2000": "二千 两千", "2008": "二零零八 两千零八",
    "1949": "一九四九 一千九百四十九", "3500": "三千五百 三千五", "10000": "一万", "10001": "一万零一",
    "10010": "一万零一十", "12000": "一万二千 一万二", "20000": "二万 两万", "35000": "三万五千 三万五",
    "100000": "十万", "120,000": "十二万", "1,000,000": "一百万", "1,400,000,000": "十四亿",
    "305000000": "三亿零五百万", "3.14": "三点一四", "0.5": "零点五", "98.6": "九十八点六", "50%": "百分之五十",
    "3.5%": "百分之三点五", "1/3": "三分之一", "2/3": "三分之二", "-20": "负二十", "8:00": "八点 八点整",
    "10:05": "十点零五分 十点零五", "10:15": "十点十五分 十点一刻", "22:30": "二十二点三十分 二十二点半",
    "¥20": "二十元 二十块 二十块钱", "$100": "一百美元", "3-5": "三到五 三至五", "110号": "", "007": "零零七",
    "13912345678": "一三九一二三四五六七八 幺三九幺二三四五六七八",
}  # fmt: skip


@pytest.mark.parametrize("written", SAID)
def test_numbers_as_they_are_said(written: str) -> None:
    assert set(SAID[written].split()) <= set(readings(written))
    assert bool(readings(written)) == bool(SAID[written])


def value_of(said: str) -> int:
    """The number, read from its characters one after the other."""
    total = section = digit = 0
    last = 1
    for char in said.replace("两", "二"):
        if char in "零一二三四五六七八九":
            digit = "零一二三四五六七八九".index(char)
            last = 10 if char == "零" else last
            continue
        unit = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}[char]
        if unit >= 10**4:
            total = (total + section + digit) * unit if unit == 10**8 else total + (section + digit) * unit
            section = 0
        else:
            section += (digit or 1) * unit
        digit, last = 0, unit
    return total + section + digit * (last // 10 if last > 10 else 1)


@given(st.one_of(st.integers(0, 10**5), st.integers(0, 10**12 - 1), st.integers(0, 9999).map(lambda n: n * 10**4)))
def test_each_reading_has_the_value(number: int) -> None:
    for said in cardinals(number):
        assert value_of(said) == number, said
        assert not re.search("零零|零$.|二二[千万亿]|零[十百千万亿]", said)


@given(st.text("0123456789", min_size=1, max_size=12))
def test_digits_are_said_one_by_one(written: str) -> None:
    for said in digits(written):
        assert "".join(str("零一二三四五六七八九".index(char)) for char in said.replace("幺", "一")) == written


@pytest.mark.parametrize(
    ("text", "words", "language", "expected"),
    [
        ("我今年15岁。", "我 今年 十五 岁", "zh", "我@1 今年@2 15@3 岁。@4"),
        ("我今年15岁", "我 今年 十五 岁", "en", "我@1 今年@2 15@3 岁@4"),
        ("买2个", "买 两 个", "zh-CN", "买@1 2@2 个@3"),
        ("2024年3月15日", "二零二四 年 三月 十 五日", "zh", "2024@1 年@2 3月@3 15日@5"),
        ("共10500元", "共 一萬零五百 元", "zh_TW", "共@1 10500@2 元@3"),
        ("涨了15%，", "涨 了 百分之 十五", "zh", "涨@1 了@2 15%，@4"),
        ("二〇〇八 15", "二零零八 十五", "zh", "二〇〇八@1 15@2"),
    ],
)
def test_numbers_in_a_chinese_text(text: str, words: str, language: str, expected: str) -> None:
    aligned = align_given(text, [Word(word, place, place + 1) for place, word in enumerate(words.split())], language)
    assert " ".join(f"{word}@{end:g}" for word, end in zip(aligned.words, aligned.ends, strict=True)) == expected


def test_another_number_is_a_difference() -> None:
    with pytest.raises(EntryError, match="the text has '15' where the times have '五十'"):
        align_given("我15岁", [Word("我", 0, 1), Word("五十", 1, 2), Word("岁", 2, 3)], "zh")


def test_the_language_is_known() -> None:
    Numbers("zh").check()
    Numbers("zh-TW").check()
    with pytest.raises(UserError, match=r"'xx' is not a language of num2words; use one of .*, zh$"):
        Numbers("xx").check()
