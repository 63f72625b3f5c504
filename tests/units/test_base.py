"""Collapsing repeated frames and expanding them again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tolktrain.errors import UserError
from tolktrain.units.base import LONGEST_RUN, check_units, collapse, expand

FRAMES = st.integers(1, 3).flatmap(
    lambda codebooks: st.lists(st.tuples(*[st.integers(0, 3)] * codebooks), max_size=60).map(
        lambda rows: np.array(rows, np.uint16).reshape(len(rows), codebooks)
    )
)


@given(FRAMES)
def test_expand_inverts_collapse(frames: np.ndarray) -> None:
    units, runs = collapse(frames)
    assert units.dtype == runs.dtype == np.uint16
    assert np.array_equal(expand(units, runs), frames)
    assert int(runs.sum()) == len(frames)
    assert (units[1:] != units[:-1]).any(axis=1).all()  # no repeat is left


@given(
    st.integers(1, 4).flatmap(
        lambda codebooks: st.lists(
            st.tuples(
                st.tuples(*[st.sampled_from([0, 1, 499, 65_535])] * codebooks),
                st.sampled_from([1, 2, LONGEST_RUN - 1, LONGEST_RUN, LONGEST_RUN + 1, 3 * LONGEST_RUN]),
            ),
            min_size=1,
            max_size=4,
        )
    )
)
@settings(max_examples=60)
def test_long_silence_survives(runs: list[tuple[tuple[int, ...], int]]) -> None:
    frames = np.repeat(np.array([row for row, _ in runs], np.uint16), [length for _, length in runs], axis=0)
    units, lengths = collapse(frames)
    assert np.array_equal(expand(units, lengths), frames)
    assert int(lengths.sum(dtype=np.int64)) == len(frames)
    # A repeat is left only where the run before it is full.
    repeats = (units[1:] == units[:-1]).all(axis=1)
    assert (lengths[:-1][repeats] == LONGEST_RUN).all()
    assert (lengths > 0).all()


def test_runs_beyond_uint16_are_split() -> None:
    frames = np.repeat(np.array([[7], [3]]), [2 * LONGEST_RUN + 5, LONGEST_RUN], axis=0)
    units, runs = collapse(frames)
    assert units[:, 0].tolist() == [7, 7, 7, 3]
    assert runs.tolist() == [LONGEST_RUN, LONGEST_RUN, 5, LONGEST_RUN]
    assert np.array_equal(expand(units, runs), frames)


@pytest.mark.parametrize("value", [-1, 65_536])
def test_units_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(UserError, match="between 0 and 65,535"):
        collapse(np.array([[value]]))


def test_shapes_are_checked() -> None:
    with pytest.raises(UserError, match="shape"):
        collapse(np.zeros(3, np.uint16))
    with pytest.raises(UserError, match="do not fit"):
        expand(np.zeros((3, 1), np.uint16), np.ones(2, np.uint16))


def test_units_outside_a_vocabulary() -> None:
    check_units(np.array([[0, 7]]), 8, 2)
    check_units(np.zeros((0, 2), np.uint16), 8, 2)
    for bad in (np.array([[0, 8]]), np.array([[-1, 0]])):
        with pytest.raises(UserError, match="between 0 and 7"):
            check_units(bad, 8, 2)
    with pytest.raises(UserError, match=r"\[frames, 2\]; got \(1, 1\)"):
        check_units(np.array([[0]]), 8, 2)
