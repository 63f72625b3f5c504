"""However a rank fails, all end, and one message says which and why."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import watched_rank
from ports import free_port

NUM_RANKS = 3
HANG_SECONDS = 1.5  # long enough for a rank that lives to be heard of, where no more processes run than there are CPUs
KILLED = -signal.SIGKILL
ENDED = "error: the process ended without a report, killed (kill -9, out of memory) or crashed. Last state:"


def hang_seconds() -> float:
    """As many times `HANG_SECONDS` as processes share a CPU at present."""
    return HANG_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass
class Job:
    """Ranks as srun starts them: each by itself, knowing its place; rank 0 keeps the rendezvous."""

    folder: Path
    ranks: list[BaseProcess]

    def signal_when_ready(self, rank: int, number: signal.Signals) -> None:
        """Once this rank is in the step that goes wrong."""
        deadline = time.monotonic() + 300
        while not (self.folder / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(self.ranks[rank].pid or 0, number)

    def end(self, *ranks: int) -> list[int | None]:
        """Exit codes when all have ended, each None if it does not."""
        processes = [self.ranks[rank] for rank in ranks or range(len(self.ranks))]
        for process in processes:
            process.join(300)
        return [process.exitcode for process in processes]

    def log(self, rank: int) -> str:
        """What a rank's watch has written to its log."""
        return (self.folder / f"log-{rank}").read_text()

    def errors(self) -> str:
        """What all ranks have written to stderr."""
        return "".join((self.folder / f"err-{rank}").read_text() for rank in range(len(self.ranks)))


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a job of `watched_rank`."""
    processes: list[BaseProcess] = []

    def go(failure: str, failing_rank: int = 1, hang_seconds: float = 60) -> Job:
        context = multiprocessing.get_context("forkserver")
        port = free_port()
        for rank in range(NUM_RANKS):
            environ = {"RANK": rank, "WORLD_SIZE": NUM_RANKS, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
            texts = {name: str(value) for name, value in environ.items()}
            arguments = (texts, tmp_path, failure, failing_rank, hang_seconds)
            processes.append(context.Process(target=watched_rank.in_a_process, args=arguments, daemon=True))
            processes[-1].start()
        return Job(tmp_path, processes)

    yield go
    for process in processes:
        if process.is_alive():
            process.kill()


def test_ranks_that_do_not_fail(start: Start) -> None:
    job = start("none")
    assert job.end() == [0, 0, 0]
    assert job.errors() == ""


@pytest.mark.parametrize(
    ("failure", "rank", "code", "message"),
    [
        ("early", 1, 2, "rank 1: error: UserError: bad from the start"),
        ("all early", 0, 2, "rank 0: error: UserError: bad from the start"),
        ("refuse", 2, 2, "rank 2: error: UserError: of no use"),
        ("all refuse", 0, 2, "rank 0: error: UserError: of no use"),
        ("defect", 0, 1, "rank 0: error: ZeroDivisionError: a defect"),
        ("defect", 1, 1, "rank 1: error: ZeroDivisionError: a defect"),
        ("tidy", 1, 1, "rank 1: error: ValueError: tidied up for long"),
    ],
)
def test_a_rank_that_raises(start: Start, failure: str, rank: int, code: int, message: str) -> None:
    job = start(failure, rank)
    assert job.end() == [code] * NUM_RANKS
    assert job.errors() == f"{message}\n"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_killed(start: Start, rank: int) -> None:
    job = start("signal", rank)
    job.signal_when_ready(rank, signal.SIGKILL)
    codes = job.end()
    assert codes.pop(rank) == KILLED and codes == [1, 1]
    assert job.errors().startswith(f"rank {rank}: {ENDED} stage 'second', step 3, adding ({socket.gethostname()}, data")
    assert job.errors().count("\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_sleeps(start: Start, rank: int) -> None:
    job = start("sleep", rank, hang_seconds=hang_seconds())
    assert job.end() == [1, 1, 1]
    assert f"rank {rank}: error: no progress for " in job.errors()
    assert "at stage 'second', step 3, adding" in job.errors() and "in _go_wrong: `time.sleep(10_000)`" in job.errors()
    assert job.errors().count("\n") == 1
    for other in range(NUM_RANKS):
        assert (f"\nrank {other}: stage 'second', step 3" in job.log(0)) and "\nrank " not in job.log(max(other, 1))
        assert job.log(other).startswith(f"the job ends: rank {rank}: error: no progress for ")
        assert "thread 'MainThread':\n" in job.log(other) and "thread 'watch':\n" in job.log(other)
        number, state = (3, "NOT left") if other != rank else (2, "left")
        last = rf"gloo:all_reduce number {number} of Float\[1\], entered \S+ s ago, {state}"
        assert re.search(rf"group 0 \(ranks 0, 1, 2\):\n    {last}", job.log(other)), job.log(other)
    assert "time.sleep(10_000)" in job.log(rank) and "dist.all_reduce(" in job.log((rank + 1) % 3)


def test_a_rank_that_cannot_write_its_log(start: Start) -> None:
    job = start("sleep without a disk", hang_seconds=hang_seconds())
    assert job.end() == [1, 1, 1]
    assert job.errors().startswith("rank 1: error: no progress for ") and job.errors().count("\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stuck_in_c_code_with_pythons_lock(start: Start, rank: int) -> None:
    """It can be ended by the launcher alone, but has written where it is."""
    job = start("stuck in C", rank, hang_seconds=hang_seconds())
    assert job.end(*({0, 1, 2} - {rank})) == [1, 1]
    assert job.errors().startswith(f"rank {rank}: error: no message for ")
    assert job.log(rank).startswith("Timeout") and "in _go_wrong" in job.log(rank)
    assert "dist.all_reduce(" in job.log(2) and "last collectives" in job.log(2)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_leave_together(start: Start, rank: int) -> None:
    """With a code that is not 0, which makes a launcher end those that are left."""
    job = start("leave together", rank)
    others = [job.ranks[other] for other in range(NUM_RANKS) if other != rank]
    deadline = time.monotonic() + 300
    while len(list(job.folder.glob("finishing-*"))) < NUM_RANKS and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    assert all(other.is_alive() for other in others)
    (job.folder / "go").touch()
    assert job.end() == [75, 75, 75]
    assert job.errors() == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped(start: Start, rank: int) -> None:
    """The others end; the stopped one does when it continues."""
    job = start("signal", rank, hang_seconds=hang_seconds() + 1.0)  # more than its clock makes of a stop
    job.signal_when_ready(rank, signal.SIGSTOP)
    assert job.end(*({0, 1, 2} - {rank})) == [1, 1]
    os.kill(job.ranks[rank].pid or 0, signal.SIGCONT)
    assert job.end(rank) == [1]
    assert job.errors().startswith(f"rank {rank}: error: no message for ")
    assert "Last state: stage 'second', step 3, adding" in job.errors()
    assert job.errors().count("\n") == 1


def test_a_rank_that_waits_for_what_nobody_sends(start: Start) -> None:
    job = start("different ways", hang_seconds=hang_seconds())
    assert job.end() == [1, 1, 1]
    assert "where it waits for other ranks, as all ranks do" in job.errors()
    assert job.errors().count("\n") == 1
    assert "dist.recv(" in job.log(1), "gloo records collectives alone"
    assert re.search(r"gloo:all_reduce number 3 of Float\[1\], entered \S+ s ago, NOT left", job.log(0)), job.log(0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_watch_fails(start: Start, rank: int) -> None:
    """The job ends at once, by the right name, instead of after a minute as a rank without a sign of life."""
    job = start("watch fails", rank, hang_seconds=600)
    assert job.end() == [1, 1, 1]
    expected = f"rank {rank}: error: the watchdog failed: MemoryError: the memory is full\nTraceback "
    assert job.errors().startswith(expected) and job.errors().count("error: ") == 1
    assert all(f"the job ends: {expected}" in job.log(other) for other in range(NUM_RANKS))


def test_a_rank_that_leaves_without_a_word(start: Start) -> None:
    job = start("leave", 2)
    assert job.end() == [1, 1, 0]
    assert job.errors().startswith(f"rank 2: {ENDED} starting")


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    """Where the rendezvous is torchrun's."""
    script = Path(watched_rank.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path), "refuse", "1", "60"], capture_output=True, text=True, check=False, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
    assert lines == ["rank 1: error: UserError: of no use"]
    assert done.returncode != 0 and done.stderr.count("Traceback") == 1, "one is torchrun's own"
    assert done.stderr.splitlines()[-2].endswith("rank 1: error: UserError: of no use"), done.stderr
