"""Signals ask for a stop, and no longer kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tolktrain.cluster.signals import StopRequest

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    request.install()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(stop: StopRequest, number: signal.Signals) -> None:
    assert (stop.requested, stop.reason) == (False, "")
    os.kill(os.getpid(), number)
    assert (stop.requested, stop.reason) == (True, number.name)


def test_a_second_ctrl_c_leaves_at_once(stop: StopRequest, capfd: pytest.CaptureFixture[str]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert "press Ctrl-C again to leave at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_requests_are_independent(stop: StopRequest) -> None:
    other = StopRequest()
    other.request()
    assert other.requested
    assert not stop.requested


def test_after_release_term_ends_and_usr1_is_ignored(stop: StopRequest) -> None:
    stop.release()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not stop.requested
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


WORKER = """
import multiprocessing, os, signal, time
from tolktrain.cluster.signals import StopRequest, ignore_signals_in_worker, signals_held
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

def work(pipe):
    for number in SIGNALS: os.kill(os.getpid(), number)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as torch does in its loader processes
    ignore_signals_in_worker()
    for number in SIGNALS * 2: os.kill(os.getpid(), number)
    pipe.send("alive")
    time.sleep(1000)

stop = StopRequest()
stop.install()
ours, theirs = multiprocessing.Pipe()
with signals_held():
    child = multiprocessing.get_context("fork").Process(target=work, args=(theirs,))
    child.start()
    os.kill(os.getpid(), signal.SIGUSR1)
    print(stop.requested)
print(stop.reason, ours.recv(), child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_loader_process_ignores_all_signals_from_its_birth_and_dies_with_its_rank() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=300, check=False)
    first, second = done.stdout.splitlines()
    assert first == "False", "the signal was held"
    reason, word, pid = second.split()
    assert (reason, word, done.returncode, done.stderr) == ("SIGUSR1", "alive", -signal.SIGKILL, "")
    assert ended(int(pid))


def test_the_first_signal_counts() -> None:
    stop = StopRequest()
    assert stop.age_seconds is None
    stop.request(signal.SIGUSR1)
    time.sleep(0.05)
    stop.request(signal.SIGTERM)
    assert stop.reason == "SIGUSR1" and (stop.age_seconds or 0.0) >= 0.05


def ended(pid: int) -> bool:
    """Whether a process that is not a child of this one ends soon."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


TRACKED = """
import os, signal, time
from multiprocessing import resource_tracker, shared_memory
from tolktrain.cluster.signals import StopRequest
stop = StopRequest()
stop.install()
block = shared_memory.SharedMemory(create=True, size=8)
os.killpg(0, signal.SIGUSR1)
time.sleep(0.3)
block.close()
block.unlink()
print(stop.reason, flush=True)
"""


def test_a_signal_to_the_whole_group_leaves_the_tracker_of_shared_memory_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRACKED], capture_output=True, text=True, timeout=300, start_new_session=True
    )
    assert (done.returncode, done.stdout) == (0, "SIGUSR1\n")
    assert done.stderr == ""
