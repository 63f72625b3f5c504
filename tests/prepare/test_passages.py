"""Utterances joined to passages."""

from typing import Any

import numpy as np
import pytest

from tolktrain.config.prepare import PassagesConfig
from tolktrain.data.records import Record
from tolktrain.prepare.job.passages import PassageBuilder, Piece

ARRAYS = (
    "text_ids",
    "units",
    "run_lengths",
    "word_text_ends",
    "word_unit_ends",
    "utterance_text_ends",
    "utterance_unit_ends",
)


def builder(tokens: int, shortest: int = 1) -> PassageBuilder:
    return PassageBuilder(PassagesConfig(tokens=tokens, shortest_tokens=shortest), "voice")


def aligned(name: str, text: list[int], units: list[int], text_ends: list[int], unit_ends: list[int]) -> Piece:
    column = np.array(units)[:, None]
    runs = np.full(len(units), 2)
    return Piece(name, np.array(text), column, runs, np.array(text_ends), np.array(unit_ends))


def assert_record(record: Record | None, **expected: Any) -> None:
    assert record is not None
    assert (record.id, record.source) == (expected.pop("id"), "voice")
    for name in ARRAYS:
        assert getattr(record, name).tolist() == expected.get(name, []), name
    types = {name: getattr(record, name).dtype for name in ARRAYS}
    assert types == {name: np.uint16 if name in ("units", "run_lengths") else np.uint32 for name in ARRAYS}


def test_aligned_utterances_become_one_record() -> None:
    pieces = builder(tokens=8)
    assert pieces.add(aligned("a", [5, 6, 7], [1, 2, 3, 4], [1, 3], [3, 4])) is None  # 4 text, 5 speech with EOS
    assert pieces.add(aligned("b", [8, 9, 10], [7, 8, 9], [2, 3], [1, 3])) is None  # 8 and 9
    (record,) = pieces.rest()
    assert_record(
        record,
        id="a",
        text_ids=[5, 6, 7, 8, 9, 10],
        units=[[1], [2], [3], [4], [7], [8], [9]],
        run_lengths=[2] * 7,
        word_text_ends=[1, 3, 5, 6],
        word_unit_ends=[3, 4, 5, 7],
        utterance_text_ends=[3, 6],
        utterance_unit_ends=[4, 7],
    )
    record.check(text_vocab_size=11, num_units=10)
    assert pieces.rest() == [] and pieces.dropped == []


def test_both_modalities_must_be_long_enough() -> None:
    pieces = builder(tokens=4)
    for name, length in (("a", 8), ("b", 2), ("c", 9)):  # with EOS, 9 and 2, then 12 and 4; then 10 and 2
        assert pieces.add(Piece(name, np.arange(1, length + 1), np.ones((1, 1)), np.ones(1))) is None
    first, second = pieces.rest()
    assert first.utterance_text_ends.tolist() == [8, 10] and second.id == "c"


def test_text_alone_and_speech_alone() -> None:
    pieces = builder(tokens=4)
    assert pieces.add(Piece("a", text_ids=np.array([1]))) is None
    assert pieces.add(Piece("b", text_ids=np.array([2]))) is None
    assert_record(pieces.rest()[0], id="a", text_ids=[1, 2], utterance_text_ends=[1, 2])
    units = np.array([[1, 2], [3, 4], [5, 6]])
    assert pieces.add(Piece("c", units=units, run_lengths=np.array([1, 9, 1]))) is None
    assert_record(pieces.rest()[0], id="c", units=units.tolist(), run_lengths=[1, 9, 1], utterance_unit_ends=[3])


@pytest.mark.parametrize("length", [2, 3])
def test_a_source_is_kept_unless_it_is_too_short(length: int) -> None:
    pieces = builder(tokens=100, shortest=7)
    pieces.add(Piece("a", text_ids=np.ones(50), units=np.ones((2, 1)), run_lengths=np.ones(2)))
    pieces.add(Piece("b", text_ids=np.ones(1), units=np.ones((length, 1)), run_lengths=np.ones(length)))
    records = pieces.rest()  # of speech, with EOS, 3 and `length` + 1
    if length == 2:
        assert records == [] and pieces.dropped == ["a", "b"]
    else:
        assert [record.num_utterances for record in records] == [2] and pieces.dropped == []
    assert pieces.rest() == []


def test_each_passage_starts_afresh_and_comes_with_the_next_one() -> None:
    pieces = builder(tokens=3)
    given = [pieces.add(Piece(name, text_ids=np.array([4, 5]))) for name in "abc"]
    assert given[0] is None
    records = [record for record in given if record is not None] + pieces.rest()
    assert [record.id for record in records] == ["a", "b", "c"]
    assert [record.utterance_text_ends.tolist() for record in records] == [[2], [2], [2]]


@pytest.mark.parametrize(("rest", "passages"), [(3, [[9, 12]]), (4, [[9], [4]])])
def test_less_than_half_a_passage_lengthens_the_one_before(rest: int, passages: list[list[int]]) -> None:
    pieces = builder(tokens=10)
    for name, length in (("a", 9), ("b", rest)):
        assert pieces.add(Piece(name, text_ids=np.ones(length))) is None
    assert [record.utterance_text_ends.tolist() for record in pieces.rest()] == passages and not pieces.dropped
