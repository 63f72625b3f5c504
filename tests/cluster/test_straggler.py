"""Which rank is called the slowest."""

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.cluster.straggler import OwnTime, Slowest, find_slowest


def times(*own: tuple[float, float], tensor_size: int = 1, num_stages: int = 1) -> list[OwnTime]:
    """Of ranks in their order: seconds of data and of computing."""
    per_stage = len(own) // num_stages
    return [
        OwnTime(rank, rank // per_stage, rank // tensor_size, data, compute) for rank, (data, compute) in enumerate(own)
    ]


def test_slow_data_and_slow_computing() -> None:
    slowest = find_slowest(times((0.0, 1.0), (0.0, 1.1), (2.0, 1.0), (0.1, 1.0)), step_seconds=5.0)
    assert slowest is not None
    assert (slowest.rank, slowest.group, slowest.part) == (2, (2,), "waiting for data")
    assert slowest.factor == pytest.approx(3.0 / 1.1) and slowest.share == pytest.approx(1.9 / 5)
    slowest = find_slowest(times((0.0, 1.0), (0.0, 1.6), (0.1, 1.0)), step_seconds=5.0)
    assert slowest is not None and (slowest.rank, slowest.part) == (1, "computing")
    assert slowest.matters


def test_what_makes_no_odds_is_no_matter() -> None:
    """Three milliseconds instead of one, in steps of a second; or a tenth more."""
    for own, seconds in ((((0.001, 0.0), (0.003, 0.0)), 1.0), (((0.0, 1.0), (0.0, 1.1)), 1.5)):
        slowest = find_slowest(times(*own), seconds)
        assert slowest is not None and slowest.rank == 1 and not slowest.matters


def test_a_tensor_group_waits_for_its_slow_member() -> None:
    """Rank 2 waits for data, and rank 3 in its forward pass for rank 2. If both compute slowly, either may be it."""
    slowest = find_slowest(times((0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.0, 2.0), tensor_size=2), 5.0)
    assert slowest is not None
    assert (slowest.rank, slowest.group, slowest.part) == (2, (2,), "waiting for data")
    slowest = find_slowest(times((0.0, 1.0), (0.0, 1.0), (0.0, 2.0), (0.0, 2.0), tensor_size=2), 5.0)
    assert slowest is not None
    assert (slowest.group, slowest.part, slowest.factor) == ((2, 3), "computing", 2.0)


def test_stages_are_not_compared_with_each_other() -> None:
    assert find_slowest(times((0.0, 1.0), (0.0, 3.0), num_stages=2), 5.0) is None
    slowest = find_slowest(times((0.0, 1.0), (0.0, 1.2), (0.0, 3.0), (0.0, 3.1), num_stages=2), 5.0)
    assert slowest is not None and slowest.rank == 1


def slowest_by_definition(times: Sequence[OwnTime], step_seconds: float) -> Slowest | None:
    """Each rank compared with each other one, as the definition has it: N^2."""
    least = {
        rank.rank: min(o.compute for o in times if (o.stage, o.waits_with) == (rank.stage, rank.waits_with))
        for rank in times
    }

    found = []
    for time in times:
        others = [other for other in times if other.stage == time.stage and other.rank != time.rank]
        if others:
            compute = least[time.rank]
            usual = median(other.data + least[other.rank] for other in others)
            beyond_data = time.data - median(other.data for other in others)
            slow_data = beyond_data >= compute - median(least[other.rank] for other in others)
            group = [time.rank, *(o.rank for o in others if o.waits_with == time.waits_with and not slow_data)]
            part = "waiting for data" if slow_data else "computing"
            share = (time.data + compute - usual) / max(step_seconds, 1e-9)
            seconds = time.data + compute
            found.append(Slowest(time.rank, tuple(sorted(group)), seconds, usual, time.data, compute, part, share))
    return max(found, key=lambda slowest: (slowest.seconds - slowest.usual, -slowest.rank), default=None)


@given(st.data(), st.integers(2, 40), st.integers(1, 4), st.integers(1, 5))
def test_it_is_the_slowest_by_definition(data: st.DataObject, num_ranks: int, num_stages: int, group_size: int) -> None:
    """Few different values make ties, in the times, their sums and their medians; stages may be of any size."""
    seconds = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 3))
    own = [
        OwnTime(rank, data.draw(st.integers(0, num_stages - 1)), rank // group_size, data.draw(seconds), draw)
        for rank in data.draw(st.permutations(range(num_ranks)))
        for draw in [data.draw(seconds)]
    ]
    assert find_slowest(own, 2.0) == slowest_by_definition(own, 2.0)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_slowest_of_many_by_definition(seed: int) -> None:
    draw = random.Random(seed)
    for num_ranks in (60, 121, 200):
        stages, size = draw.randint(1, 4), draw.choice([1, 2, 8])
        own = [
            OwnTime(
                rank, rank * stages // num_ranks, rank // size, draw.choice([0.0, 0.1, draw.random()]), draw.random()
            )
            for rank in range(num_ranks)
        ]
        assert find_slowest(own, 0.5) == slowest_by_definition(own, 0.5)


class Counted(float):
    """A number that counts what is done with it."""

    done: ClassVar[int] = 0

    def __lt__(self, other: float) -> bool:
        Counted.done += 1
        return float(self) < float(other)

    def __add__(self, other: float) -> "Counted":
        Counted.done += 1
        return Counted(float(self) + float(other))


def test_work_grows_little_faster_than_the_number_of_ranks(
    growth_exponent: Callable[[Mapping[int, float]], float],
) -> None:
    counts: dict[int, float] = {}
    for num_ranks in (512, 1024, 4096, 8192):
        draw = random.Random(num_ranks)
        own = [
            OwnTime(rank, rank * 4 // num_ranks, rank // 2, Counted(draw.random()), Counted(draw.random()))
            for rank in range(num_ranks)
        ]
        Counted.done = 0
        assert find_slowest(own, 1.0) is not None
        counts[num_ranks] = Counted.done
    assert 1.0 <= growth_exponent(counts) <= 1.2, counts
