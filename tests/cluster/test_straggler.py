"""Which rank is called the slowest."""

import pytest

from tolktrain.cluster.straggler import OwnTime, find_slowest


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
