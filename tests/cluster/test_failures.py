"""Which rank is the cause, judged from what all ranks report."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from tolktrain.cluster.progress import Progress, Whereabouts
from tolktrain.cluster.watch.failures import (
    CONSEQUENCE_SECONDS,
    SETTLE_SECONDS,
    Cause,
    Kind,
    OtherRankFailed,
    RankState,
    choose,
    find_hang,
    find_missing,
    find_silent,
    is_consequence,
)
from tolktrain.cluster.watch.hub import Limits, RunningClock
from tolktrain.errors import UserError


def state(rank: int, step: int = 3, idle: float = 20, waiting: bool = False, line: str = "") -> RankState:
    at = f"step {step}, adding"
    return RankState(rank, "n1", f"data {rank}", at, (step, 0), idle, line or ("sum" if waiting else "own"), waiting)


@pytest.mark.parametrize(
    ("states", "culprit"),
    [
        ([state(0, waiting=True), state(1), state(2, waiting=True)], 1),
        ([state(0, waiting=True), state(1, step=2, waiting=True), state(2, waiting=True)], 1),  # never reached step 3
        ([state(0, step=4), state(1, step=4), state(2)], 2),
        ([state(0, line="wait"), state(1, line="wait"), state(2, line="sleep")], 2),  # on a GPU
        ([state(0, idle=5), state(1, waiting=True, idle=20)], None),  # slow, but it has just got on
        ([state(0, idle=5), state(1, idle=5)], None),
        ([], None),
    ],
)
def test_the_rank_that_hangs(states: Sequence[RankState], culprit: int | None) -> None:
    cause = find_hang(states, limit=10)
    assert (None if cause is None else cause.rank) == culprit
    if cause is not None:
        assert "no progress for 20 s" in cause.text and "or the cause" not in cause.text
        assert f"step {states[cause.rank].position[0]}, adding (n1, data {cause.rank})" in cause.text


def test_a_finished_rank_does_not_hang() -> None:
    assert find_hang([RankState(0, idle_seconds=99, finished=True), state(1, idle=1)], limit=10) is None


def test_when_all_wait_all_are_named() -> None:
    cause = find_hang([state(0, waiting=True, line="send"), state(1, waiting=True, line="receive")], limit=10)
    assert cause is not None and cause.rank == 0
    assert "as all ranks do" in cause.text and "rank 1 at step 3, adding (n1, data 1), in receive" in cause.text


def test_the_silent_rank() -> None:
    states = {0: state(0), 1: state(1), 2: RankState(2, finished=True)}
    cause = find_silent(states, {0: 95.0, 1: 40.0, 2: 0.0}, now=100.0, limit=60.0)
    assert cause is not None and cause.rank == 1 and "no message for 60 s" in cause.text
    assert find_silent(states, {0: 95.0, 1: 41.0, 2: 0.0}, now=100.0, limit=60.0) is None


def test_the_rank_that_has_not_come() -> None:
    assert find_missing([0, 2], 4, now=9.0, limit=10.0) is None
    cause = find_missing([0, 2], 4, now=10.0, limit=10.0)
    assert cause is not None and cause.rank == 1 and "nor have 1 more" in cause.text
    assert find_missing([0, 1], 2, now=99.0, limit=10.0) is None


def test_what_explains_the_rest_is_the_cause() -> None:
    killed, raised, also, torn = (
        Cause(kind, rank, "", seen=seen)
        for kind, rank, seen in [
            (Kind.ENDED, 3, 1.0),
            (Kind.RAISED, 1, 1.1),
            (Kind.RAISED, 2, 0.9),
            (Kind.CONSEQUENCE, 0, 0.5),
        ]
    )
    assert choose([], 9.0) is None
    assert choose([torn, raised, also, killed], 9.0) is killed
    assert choose([torn, also, raised], 9.0) is raised  # all raise the same: the lowest rank speaks
    assert choose([raised], 1.1 + SETTLE_SECONDS / 2) is None
    assert choose([torn], 0.5 + CONSEQUENCE_SECONDS / 2) is None
    assert choose([torn], 0.6 + CONSEQUENCE_SECONDS) is torn
    assert choose([Cause(Kind.ENDED, 0, "", seen=2.0), killed], 9.0) is killed  # the first death


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (dist.DistBackendError("x"), True),
        (dist.DistStoreError("x"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (OtherRankFailed("rank 0 failed: disk full"), True),
        (UserError("gloo"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("x"), False),
    ],
)
def test_what_looks_like_the_end_of_another_rank(error: Exception, expected: bool) -> None:
    assert is_consequence(error) is expected


def test_marks_are_ordered() -> None:
    progress = Progress()
    positions = [progress.mark.position]
    progress.at("building")
    positions.append(progress.mark.position)
    for step in (1, 2):
        progress.at_step("text", step, "waiting for data")
        positions.append(progress.mark.position)
        progress.at("saving")
        positions.append(progress.mark.position)
    assert positions == sorted(set(positions))
    assert str(progress.mark) == "stage 'text', step 2, saving"


def test_where_the_main_thread_is() -> None:
    found: list[Whereabouts] = []
    looking = threading.Thread(target=lambda: found.append(Whereabouts.of_main_thread()))
    looking.start()
    looking.join()  # in the standard library: of this file the line counts
    assert "in test_where_the_main_thread_is: `looking" in found[0].line and not found[0].waiting


def test_an_instruction_without_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = test_an_instruction_without_a_line.__code__
    frame = SimpleNamespace(f_code=code, f_lineno=None, f_globals={"__name__": "tolktrain.x"}, f_back=None)
    monkeypatch.setattr("tolktrain.cluster.progress.main_frame", lambda: frame)
    line = Whereabouts.of_main_thread().line
    assert line.startswith(f"tolktrain.x:{code.co_firstlineno} in test_an_instruction_without_a_line")


def test_stopped_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 500.0, 501.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    clock = RunningClock(longest_tick=2.0)
    assert [clock.tick() for _ in range(3)] == [1.0, 3.0, 4.0]


def test_rank_0_is_not_flooded() -> None:
    assert Limits(8, 600).beat_seconds == 0.5
    assert Limits(1000, 600).beat_seconds == 5.0
    assert Limits(1000, 10).beat_seconds == 0.5
    assert (Limits(8, 600).silence_seconds, Limits(8, 10).silence_seconds) == (60.0, 10.0)
