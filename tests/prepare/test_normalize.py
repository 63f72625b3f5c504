"""Written words and what is spoken for them."""

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align.normalize import letters, spoken_words
from tolktrain.prepare.recordings.align.spoken_numbers import Numbers, known_languages

ENGLISH = {
    "Hello,": "hello",
    "it's": "it's",
    "dogs’": "dogs",
    "‘tis": "tis",
    "well-known": "well known",
    "naïve": "naïve",
    "co\u00adop": "coop",
    "foo_bar": "foo bar",
    "$3.50": "three dollars fifty cents",
    "$1": "one dollar",
    "$0.05": "five cents",
    "£2.5m": "two point five million pounds",
    "£1.01": "one pound one penny",
    "5€": "five euros",
    "€": "euros",
    "1984": "nineteen eighty four",
    "2005.": "two thousand and five",
    "984": "nine hundred and eighty four",
    "1,984": "one thousand nine hundred and eighty four",
    "1,234,567.89": "one million two hundred and thirty four thousand five hundred and sixty seven point eight nine",
    "3.14": "three point one four",
    "007": "zero zero seven",
    "-5": "minus five",
    "(-5°C)": "minus five degrees celsius",
    "3rd": "third",
    "21st": "twenty first",
    "1980s": "nineteen eighties",
    "25%": "twenty five percent",
    "10:30": "ten thirty",
    "10:05pm": "ten oh five p m",
    "5:00": "five o'clock",
    "1990-1995": "nineteen ninety to nineteen ninety five",
    "1/2": "one half",
    "3/4": "three quarters",
    "3½": "three and one half",
    "20km": "twenty kilometers",
    "1km": "one kilometer",
    "x²": "x squared",
    "AT&T": "a t and t",
    "rock&roll": "rock and roll",
    "U.S.A.": "u s a",
    "BBC": "b b c",
    "NASA": "nasa",
    "e.g.": "for example",
    "Prof.": "professor",
    "Jr.,": "junior",
    "etc.)": "et cetera",
    "１２": "twelve",
    "٣": "three",
    "10.0.1": "ten point zero point one",
    "12345678901234567": "one two three four five six seven eight nine zero one two three four five six seven",
    "😀": "",
    "❤️": "",
}


def spoken(text: str, language: str = "en") -> list[str]:
    return [" ".join(word.spoken) for word in spoken_words(text, language)]


@pytest.mark.parametrize("written", ENGLISH)
def test_english(written: str) -> None:
    # The second word distinguishes acronyms from a text of capitals only.
    assert spoken(f"{written} so") == [ENGLISH[written], "so"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. No said no. No. 7", "doctor|no|said|no|number|seven"),
        ("St. Paul on Main St. now", "saint|paul|on|main|street|now"),
        ("$5 million! so", "five|million dollars|so"),
        ("Mr and Mrs", "mister|and|missus"),
        ("THE BBC MR", "the|bbc|mister"),
    ],
)
def test_the_neighbours_of_a_word(text: str, expected: str) -> None:
    assert spoken(text) == expected.split("|")


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "3,50€ 1.234,5 1984 25%", "drei euro und fünfzig cent|eintausendzweihundertvierunddreißig komma fünf|"
         "neunzehnhundertvierundachtzig|fünfundzwanzig prozent"),
        ("fr", "21 5€ 3rd", "vingt et un|cinq euros|troisième"),
        ("es", "tú & 7", "tú|y|siete"),
        ("sv", "1984 €", "etttusen niohundraåttiofyra|"),  # num2words has neither years nor money in Swedish
        ("ru", "3,5", "три целых пять десятых"),
    ],
)  # fmt: skip
def test_other_languages(language: str, text: str, expected: str) -> None:
    assert spoken(text, language) == expected.split("|")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He – well ... went", ["He –", "well ...", "went"]),
        ("– – so", ["– – so"]),
        ("...", ["..."]),
        ("a & b", ["a", "&", "b"]),
        ("so 😀 it", ["so", "😀", "it"]),
        ("  ", []),
    ],
)
def test_lone_punctuation_belongs_to_a_word(text: str, words: list[str]) -> None:
    assert [word.text for word in spoken_words(text, "en")] == words


def test_other_ways_to_say_it() -> None:
    """Given times may come with another reading than the likeliest."""

    def readings(text: str) -> set[str]:
        (word,) = spoken_words(text, "en")
        return {" ".join(reading) for reading in word.readings}

    assert {"nineteen eighty four", "one thousand nine hundred eighty four", "one nine eight four"} <= readings("1984")
    assert {"doctor", "drive", "dr"} == readings("Dr.")
    assert {"three dollars fifty cents", "three dollars and fifty cents", "three fifty"} <= readings("$3.50")
    assert {"one hundred and one", "one hundred one", "one oh one"} <= readings("101")
    assert letters(("well", "it's", "naïve")) == "wellitsnaive"


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="0123456789.,:/-–$£€%°½²'& aAmMsS", max_size=40),
    st.lists(st.sampled_from([*ENGLISH, "No.", "St.", "$5", "million", "–", "…"]), max_size=12).map(" ".join),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(known_languages()))
@example("A&²", "en")
@example("a.².", "en")
def test_no_text_crashes_and_no_word_is_lost(text: str, language: str) -> None:
    words = spoken_words(text, language)
    joined = "".join(" " * word.spaced + word.text for word in words)
    assert joined.removeprefix(" ") == " ".join(text.split())
    for word in words:
        assert word.readings[0] == word.spoken
        for token in (token for reading in word.readings for token in reading):
            assert token == token.lower() and not any(char.isspace() or char.isdigit() for char in token)
            assert any(char.isalpha() for char in token)


def test_a_language_that_is_unknown() -> None:
    with pytest.raises(UserError, match="alignment.language 'xx' is not a language of num2words; use one of am, ar"):
        Numbers("xx").check()
    with pytest.raises(UserError, match="'xx'"):
        spoken_words("in 1984", "xx")


def test_num2words_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert spoken("no digits") == ["no", "digits"]
    with pytest.raises(UserError, match=r"num2words library; install it with pip install 'tolktrain\[audio\]'"):
        spoken_words("in 1984", "en")
