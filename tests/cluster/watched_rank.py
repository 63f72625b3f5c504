"""A rank that trains nothing, watched over as `tolktrain train` is: it adds numbers with the others, step by step.

Usage, under torchrun: watched_rank.py FOLDER FAILURE RANK HANG_SECONDS.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from tolktrain.cluster.dump import DumpFile
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.watch import failures
from tolktrain.cluster.watch.watchdog import EndTimeouts, Watch, collective_timeout
from tolktrain.errors import UserError

NUM_STEPS = 5
FAILING_STEP = 3


def in_a_process(environ: Mapping[str, str], folder: Path, failure: str, failing_rank: int, hang_seconds: float) -> int:
    """What a launcher would start: ends the process."""
    os.environ.update(environ)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{environ['RANK']}", os.O_WRONLY | os.O_CREAT), number)
    sys.exit(run(folder, failure, failing_rank, hang_seconds))


def run(folder: Path, failure: str, failing_rank: int, hang_seconds: float) -> int:
    """Work under a watch; `failure` is what happens to the rank in step 3, or before the first one."""
    environment = ProcessEnvironment.detect()
    watch = Watch.start(environment, _describe, EndTimeouts(unwind_seconds=0.5, linger_seconds=1.0))
    full = failure.endswith("without a disk")
    watch.progress.log = DumpFile(Path("/dev/full") if full else folder / f"log-{environment.rank}")
    try:
        try:
            _work(watch, environment, folder, failure, failing_rank, hang_seconds)
        finally:
            if failure == "tidy" and environment.rank == failing_rank:
                time.sleep(10_000)
    except Exception as error:
        watch.fail(error)
    if failure != "leave together":
        return watch.finish(0)
    (folder / f"finishing-{environment.rank}").touch()
    while environment.rank == failing_rank and not (folder / "go").exists():
        time.sleep(0.02)
    return watch.finish(75)


def _describe(error: BaseException) -> tuple[str, int]:
    return f"{type(error).__name__}: {error}", 2 if isinstance(error, UserError) else 1


def _work(
    watch: Watch, environment: ProcessEnvironment, folder: Path, failure: str, failing_rank: int, hang_seconds: float
) -> None:
    mine = environment.rank == failing_rank
    if failure == "early" and mine or failure == "all early":
        raise UserError("bad from the start")
    if failure == "leave" and mine:
        _report(watch, "")
        os._exit(0)
    environment.export()
    watch.progress.at("joining")
    dist.init_process_group("gloo", timeout=collective_timeout(60))
    watch.progress.settle(f"data {environment.rank}")
    for step in range(1, NUM_STEPS + 1):
        watch.progress.at_step("second", step, "adding")
        if step == FAILING_STEP:
            watch.limit(hang_seconds)  # not before: to start may take longer than the test should
            with watch.progress.failing():
                _go_wrong(watch, folder, failure, environment.rank, failing_rank)
        dist.all_reduce(torch.ones(1))
        watch.progress.at("after adding")
    dist.destroy_process_group()


def _report(watch: Watch, place: str) -> None:
    """Let the others know where this rank is: it has joined them when this returns."""
    _wait(lambda: watch._wire is not None)
    watch.progress.settle(place)


def _let_it_expect_life(watch: Watch) -> None:
    """Let the watch begin, or prolong, the time after which it writes down where this rank is stuck."""
    expected, expect = threading.Event(), watch._expect_life

    def arm_timeout() -> None:
        expect()
        expected.set()

    watch._expect_life = arm_timeout  # type: ignore[method-assign]
    expected.wait()


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def _fail(*_: object) -> NoReturn:
    raise MemoryError("the memory is full")


def _go_wrong(watch: Watch, folder: Path, failure: str, rank: int, failing_rank: int) -> None:
    mine = rank == failing_rank
    if failure == "all refuse" or failure == "refuse" and mine:
        raise UserError("of no use")
    if failure == "defect" and mine:
        raise ZeroDivisionError("a defect")
    if failure == "tidy" and mine:
        raise ValueError("tidied up for long")
    if failure == "stuck in C" and mine:
        _let_it_expect_life(watch)
        ctypes.PyDLL(None).sleep(10_000)  # with Python's lock, so that no other thread of this process runs
    if failure == "signal" and mine:
        _report(watch, f"data {rank}")
        if rank != 0:
            (folder / "ready").touch()
        time.sleep(10_000)
    if failure == "signal" and failing_rank == 0 and rank == 1:
        _wait(lambda: f"step {FAILING_STEP}" in watch._first)  # it speaks for rank 0 when that has gone
        (folder / "ready").touch()
    if failure in ("sleep", "sleep without a disk") and mine:
        time.sleep(10_000)
    if failure == "watch fails" and mine:
        watch._expect_life = failures.find_silent = _fail  # of each rank, and rank 0's judgement
        time.sleep(10_000)
    if failure == "different ways" and mine:
        dist.recv(torch.ones(1), src=(rank + 1) % dist.get_world_size())


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
