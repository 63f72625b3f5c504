"""Signals that ask a run to save and leave.

Interface for the training loop: `train(config, stop)` reads `stop.requested` once per step (agreed over ranks, since
the signal reaches them at different steps), writes a checkpoint, and returns `EXIT_PREEMPTED`. Loader processes are
started inside `signals_held()` and call `ignore_signals_in_worker()` first.

Work that may be left anywhere, since whatever it writes is complete or absent, is done inside `stop.raised()`.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

from tolktrain.cluster.threads import guarded

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a checkpoint is written, run the same command again

_REQUESTS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_GRACE_SECONDS = 10.0  # less than the half minute that Slurm and container runtimes leave before they kill


class StopRaised(BaseException):  # noqa: N818 - no error: what handles errors must let it through
    """The process was asked to stop, and leaves what it was at."""


class StopRequest:
    """Whether this process was asked to save and leave.

    USR1 comes from the batch script ahead of the time limit, TERM from Slurm at a time limit, cancel or requeue, INT
    from a person at the terminal. A second INT ends the process at once, so that nobody has to wait for a checkpoint.
    """

    def __init__(self, on_interrupt: str = "stopping; a step that is under way is finished and saved") -> None:
        """Nothing is requested yet; `on_interrupt` is what a person who presses Ctrl-C reads."""
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._raises = False
        self._on_interrupt = f"\n{on_interrupt}; press Ctrl-C again to leave at once\n".encode()

    @property
    def requested(self) -> bool:
        """Whether to stop after the current step."""
        return self._signal is not None

    @property
    def reason(self) -> str:
        """The signal's name, such as SIGUSR1; empty while nothing is requested."""
        return "" if self._signal is None else self._signal.name

    @property
    def age_seconds(self) -> float | None:
        """Time since the first signal arrived, None without one."""
        return None if self._signal is None else time.monotonic() - self._since

    def install(self) -> None:
        """Take over USR1, TERM and INT. Must come before torch is imported: until then USR1 kills the process."""
        for number in _REQUESTS:
            signal.signal(number, self._handle)
        _shield_resource_tracker()

    def release(self) -> None:
        """Training is over: TERM and INT end the process again; USR1 has nothing left to save and is ignored."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def ignore(self) -> None:
        """The process ends now, with its exit code. Python's shutdown gives signals with a handler back to the system,
        which would end the process with another code; those that are ignored stay so."""
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_IGN)

    def request(self, number: signal.Signals = signal.SIGUSR1) -> None:
        """Ask as the signal `number` would."""
        if self._signal is None:  # the first counts; TERM follows USR1 when the time is up
            self._since = time.monotonic()
            self._signal = number

    @contextlib.contextmanager
    def raised(self, grace_seconds: float = _GRACE_SECONDS) -> Iterator[None]:
        """In this block the first request raises `StopRaised` in the main thread, whatever that is at.

        It may be in a library that does not come back, or that swallows exceptions. So a process that is still there
        after `grace_seconds` ends then, with `EXIT_PREEMPTED`. For the main thread, once in a process.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        # Python runs handlers between two instructions of the main thread, but writes to this pipe at once.
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        watcher = guarded("stop", lambda: _end_process(read_end, grace_seconds))
        watcher.start()
        try:
            self._raises = True
            if self.requested:  # earlier, when nobody was there to raise it
                os.write(write_end, b"\0")
                raise StopRaised
            yield
        finally:
            self._raises = False
            signal.set_wakeup_fd(before)
            if not self.requested:
                os.close(write_end)
                watcher.join()
                os.close(read_end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = not self.requested
        self.request(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # print() is not safe inside a handler that may have interrupted a print.
            os.write(2, self._on_interrupt)
        if is_first and self._raises:
            raise StopRaised


def _end_process(read_end: int, grace_seconds: float) -> None:
    """End the process some time after a signal, unless the block ends before any comes."""
    if os.read(read_end, 1):
        time.sleep(grace_seconds)
        os.write(2, f"still busy {grace_seconds:g} s after it was asked to stop; ended\n".encode())
        os._exit(EXIT_PREEMPTED)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """USR1, TERM and INT wait until the block ends. A process that is forked in it never gets those that come before
    it has said what it does about them; this one gets all of them, a moment later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """For a process of multiprocessing: end when the process that started it is gone, whatever this one is at.

    By a thread: the kernel could only watch over the fork server, which lives as long as one of its processes.
    """
    guarded("end-with-parent", _end_after_parent).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def ignore_signals_in_worker() -> None:
    """For loader processes, which were forked in `signals_held`: what reaches the whole group concerns the rank alone.

    A loader process that TERM ends would take its rank with it, in the middle of a save. So it ends in two ways: when
    the rank closes its loader, and when the rank's process is gone, however it went and whatever this one is at.
    """
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)  # drops those that have been held, too
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it went before the kernel was told
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)


def _shield_resource_tracker() -> None:
    """Start Python's process that watches over shared memory now, with USR1 blocked.

    Slurm sends USR1 to the children of ranks too. It would end that process, and its successor, which knows nothing of
    the blocks that there are, would complain about each of them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))
