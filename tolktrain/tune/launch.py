"""Starts the ranks of a trial, waits for them no longer than a limit, and ends all of them together."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tolktrain.cluster.environment import alone
from tolktrain.cluster.signals import be_killed_with_parent

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0  # for the other ranks, once one has failed: they may have a message too
_ENDING_SECONDS = 5.0  # between asking and killing
_THREADS = {"OMP_NUM_THREADS": "1"}  # unless it is set, as in launch/pretrain.sbatch
_FIRST_PORT, _NUM_PORTS = 10_000, 20_000  # below Linux's ephemeral ports


@dataclass(frozen=True)
class Ended:
    """How the processes of a trial ended."""

    codes: tuple[int | None, ...]  # exit codes, negative for a signal; None for those that were ended here
    is_late: bool  # the limit was reached
    seconds: float  # from start to end


@dataclass(frozen=True)
class Launcher:
    """Starts a command once for each rank."""

    world_size: int
    num_nodes: int = 1
    by_slurm: bool = False  # in this Slurm allocation; otherwise on this machine

    def run(self, command: Sequence[str], folder: Path, limit_seconds: float, number: int = 0) -> Ended:
        """Run all ranks to their end, or for `limit_seconds`. Their output goes to `folder`/rank-*.log.

        Args:
            command: of one rank.
            folder: exists.
            limit_seconds: after which all ranks are killed.
            number: of the trial, so that one trial does not meet the ranks of another.
        """
        started = time.monotonic()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes += self._start(command, folder, limit_seconds, number)
            is_late = _wait(processes, started + limit_seconds)
            codes = tuple(process.poll() for process in processes)
        finally:
            _end(processes)
        return Ended(codes, is_late, time.monotonic() - started)

    def _start(
        self, command: Sequence[str], folder: Path, limit_seconds: float, number: int
    ) -> list[subprocess.Popen[bytes]]:
        if self.by_slurm:
            environ = _THREADS | dict(os.environ) | self._slurm_variables(number)
            # srun ends its ranks when it is asked to end, and leaves them when it is killed.
            return [_started(self.srun(command, limit_seconds), environ, folder / "ranks.log", signal.SIGTERM)]
        port = str(_free_port())
        return [
            _started(command, _THREADS | alone() | self._variables(rank, port), folder / f"rank-{rank}.log")
            for rank in range(self.world_size)
        ]

    def _variables(self, rank: int, port: str) -> dict[str, str]:
        """Those of torchrun, for a rank on this machine; none for a single process."""
        if self.world_size == 1:
            return {}
        size = str(self.world_size)
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def _slurm_variables(self, number: int) -> dict[str, str]:
        job = int(os.environ["SLURM_JOB_ID"])
        return {"MASTER_PORT": str(_FIRST_PORT + (job + 97 * number) % _NUM_PORTS)}

    def srun(self, command: Sequence[str], limit_seconds: float) -> list[str]:
        """The command that starts the ranks in this allocation, where Slurm ends them too after the limit."""
        options = ["--overlap", f"--nodes={self.num_nodes}", f"--ntasks={self.world_size}", "--kill-on-bad-exit=1"]
        cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")  # since Slurm 22.05, srun does not inherit it
        minutes = math.ceil(limit_seconds / 60) + 1
        return ["srun", *options, f"--time={minutes}", "--distribution=block", f"--cpus-per-task={cpus}", *command]


def _started(
    command: Sequence[str], environ: Mapping[str, str], log: Path, ending: signal.Signals = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    own = os.getpid()
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, with everything that it starts
            preexec_fn=lambda: be_killed_with_parent(own, ending),  # a killed search leaves no rank on a GPU
        )


def _wait(processes: Sequence[subprocess.Popen[bytes]], until: float) -> bool:
    """Wait for all processes, or for a failed one and then a moment; returns whether the time ran out."""
    failed_at: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes):
            return False
        now = time.monotonic()
        if failed_at is None and any(code for code in codes):
            failed_at = now
        if failed_at is not None and now > failed_at + _GRACE_SECONDS:
            return False
        if now > until:
            return failed_at is None
        time.sleep(_POLL_SECONDS)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs, with its whole group: ask first, because srun ends its ranks only if it is asked."""
    running = [process for process in processes if process.poll() is None]
    for number, seconds in ((signal.SIGTERM, _ENDING_SECONDS), (signal.SIGKILL, 0.0)):
        for process in running:  # not reaped yet, so that its number is still its group's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + seconds
        while not all(map(_has_ended, running)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    for process in processes:
        process.wait()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended, without reaping it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
