"""Signals ask for a stop, and no longer kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

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


def test_a_loader_worker_ignores_usr1_and_dies_of_term() -> None:
    code = (
        "import os, signal\n"
        "from tolktrain.cluster.signals import StopRequest, reset_signals_in_worker\n"
        "StopRequest().install(); reset_signals_in_worker()\n"
        "os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGINT); print('alive', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", -signal.SIGTERM)


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
        [sys.executable, "-c", TRACKED], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert (done.returncode, done.stdout) == (0, "SIGUSR1\n")
    assert done.stderr == ""
