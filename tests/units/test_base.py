"""Collapsing repeated frames and expanding them again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.config.errors import UserError
from tolktrain.units.base import LONGEST_RUN, collapse, expand

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
