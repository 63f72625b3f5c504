"""A Slurm cluster of two nodes that lasts no longer than the tests; see `minislurm.sh`."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("minislurm.sh")
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job."""

    state: str
    exit_code: str  # of the batch script, and the signal that ended it: "1:0"
    num_restarts: int


@dataclass(frozen=True)
class Cluster:
    """A cluster, with its files in `folder`."""

    folder: Path
    programs: Path | None = None  # a folder that jobs look for programs in first

    def obstacle(self) -> str:
        """Why this machine cannot pretend to be a cluster; empty if it can."""
        return self._call("check", timeout=300).stdout.strip()

    def start(self) -> None:
        """Start it; it ends with this process at the latest."""
        done = self._call("start", timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        """End it and all that runs on it."""
        self._call("stop", timeout=300).check_returncode()
        shutil.rmtree(self.folder)

    def run(self, *command: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a command as on the login node."""
        # As `exec` of the script does, but without its shells: tests ask how a job does all the time.
        head = (self.folder / "pid" / "head").read_text().strip()
        namespaces = ("--net", "--uts", "--ipc", "--mount", f"--wdns={Path.cwd()}")
        return self._started("nsenter", "-t", head, *namespaces, *command, timeout=timeout)

    def submit(self, *arguments: str) -> int:
        """Submit a job; returns its number."""
        done = self.run("sbatch", "--parsable", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(done.stdout)

    def on(self, node: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on a node."""
        return self._call("on", node, *command, timeout=300)

    def crash(self, node: str) -> None:
        """End all that runs on a node, as when its power fails."""
        self._call("crash", node, timeout=300).check_returncode()

    def boot(self, node: str) -> None:
        """Start a node again that has crashed. Slurm learns here that it has lost its jobs."""
        done = self._call("boot", node, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def job(self, number: int) -> Job:
        """State of a job."""
        done = self.run("scontrol", "show", "job", "-o", str(number))
        assert done.returncode == 0, done.stdout + done.stderr
        fields = dict(re.findall(r"\b(JobState|ExitCode|Restarts)=(\S+)", done.stdout))
        return Job(fields["JobState"], fields["ExitCode"], int(fields["Restarts"]))

    def end_of(self, number: int, timeout: float = 300) -> Job:
        """Wait for the end of a job."""
        deadline = time.monotonic() + timeout
        while (job := self.job(number)).state not in FINISHED:
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        return job

    def _call(self, *arguments: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        return self._started(str(SCRIPT), *arguments, timeout=timeout)

    def _started(self, *command: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        # The tests may themselves run in a Slurm job.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        own = [self.programs] if self.programs else []
        environ |= {
            "MINISLURM_DIR": str(self.folder),
            "MINISLURM_OWNER": str(os.getpid()),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": ":".join(map(str, [*own, Path(sys.executable).parent, environ["PATH"], "/usr/sbin", "/sbin"])),
            "VIRTUAL_ENV": sys.prefix,
        }
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=timeout)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A new cluster; skips the test where there can be none."""
    # Not in pytest's own folder: paths of sockets must be short.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="minislurm-", dir="/tmp")))
    try:
        if reason := cluster.obstacle():
            pytest.skip(reason)
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
