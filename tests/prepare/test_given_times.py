"""Given times reach the written words unchanged, or the utterance fails with the place where they differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tolktrain.prepare.recordings.align.given_times import align_given
from tolktrain.prepare.recordings.align.normalize import spoken_words
from tolktrain.prepare.utterances import EntryError, Reason, Word

# No sum or product of round numbers: a time that is computed again would differ in its last bits.
STEP = 0.3700000000000001


def times(words: str) -> list[Word]:
    return [Word(word, (i + 0.1) * STEP, (i + 0.9) * STEP) for i, word in enumerate(words.split())]


def places(text: str | None, words: str) -> list[tuple[str, int]]:
    """Each written word and which given word (from 1) it ends with; 0 for time 0."""
    given_words = times(words)
    aligned = align_given(text, given_words, "en")
    assert aligned.confidence is None and aligned.ends.dtype == np.float64
    number = {word.end: i for i, word in enumerate(given_words, 1)} | {0.0: 0}
    return [(word, number[end]) for word, end in zip(aligned.words, aligned.ends.tolist(), strict=True)]


def detail(text: str | None, words: list[Word]) -> str:
    with pytest.raises(EntryError) as error:
        align_given(text, words, "en")
    assert error.value.reason is Reason.WORD_TIMES
    return error.value.detail


def test_without_a_text_the_given_words_are_it() -> None:
    assert places(None, "It's sil $3.50 <eps> done.") == [("It's", 1), ("$3.50", 3), ("done.", 5)]


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Dr. Smith paid $3.50 – ok?", "DOCTOR SMITH PAID THREE DOLLARS FIFTY CENTS OK", [1, 2, 3, 7, 8]),
        ("a well-known AT&T", "A WELLKNOWN A T AND T", [1, 2, 6]),
        ("He wasn't in New York.", "HE WASNT IN NEWYORK", [1, 2, 3, 4, 4]),
        ("apart of it", "A PART OF IT", [2, 3, 4]),
        ("in 1984, no 101", "in nineteen eighty four no one hundred one", [1, 4, 5, 8]),
        ("in 1984", "in one thousand nine hundred and eighty four", [1, 8]),
        ("in 1984", "in 1984", [1, 2]),
        ("go 😀 on", "go on", [1, 1, 2]),
        ("😀 on", "on", [0, 1]),
        ("Quel naïf Xqzv!", "quel NAIF <unk>", [1, 2, 3]),
        ("one Xqzv three", "one spn three", [1, 2, 3]),
        ("one two", "sil one sp <eps> two sil", [2, 5]),
        ("the sp is", "the sp is", [1, 2, 3]),  # a word, though it can mean silence
        ("St. Paul", "street paul", [1, 2]),
        ("a – b", "a – b", [1, 3]),
    ],
)
def test_written_words_end_with_their_last_given_word(text: str, words: str, expected: list[int]) -> None:
    assert [place for _, place in places(text, words)] == expected


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("a foo c", "a bar c", "the text has 'foo' where the times have 'bar' (word 2 of the text)"),
        ("a b c", "a b", "the text has 'c' where the times have no more words (word 3 of the text)"),
        ("a b", "a b c", "the text has no more words where the times have 'c' (word 2 of the text)"),
        ("two words here", "two <unk>", "the text has 'here' where the times have no more words (word 3 of the text)"),
        ("The bcc said", "the bee c c", "the text has 'bcc' where the times have 'bee' (word 2 of the text)"),
        ("go", "go <unk>", "the text has no more words where the times have '<unk>' (word 1 of the text)"),
        ("apartment b", "a part b", "the text has 'apartment' where the times have 'a part b' (word 1 of the text)"),
        ("a part b", "apartment b", "the text has 'a part b' where the times have 'apartment' (word 1 of the text)"),
        (
            "he carried it",
            "he car- carried it",
            "the text has 'carried' where the times have 'car- carried' (word 2 of the text)",
        ),
        (None, "a <unk> b", "word 2 is '<unk>', which is not in the text"),
        (None, "sil", "there are no words"),
    ],
)
def test_what_differs_is_named(text: str | None, words: str, message: str) -> None:
    assert detail(text, times(words)) == message


def test_a_text_that_is_not_spoken() -> None:
    for text in ("", "...", "😀"):
        with pytest.raises(EntryError) as error:
            align_given(text, times("a"), "en")
        assert error.value.reason is Reason.TEXT


@pytest.mark.parametrize(
    "words",
    [[], [Word("a", 0, 2), Word("b", 1, 1.5)], [Word("a", 0, float("nan"))], [Word("a", 2, 1)], [Word("a", -2, -1)]],
)
def test_times_that_cannot_be(words: list[Word]) -> None:
    detail(None, words)
    detail("a b", words)


VOCABULARY = (
    "foo",
    "bar,",
    "it's",
    "well-known",
    "$3.50",
    "1984",
    "Dr.",
    "😀",
    "–",
    "a",
    "part",
    "apart",
    "25%",
    "No.",
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=10), st.data())
def test_any_reading_of_a_text_matches_it(tokens: list[str], data: st.DataObject) -> None:
    """Times made from the text by the independent rule: its readings in order, one given word for each token."""
    text = " ".join(tokens)
    words, expected = [], []
    for word in spoken_words(text, "en"):
        reading = data.draw(st.sampled_from(word.readings))
        if data.draw(st.booleans()):
            reading = ("".join(reading),) if reading else ()
        for token in reading:
            words.append(Word(token.upper(), len(words) * STEP, (len(words) + 1) * STEP))
        expected.append(words[-1].end if words else 0.0)
    if not words:
        return
    try:
        aligned = align_given(text, words, "en")
    except EntryError as error:
        raise AssertionError(error.detail) from None
    assert " ".join(aligned.words) == text
    # "a part" and "apart" can be read into one another, with other ends.
    if not {"apart", "a"} & set(tokens):
        assert aligned.ends.tolist() == expected


@settings(deadline=None, max_examples=200)
@given(
    st.none() | st.text(max_size=30) | st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join),
    st.lists(st.tuples(st.sampled_from([*VOCABULARY, "<unk>", "sil", "spn", "x"]), st.floats()), max_size=8),
)
def test_anything_gives_an_alignment_or_an_item_error(text: str | None, given_words: list[tuple[str, float]]) -> None:
    words = [Word(word, end, end) for word, end in given_words]
    try:
        aligned = align_given(text, words, "en")
    except EntryError:
        return
    assert len(aligned.words) == len(aligned.ends)
    assert (np.diff(aligned.ends) >= 0).all() and set(aligned.ends.tolist()) <= {0.0, *(word.end for word in words)}


def test_many_unknown_words_do_not_take_forever() -> None:
    text = " ".join(["a", "😀"] * 300)
    assert "no more words" in detail(text, times("sil <unk> " * 601))
