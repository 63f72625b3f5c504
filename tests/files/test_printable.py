"""What reaches a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.files.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("id\x1b]52;c;aGk=\x07", "id\\x1b]52;c;aGk=\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb", "a\\x0db"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("naïve 日本語 עברית\tx\ny", "naïve 日本語 עברית\tx\ny"),
        ("क्\u200dष", "क्\u200dष"),
        (7, "7"),
    ],
)
def test_what_is_shown(text: object, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    assert all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in shown)
    shown.encode()  # no lone surrogate
    assert printable(shown) == shown
