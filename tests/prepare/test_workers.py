"""Processes that do parts: results, errors, and deaths."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from worker_tasks import dying, failing, lingering, squares

from tolktrain.errors import UserError
from tolktrain.prepare.job.workers import Done, Progress, run_tasks
from tolktrain.storage.errors import StorageError


def test_each_task_is_done_and_reported_once() -> None:
    events = list(run_tasks(squares, [3, 0, 5, 2], processes=2))
    done = {event.task: event.result[0] for event in events if isinstance(event, Done)}
    assert done == {0: 9, 1: 0, 2: 25, 3: 4}
    assert sum(event.entries for event in events if isinstance(event, Progress)) == 10
    processes = {event.result[1] for event in events if isinstance(event, Done)}
    assert os.getpid() not in processes and len(processes) <= 2


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (UserError("s3://x is away"), UserError, "s3://x is away"),
        (StorageError("s3://x is refused", "refused"), StorageError, "s3://x is refused"),
        (OSError(28, "No space left on device", "/data"), OSError, "No space left on device"),
        (KeyError("lost"), RuntimeError, "KeyError: 'lost'"),
    ],
)
def test_what_a_task_raises_is_raised_here(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(run_tasks(partial(failing, error), [0, 1, 2], processes=1))


def test_a_killed_process_is_named() -> None:
    with pytest.raises(UserError, match=r"ended by SIGKILL.*the same command continues"):
        list(run_tasks(dying, [0, 1], processes=2))


def _is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_processes_end_with_the_iterator(tmp_path: Path) -> None:
    events = run_tasks(partial(lingering, str(tmp_path)), [0, 1], processes=2)
    while len(list(tmp_path.iterdir())) < 2:
        next(events)
    processes = [int(path.name) for path in tmp_path.iterdir()]
    events.close()
    assert all(_is_gone(process) for process in processes)


@pytest.mark.parametrize("task", ["lingering", "sticking"])
def test_processes_end_when_their_parent_is_killed(tmp_path: Path, task: str) -> None:
    """Also those that hang in a library, and so never notice that nobody listens any more."""
    program = tmp_path / "program.py"
    folder = tmp_path / "processes"
    folder.mkdir()
    program.write_text(
        f"from functools import partial\nfrom worker_tasks import {task}\n"
        "from tolktrain.prepare.job.workers import run_tasks\n"
        "if __name__ == '__main__':\n"
        f"    list(run_tasks(partial({task}, {str(folder)!r}), [0, 1], processes=2))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, str(program)], env=environ)
    deadline = time.monotonic() + 300
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = [int(path.name) for path in folder.iterdir()]
    parent.kill()
    parent.wait()
    while not all(map(_is_gone, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes) == 2 and all(map(_is_gone, processes))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_to_the_whole_group_concern_the_first_process_alone(tmp_path: Path, number: int) -> None:
    """Ctrl-C, and what a batch system sends, reach every process, at whatever moment."""
    program = tmp_path / "program.py"
    folder = tmp_path / "processes"
    folder.mkdir()
    program.write_text(
        "import signal\nfrom functools import partial\nfrom worker_tasks import lingering\n"
        "from tolktrain.cluster.signals import StopRequest\nfrom tolktrain.prepare.job.workers import run_tasks\n"
        "if __name__ == '__main__':\n"
        "    stop = StopRequest()\n    stop.install()\n    print('ready', flush=True)\n"
        f"    for _ in run_tasks(partial(lingering, {str(folder)!r}), [0, 1], processes=2):\n"
        f"        if stop.requested and len(list(__import__('pathlib').Path({str(folder)!r}).iterdir())) == 2:\n"
        "            raise SystemExit(75)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    options: Any = {"env": environ, "start_new_session": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, str(program)], text=True, **options)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    time.sleep(0.1)  # while the server starts
    os.killpg(parent.pid, number)
    output, errors = parent.communicate(timeout=300)
    assert parent.returncode == 75, errors
    assert "Traceback" not in errors
