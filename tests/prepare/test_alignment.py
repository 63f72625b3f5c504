"""Words among collapsed units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align.units import frame_ends, unit_ends


def test_ends_are_the_nearest_boundaries() -> None:
    runs = np.array([1, 4, 1, 2, 2], np.uint16)  # boundaries at frames 1, 5, 6, 8, 10
    assert unit_ends(np.array([2, 7, 10]), runs).tolist() == [1, 4, 5]
    assert unit_ends(np.array([4, 6, 10]), runs).tolist() == [2, 3, 5]


def test_a_word_inside_a_run_still_gets_a_unit() -> None:
    runs = np.array([10, 1, 1], np.uint16)
    assert unit_ends(np.array([3, 6, 12]), runs).tolist() == [1, 2, 3]
    assert unit_ends(np.array([11, 12, 12]), runs).tolist() == [1, 2, 3]


@given(st.data())
def test_ends_rise_to_the_last_unit(data: st.DataObject) -> None:
    runs = np.array(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=40)), np.uint16)
    total = int(runs.sum())
    count = data.draw(st.integers(1, len(runs)))
    words = sorted(data.draw(st.lists(st.integers(0, total), min_size=count, max_size=count)))
    words[-1] = total
    ends = unit_ends(np.array(words), runs)
    assert ends[0] >= 1 and ends[-1] == len(runs) and (np.diff(ends) >= 1).all()
    # Where the words leave room, no end is further away than half a run.
    boundaries = np.cumsum(runs.astype(np.int64))
    nearest = np.array([np.abs(boundaries - word).min() for word in words])
    # Of two that are equally near the later one.
    wanted = np.array([len(runs) - np.abs(boundaries - word)[::-1].argmin() for word in words])
    if (np.diff(wanted) >= 1).all():
        assert np.array_equal(np.abs(boundaries[ends - 1] - words), nearest)


def test_fewer_units_than_words() -> None:
    with pytest.raises(UserError, match="2 words have only 1 units"):
        unit_ends(np.array([1, 2]), np.array([2], np.uint16))


def test_frame_ends_are_rounded_and_the_last_word_has_the_rest() -> None:
    ends = frame_ends(np.array([882 * 2 + 400, 882 * 3 + 500, 882 * 5]), 22_050, 25, 6)
    assert ends.tolist() == [2, 4, 6]


def test_no_words_have_no_ends() -> None:
    assert frame_ends(np.zeros(0), 22_050, 25, 6).tolist() == []
    assert unit_ends(np.zeros(0, np.int64), np.array([2, 3], np.uint16)).tolist() == []
