"""Which data step a training step reads, against the list of those that are left."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tolktrain.data.skipping import SkippedSteps

RANGES = st.lists(st.builds(lambda begin, length: range(begin, begin + length), st.integers(0, 30), st.integers(0, 9)))


@given(RANGES, st.integers(0, 20))
def test_every_step_reads_the_next_one_that_is_left(ranges: list[range], start: int) -> None:
    skipped = SkippedSteps(ranges)
    left = [step for step in range(200) if not any(step in one for one in ranges)]
    assert [skipped.data_step(step) for step in range(60)] == left[:60]
    read = [
        step
        for begin, end in skipped.segments(start)
        for step in itertools.takewhile(lambda step, end=end: end is None or step < end, range(begin, 200))  # type: ignore[misc]
    ]
    assert read == left[start:]
    assert all(end is None or begin < end for begin, end in skipped.segments(start))
