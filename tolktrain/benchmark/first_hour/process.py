"""Runs a piece in a process, with a limit of time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tolktrain.benchmark.first_hour.schedule import DONE, FAILED, STOPPED, Outcome

_TAIL = 1500  # characters of the log that are kept with a failure
_POLL_SECONDS, _GRACE_SECONDS = 0.1, 2.0


def run_process(command: Sequence[str], folder: Path, log: Path, limit: float, tick: Callable[[], None]) -> Outcome:
    """Run a command and wait for its end, or end it and all its children after `limit` seconds.

    Args:
        command: of the process.
        folder: that it works in.
        log: file for its output.
        limit: seconds.
        tick: called while it runs.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while process.poll() is None and time.monotonic() - started < limit:
            time.sleep(_POLL_SECONDS)
            tick()
        stopped = process.poll() is None
    finally:
        _end(process)
    seconds = time.monotonic() - started
    if stopped:
        return Outcome(STOPPED, seconds, f"stopped after its limit of {limit:.0f} s\n{_tail(log)}")
    if process.returncode:
        return Outcome(FAILED, seconds, f"exit code {process.returncode}\n{_tail(log)}")
    return Outcome(DONE, seconds)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group, also what the process itself has left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-_TAIL:]
