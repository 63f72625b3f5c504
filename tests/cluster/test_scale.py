"""The watchdog with up to 4,096 ranks: what it sends and looks at grows as the number of ranks, and no faster."""

import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from played_ranks import KEY, Crowd, need_files

from tolktrain.cluster.watch import failures
from tolktrain.cluster.watch.failures import Cause, RankState
from tolktrain.cluster.watch.hub import CHECK_SECONDS, Hub, Limits

SIZES = (64, 1024, 4096)

Fit = Callable[[Mapping[int, float]], float]


class Judgements:
    """Counts them, and the states that they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self.begun = time.monotonic()
        find = failures.find_hang

        def counted(states: Collection[RankState], limit: float) -> Cause | None:
            self.number += 1
            return find(states, limit)

        monkeypatch.setattr(failures, "find_hang", counted)

    @property
    def most(self) -> float:
        """As many as there may be by now."""
        return 2 + (time.monotonic() - self.begun) / CHECK_SECONDS


def started(num_ranks: int) -> Hub:
    need_files(2 * num_ranks + 200)
    hub = Hub(Limits(num_ranks), KEY)
    hub.start()
    return hub


@pytest.fixture(scope="module")
def counts() -> dict[int, dict[str, float]]:
    """What is counted of a job of each size that starts, works, and ends since one rank fails."""
    return {}


@pytest.mark.parametrize("num_ranks", SIZES)
def test_a_job_starts_and_ends(
    num_ranks: int, monkeypatch: pytest.MonkeyPatch, counts: dict[int, dict[str, float]], capfd: Any
) -> None:
    judgements = Judgements(monkeypatch)
    hub = started(num_ranks)
    crowd = Crowd(hub.port, range(num_ranks))
    crowd.join()
    crowd.say(lambda rank: rank.state(position=[4, 0]))
    crowd.play(lambda: all(any("deputy" in message for message in rank.heard) for rank in crowd.ranks.values()))
    joined = crowd.num_messages, crowd.num_bytes
    assert judgements.number <= judgements.most
    failing = num_ranks // 2
    crowd.say(lambda rank: {"failure": {"kind": 1, "text": "a defect", "code": 1}}, [failing])
    crowd.play(lambda: all(rank.end is not None for rank in crowd.ranks.values()))
    assert hub.all_notified.wait(300)
    assert {rank.end for rank in crowd.ranks.values()} == {f"rank {failing}: error: a defect"}
    assert hub.table.count("\n") == num_ranks - 1 and "in " in hub.table
    counts[num_ranks] = {
        "messages to join and report": joined[0],
        "bytes to join and report": joined[1],
        "messages of the end": crowd.num_messages - joined[0],
        "bytes of the end": crowd.num_bytes - joined[1],
    }
    crowd.hang_up()
    hub.close()
    assert capfd.readouterr().err == f"rank {failing}: error: a defect\n"


def test_all_of_it_grows_linearly(counts: dict[int, dict[str, float]], growth_exponent: Fit) -> None:
    if len(counts) < 2:
        pytest.skip("fewer than two sizes could be played here")
    for name in next(iter(counts.values())):
        found = {size: count[name] for size, count in counts.items()}
        grown = growth_exponent(found)
        print(f"{name}: {found}, exponent {grown:.3f}")
        assert 0.9 < grown < 1.1, name


def test_a_rank_that_does_not_read_delays_nobody(capfd: Any) -> None:
    """Nor does one that has been stopped for long queue messages that it does not read."""
    hub = started(8)
    crowd = Crowd(hub.port, range(8))
    crowd.join()
    crowd.ranks[3].reads = False
    text = "x" * 90_000
    for _ in range(200):
        crowd.say(lambda rank: rank.state(at="y" * 900), [0, 3])
        crowd.play(lambda: True)
    crowd.say(lambda rank: {"failure": {"kind": 1, "text": text, "code": 2}}, [5])
    others = [rank for rank in crowd.ranks.values() if rank.reads]
    crowd.play(lambda: all(rank.end is not None for rank in others), seconds=20)
    assert {rank.end for rank in others} == {f"rank 5: error: {text}"}
    crowd.ranks[3].reads = True  # what it was sent is still there
    crowd.play(lambda: crowd.ranks[3].end is not None, seconds=20)
    assert hub.all_notified.wait(300)
    crowd.hang_up()
    hub.close()
    assert capfd.readouterr().err == f"rank 5: error: {text}\n"


def quadratic_find_hang(states: Collection[RankState], limit: float) -> tuple[int, list[int]] | None:
    """The definition, word for word: the rank that is named, and how many share its place."""
    suspects = [state for state in states if not state.finished]
    least = min((state.position for state in suspects), default=None)
    suspects = [state for state in suspects if state.position == least]
    suspects = [state for state in suspects if not state.waiting] or suspects
    lines = [state.line for state in suspects]
    rarest = min((lines.count(line) for line in lines), default=0)
    suspects = [state for state in suspects if lines.count(state.line) == rarest and state.idle_seconds >= limit]
    ranks = sorted(state.rank for state in suspects)
    return (ranks[0], ranks[1:]) if ranks else None


def drawn_states(draw: random.Random, number: int) -> list[RankState]:
    return [
        RankState(
            rank,
            at=f"at {rank}",
            position=(draw.choice([3, 3, 4]), draw.randrange(2)),
            idle_seconds=draw.choice([0.0, 9.9, 10.0, 20.0]),
            line=draw.choice(["sum", "read", "write", "wait"]),
            waiting=draw.random() < 0.6,
            finished=draw.random() < 0.1,
        )
        for rank in draw.sample(range(1000), number)
    ]


def test_the_search_for_a_hang_finds_what_its_definition_does() -> None:
    found = 0
    for seed in range(2000):
        draw = random.Random(seed)
        states = drawn_states(draw, draw.randrange(12))
        expected, cause = quadratic_find_hang(states, 10.0), failures.find_hang(states, 10.0)
        if expected is None or cause is None:
            assert cause is None and expected is None
            continue
        found += 1
        first, others = expected
        assert cause.rank == first
        assert all(f"rank {rank} at " in cause.text for rank in others[:3])
        assert (f"one of {len(others)} more" in cause.text) == bool(others)
    assert found > 300


class CountedLine(str):
    """A place in the code that counts how often it is compared or hashed."""

    looked_at = 0

    def __eq__(self, other: object) -> bool:
        type(self).looked_at += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        type(self).looked_at += 1
        return str.__hash__(self)


def looks(find: Callable[[Collection[RankState], float], object], number: int) -> int:
    states = [RankState(rank, idle_seconds=20.0, line=CountedLine(f"line {rank % 5}")) for rank in range(number)]
    CountedLine.looked_at = 0
    assert find(states, 10.0) is not None
    return CountedLine.looked_at


def test_the_search_for_a_hang_is_linear(growth_exponent: Fit) -> None:
    assert growth_exponent({size: looks(failures.find_hang, size) for size in (64, 512, 4096, 8192)}) < 1.05
    assert growth_exponent({size: looks(quadratic_find_hang, size) for size in (64, 512)}) > 1.9


def test_without_a_rank_that_stands_still_places_are_not_compared() -> None:
    states = [RankState(rank, idle_seconds=5.0, line=CountedLine("line")) for rank in range(64)]
    CountedLine.looked_at = 0
    assert failures.find_hang(states, 10.0) is None
    assert CountedLine.looked_at == 0


@pytest.mark.parametrize("hang_seconds", [1.0, 10.0, 600.0, 86_400.0])
@pytest.mark.parametrize("num_ranks", [2, 512, 4096, 65_536])
def test_beats_are_bounded_and_several_fit_into_the_longest_silence(num_ranks: int, hang_seconds: float) -> None:
    limits = Limits(num_ranks, hang_seconds)
    assert num_ranks / limits.beat_seconds <= 2000
    assert limits.silence_seconds >= 4 * limits.beat_seconds


def test_the_hub_does_not_wait_for_a_turn_to_each_connection() -> None:
    """All that have connected come in together, however rarely it judges."""
    hub = Hub(Limits(200), KEY)
    crowd = Crowd(hub.port, range(200))
    turns = 0
    select = hub._selector.select

    def counted(timeout: float | None = None) -> list[Any]:
        nonlocal turns
        turns += 1
        return select(timeout)

    hub._selector.select = counted
    hub.start()
    crowd.join()
    assert turns < 200
    crowd.hang_up()
    hub.close()
