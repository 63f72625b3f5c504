"""A run of one process that waits for what never comes: it is asked to stop, or ends by itself, and says why."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from small_runs import read_metrics, small_config, write_config
from warm import Warm, WarmProcess

from tolktrain.train.run import train

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("lone_rank.py")
TIMEOUT_SECONDS = 240.0  # on a busy machine
LOADERS = "data.num_workers=2"


class Run:
    """A run with a fault."""

    def __init__(self, warm: Warm, folder: Path, sets: Path, fault: str, *overrides: str) -> None:
        self.folder = folder
        self.mark = folder / "fault"
        arguments = [fault, write_config(folder, sets), "evaluation.after_training=false", "train.micro_batch_size=4"]
        self.process: WarmProcess = warm.start(SCRIPT, *arguments, *overrides, folder=folder)

    @property
    def run_dir(self) -> Path:
        """Its run directory."""
        return self.folder / "runs" / "small"

    def wait_for_fault(self) -> str:
        """What the mark says."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.mark.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.errors
            time.sleep(0.01)
        time.sleep(0.2)  # for the wait that follows
        return self.mark.read_text()

    def end(self, number: signal.Signals | None = None) -> int:
        """The exit code, after a signal if one is given."""
        try:
            if number is not None:
                self.process.send_signal(number)
            return self.process.wait(TIMEOUT_SECONDS)
        finally:
            self.process.kill()

    def assert_continues_as(self, expected: Path, sets: Path) -> None:
        """The same command does the rest, and all is as in an undisturbed run."""
        assert train(small_config(self.folder, sets)) == 0
        assert read_metrics(self.run_dir) == read_metrics(expected)


@pytest.mark.parametrize(
    ("loaders", "number"), [("data.num_workers=0", signal.SIGTERM), (LOADERS, signal.SIGINT), (LOADERS, signal.SIGUSR1)]
)
def test_a_signal_while_it_waits_for_data(
    warm: Warm, tmp_path: Path, sets: Path, uninterrupted: Path, loaders: str, number: signal.Signals
) -> None:
    """The steps that are done are saved."""
    run = Run(warm, tmp_path, sets, "data", loaders)
    run.wait_for_fault()
    while not any(line["step"] == 2 for line in read_metrics(run.run_dir)):  # loader processes read ahead
        assert run.process.poll() is None, run.process.errors
        time.sleep(0.01)
    time.sleep(0.2)
    assert run.end(number) == 75, run.process.errors
    assert "stopped after step 2 with a checkpoint; the same command continues from there" in run.process.output
    assert "Traceback" not in run.process.errors
    assert (run.run_dir / "checkpoints" / "latest").read_text() == "step-00000002\n"
    assert json.loads((run.run_dir / "heartbeat.json").read_text())["state"] == "stopped"
    run.assert_continues_as(uninterrupted, sets)


@pytest.mark.parametrize("place", ["check", "loader"])
def test_a_signal_while_it_starts(warm: Warm, tmp_path: Path, sets: Path, uninterrupted: Path, place: str) -> None:
    run = Run(warm, tmp_path, sets, place)
    run.wait_for_fault()
    assert run.end(signal.SIGTERM) == 75, run.process.errors
    assert "warning: SIGTERM: stopping before the next step" in run.process.errors
    assert "Traceback" not in run.process.errors
    assert not list(run.run_dir.glob("checkpoints/step-*"))
    run.assert_continues_as(uninterrupted, sets)


def test_a_signal_while_it_waits_for_the_data_of_validation(
    warm: Warm, tmp_path: Path, sets: Path, uninterrupted: Path
) -> None:
    """The process ends without a checkpoint, since the losses of this validation would be missing after it."""
    run = Run(warm, tmp_path, sets, "validation")
    run.wait_for_fault()
    assert run.end(signal.SIGTERM) == 75, run.process.errors
    assert "still busy 10 s after it was asked to stop; ended; the same command continues" in run.process.errors
    run.assert_continues_as(uninterrupted, sets)


def test_a_signal_while_it_saves(warm: Warm, tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    """However long that takes, the checkpoint is completed."""
    run = Run(warm, tmp_path, sets, "late checkpoint", "checkpoint.background=false")
    run.wait_for_fault()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(11)  # more than a process has that waits for data
    assert run.process.poll() is None, run.process.errors
    run.mark.unlink()
    assert run.end() == 75, run.process.errors
    assert len(list(run.run_dir.glob("checkpoints/step-*"))) >= 1
    run.assert_continues_as(uninterrupted, sets)


@pytest.mark.parametrize("loaders", ["data.num_workers=0", LOADERS])
def test_data_that_never_comes(warm: Warm, tmp_path: Path, sets: Path, loaders: str) -> None:
    run = Run(warm, tmp_path, sets, "data for long", loaders)
    assert run.end() == 1, run.process.errors
    error = run.process.errors
    assert re.match(
        r"error: no progress for \d+ s \(parallel\.hang_timeout_seconds is 5\) at stage 'text', step 3, waiting for"
        " data; it is in ",
        error,
    ), error
    message, *rest = error.splitlines()
    assert message.endswith("if this takes so long without a fault, raise parallel.hang_timeout_seconds")
    # Python's tracker may say afterwards that it cleans up.
    assert all("resource_tracker" in line for line in rest), error
    awaited = f"it waits for a batch from loader process 1 of 2 (process {run.mark.read_text()}, which waits); /dev/shm"
    assert (awaited in error) == (loaders == LOADERS), error
    log = (run.run_dir / "logs" / "rank-00000.log").read_text()
    assert "the run ends: no progress for" in log and "thread 'MainThread':\n" in log
    assert json.loads((run.run_dir / "heartbeat.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGKILL, "out of memory"), (signal.SIGBUS, "memory is full")])
def test_a_loader_process_that_is_killed(
    warm: Warm, tmp_path: Path, sets: Path, number: signal.Signals, cause: str
) -> None:
    run = Run(warm, tmp_path, sets, "data", LOADERS)
    pid = int(run.wait_for_fault())
    os.kill(pid, number)
    assert run.end() == 1, run.process.errors
    error = run.process.errors.splitlines()[-1].lstrip("\0")  # torch ends its own line with it
    assert error.startswith(
        f"error: loader process 1 of 2 (process {pid}) was killed by {number.name} (signal {int(number)}); probably "
    )
    assert cause in error and "lower data.num_workers" in error and "Traceback" not in run.process.errors


def test_shared_memory_that_becomes_full(warm: Warm, tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    """The loader process says so, where torch would drop the batch, and the run would wait for it forever."""
    run = Run(warm, tmp_path, sets, "full shared memory", LOADERS)
    code = run.end()
    if run.mark.read_text():
        pytest.skip(run.mark.read_text())
    assert code == 1, run.process.errors
    error = run.process.errors
    assert (
        error.startswith("error: a loader process cannot put a batch into shared memory (") and error.count("\n") == 1
    )
    assert "No space left on device" in error and "/dev/shm has 8 MiB, of which 0" in error
    assert "lower data.num_workers" in error
    run.assert_continues_as(uninterrupted, sets)
