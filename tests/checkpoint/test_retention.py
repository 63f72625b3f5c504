"""Which checkpoints are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.checkpoint.retention import Candidate, Retention, choose_kept

ALL = [Candidate(step, True, metric) for step, metric in ((100, 3.0), (200, 1.0), (300, 2.0), (400, None), (500, 1.0))]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(last=1), {500}),
        (Retention(last=2), {400, 500}),
        (Retention(last=9), {100, 200, 300, 400, 500}),
        (Retention(last=1, every_steps=200), {200, 400, 500}),
        (Retention(last=1, best=1), {500}),
        (Retention(last=1, best=2), {200, 500}),
        (Retention(last=1, best=3), {200, 300, 500}),
        (Retention(last=2, every_steps=300, best=2), {200, 300, 400, 500}),
    ],
    ids=lambda value: "-".join(map(str, sorted(value))) if isinstance(value, set) else str(value),
)
def test_newest_regular_and_best(retention: Retention, kept: set[int]) -> None:
    assert choose_kept(ALL, retention) == kept
    assert choose_kept(ALL[::-1], retention) == kept


def test_incomplete_ones_push_out_no_good_one() -> None:
    candidates = [*ALL, Candidate(600, False), Candidate(50, False, 0.1), Candidate(700, False, float("nan"))]
    assert choose_kept(candidates, Retention(last=2, best=1)) == {400, 500, 600, 700}
    assert choose_kept([Candidate(1, False), Candidate(2, False)], Retention(last=1)) == {1, 2}


@given(
    st.lists(
        st.builds(Candidate, st.integers(1, 40), st.booleans(), st.none() | st.floats(-5, 5)),
        unique_by=lambda candidate: candidate.step,
    ),
    st.builds(Retention, st.integers(1, 4), st.none() | st.integers(1, 9), st.integers(0, 3)),
)
def test_a_good_one_is_always_kept(candidates: list[Candidate], retention: Retention) -> None:
    kept = choose_kept(candidates, retention)
    good = {candidate.step for candidate in candidates if candidate.complete}
    assert kept <= {candidate.step for candidate in candidates}
    assert not good or max(good) in kept
    assert len(good & kept) >= min(len(good), retention.last)
