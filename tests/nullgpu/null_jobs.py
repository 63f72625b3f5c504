"""Jobs on null GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port

from nullgpu.build import environment

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
TIMEOUT_SECONDS = 1200  # below the limit of pytest, which would leave the processes behind
PATIENCE_SECONDS = 3  # after which a rank that outlives another one's failure is killed


@dataclass(frozen=True)
class Outcome:
    """The end of a job."""

    codes: list[int]  # by rank
    outputs: list[str]
    errors: list[str]
    faults: list[str]  # that the null GPU has found

    @property
    def results(self) -> list[Any]:
        """What each rank has printed as JSON in its last line. Fails if a rank has failed, or there are faults."""
        assert not any(self.codes) and not self.faults, str(self)
        return self.last_lines

    @property
    def last_lines(self) -> list[Any]:
        """The JSON of each rank's last line."""
        return [json.loads(output.strip().splitlines()[-1]) for output in self.outputs]

    def __str__(self) -> str:
        parts = [f"exit codes {self.codes}", *self.faults]
        for rank, (output, error) in enumerate(zip(self.outputs, self.errors, strict=True)):
            parts.append(f"rank {rank}:\n{output[-3000:]}\n{error[-6000:]}")
        return "\n".join(parts)


class NullJobs:
    """Starts jobs whose ranks have a null GPU each."""

    def __init__(self, libraries: Path, folder: Path) -> None:
        """`libraries` are built; `folder` is for files of the jobs."""
        self._libraries, self._folder, self._count = libraries, folder, 0

    def run(self, *command: str, ranks: int = 1, environ: Mapping[str, str] | None = None) -> Outcome:
        """Run a script of this folder, or another command, and wait for its end."""
        self._count += 1
        exchange = self._folder / f"job-{self._count}"
        exchange.mkdir()
        if command[0].endswith(".py"):
            command = (sys.executable, str(HERE / command[0]), *command[1:])
        common = {
            # Training on a CPU in this process sets DeepSpeed's accelerator for child processes too.
            **{name: value for name, value in os.environ.items() if not name.startswith("DS_")},
            **environment(self._libraries, exchange, ranks),
            "PYTHONPATH": str(ROOT / "tools"),
            "TRITON_DEFAULT_FP_FUSION": "1",  # without it, each process warns
        }
        processes = []
        try:
            for rank, launcher in enumerate(_launcher(ranks)):
                with (exchange / f"out-{rank}").open("wb") as out, (exchange / f"err-{rank}").open("wb") as err:
                    variables = {**common, **launcher, **(environ or {})}
                    processes.append(
                        subprocess.Popen(command, env=variables, stdout=out, stderr=err, start_new_session=True)
                    )
            _wait_for(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return _outcome([process.wait() for process in processes], exchange)

    def run_cases(self, script: str, names: Sequence[str], ranks: int) -> dict[str, Outcome]:
        """Run `main(NAME)` of a script of this folder for each name; each rank imports it once, and forks for each."""
        folder = self._folder / f"cases-{self._count}"
        cases = {}
        for name in names:
            exchange = folder / name
            exchange.mkdir(parents=True)
            cases[name] = {**environment(self._libraries, exchange, ranks), "MASTER_PORT": str(free_port())}
        whole = self.run("forked.py", script, json.dumps(cases), ranks=ranks)
        assert not any(whole.codes), whole
        return {
            name: _outcome([int((folder / name / f"code-{rank}").read_text()) for rank in range(ranks)], folder / name)
            for name in names
        }


def _outcome(codes: list[int], exchange: Path) -> Outcome:
    """From the files of a job's folder."""
    outputs, errors = (
        [(exchange / f"{name}-{rank}").read_text(errors="replace") for rank in range(len(codes))]
        for name in ("out", "err")
    )
    faults = exchange / "faults"
    return Outcome(codes, outputs, errors, faults.read_text().splitlines() if faults.exists() else [])


def _wait_for(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or shortly after one has failed: the others might wait for it."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if any(process.poll() for process in processes):
            end = min(end, time.monotonic() + PATIENCE_SECONDS)
        time.sleep(0.1)


def _launcher(ranks: int) -> list[dict[str, str]]:
    """The variables that a launcher sets, by rank; none for a single process."""
    if ranks == 1:
        return [{}]
    job = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{key: str(value) for key, value in {**job, "RANK": r, "LOCAL_RANK": r}.items()} for r in range(ranks)]


def leaks(done: Mapping[str, Any]) -> list[str]:
    """What grows from step to step in a case of `steps.py`, after the first ten steps."""
    resources = ("device_bytes", "pinned_bytes", "streams", "events", "modules")
    grown = [name for name in resources if any(step[name] > 0 for step in done["steps"][10:])]
    first, last = done["allocated"][10], done["allocated"][-1]
    return grown + (["allocated"] if last > first else [])
