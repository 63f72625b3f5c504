"""Runs on a pretended cluster that continue until something happens to them."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from minislurm import FINISHED, Cluster
from small_runs import write_config
from warm import Warm, is_client

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "pretrain.sbatch"
NO_GPUS = "--gpus-per-node=0"  # the tests need none
TIMEOUT_SECONDS = 300


def wait_until(
    condition: Callable[[], bool],
    what: Callable[[], str],
    interval: float = 0.1,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait for a condition; `what` describes the state of things when it does not come.

    `check`, which may fail and may be expensive, is called once a second meanwhile.
    """
    begun = checked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < begun + TIMEOUT_SECONDS, what()
        if now >= checked + 1:
            check()
            checked = now
        time.sleep(interval)


def text_of(output: Path) -> str:
    """What a job has written so far."""
    return output.read_text() if output.exists() else ""


@dataclass(frozen=True)
class Rank:
    """Processes of one rank as this machine sees them: its own one first, then its loader's and so on."""

    pids: tuple[int, ...]

    def kill(self) -> None:
        """kill -9 of the rank's own process."""
        os.kill(self.pids[0], signal.SIGKILL)

    def pause(self) -> None:
        """Hold all of them."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them run again."""
        self._send(signal.SIGCONT)

    def is_signalled(self, number: signal.Signals) -> bool:
        """Whether a signal waits for the rank's own process, which is held, to run again."""
        status = Path(f"/proc/{self.pids[0]}/status").read_text()
        (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
        return bool(int(pending, 16) >> (number - 1) & 1)

    def _send(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)


class LongRun:
    """A run that takes longer than any test; its jobs append to one output."""

    def __init__(self, warm: Warm, cluster: Cluster, folder: Path, sets: Path, num_ranks: int, *overrides: str) -> None:
        self.path = folder / "runs" / "small"
        self.output = folder / "output"
        self._cluster = replace(cluster, programs=warm.python_for_launchers())
        self._num_ranks = num_ranks
        self.config = write_config(folder, sets)
        tree = yaml.safe_load(self.config.read_text())
        tree["train"]["stages"][-1]["tokens"] = 10**9
        self.config.write_text(yaml.safe_dump(tree))
        self.overrides = overrides

    def submit(self, nodes: int, *overrides: str, tasks: int | None = None, output: Path | None = None) -> int:
        """Start it, or let it continue, with `tasks` ranks if not as many as always; returns the job's number."""
        options = [f"--nodes={nodes}", f"--ntasks-per-node={(tasks or self._num_ranks) // nodes}", NO_GPUS]
        options += ["--cpus-per-task=1", f"--output={output or self.output}"]
        return self._cluster.submit(*options, str(SCRIPT), str(self.config), *self.overrides, *overrides)

    @property
    def text(self) -> str:
        """What its jobs have written."""
        return text_of(self.output)

    @property
    def step(self) -> int:
        """The latest step in its metrics."""
        latest: int = json.loads((self.path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return latest

    def wait_for_step(self, number: int, step: int, launched: int) -> int:
        """Wait until jobs were launched so often and the last one has come so far; returns the latest step."""

        def goes_on() -> None:
            assert self._cluster.job(number).state not in FINISHED, self.text

        def there() -> bool:
            _, *launches = self.text.split(f"layout: {self._num_ranks} processes")
            return len(launches) == launched and "  step " in launches[-1] and self.step >= step

        wait_until(there, lambda: f"{self._cluster.job(number)}\n{self.text}", check=goes_on)
        goes_on()
        return self.step

    def rank(self, job: int, rank: int) -> Rank:
        """The processes of a rank of the job that runs."""
        parents = dict(self._processes(job, f"SLURM_PROCID={rank}"))
        own = [pid for pid, parent in parents.items() if parent not in parents]
        assert len(own) == 1, parents
        return Rank((own[0], *(pid for pid in parents if pid != own[0])))

    @contextlib.contextmanager
    def held(self, job: int) -> Iterator[list[Rank]]:
        """Let time stand still for all ranks of the job.

        While a test waits for Slurm, they would otherwise do hundreds of steps, all of which come again in the run that
        it is compared with.
        """
        ranks = [self.rank(job, rank) for rank in range(self._num_ranks)]
        for rank in ranks:
            rank.pause()
        yield ranks
        for rank in ranks:
            rank.go_on()

    def has_ranks(self, job: int, restarts: int) -> bool:
        """Whether ranks have been started since the job was requeued for the last time of so many."""
        return any(self._processes(job, f"SLURM_RESTART_COUNT={restarts}"))

    def _processes(self, job: int, variable: str) -> Iterable[tuple[int, int]]:
        # Tests that run at the same time have clusters of their own, in each of which the first job is number 1.
        return _processes({f"MINISLURM_DIR={self._cluster.folder}", f"SLURM_JOB_ID={job}", variable})

    def unfinished_saves(self) -> list[Path]:
        """Checkpoints that are being written, other than old ones that are being removed."""
        folder = self.path / "checkpoints"
        complete = [path.name for path in folder.glob("step-*")]
        return [path for path in folder.glob(".tmp-*step-*") if path.name[-13:] > max(complete, default="")]


def _processes(variables: set[str]) -> Iterable[tuple[int, int]]:
    """Number and parent of the processes inside job steps whose environment has these variables."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = set((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        # The batch script and srun have the variables of rank 0 too.
        in_a_step = any(entry.startswith("SLURM_STEP_ID=") for entry in environ)
        if variables <= environ and in_a_step and not is_client(int(folder.name)):
            yield int(folder.name), parent
