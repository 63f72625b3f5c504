"""Signals that ask a run to save a checkpoint and stop.

Interface for the training loop: `train(config, stop)` reads `stop.requested` once per step (reduced over all ranks,
because the signal reaches them at different steps), writes a checkpoint, and returns `EXIT_PREEMPTED`. Loader processes
are started inside `signals_held()` and call `ignore_signals_in_worker()` first.

Work that may be interrupted anywhere, because its outputs are atomic, runs inside `stop.raised()`. Parts of it that
must be finished, such as saving, run inside `stop.noted()`.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType

from tolktrain.cluster.threads import guarded

STOPPING_TRAINING = "stopping; a step that is under way is finished and saved"
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a checkpoint is written, run the same command again

_REQUESTS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_GRACE_SECONDS = 10.0  # less than the 30 s after which Slurm and container runtimes kill a process
_POLL_SECONDS = 0.1
_NO_SIGNAL = 0  # written to the pipe of signal numbers when its block ends


class StopRaised(BaseException):  # noqa: N818 - no error: handlers of errors must not catch it
    """The process was asked to stop; it abandons its current work."""


class StopRequest:
    """Whether this process was asked to save and stop.

    The batch script sends USR1 before the time limit; Slurm sends TERM at a time limit, cancel or requeue; a user at
    the terminal sends INT. A second INT ends the process at once, without waiting for a checkpoint.
    """

    def __init__(self, on_interrupt: str = STOPPING_TRAINING) -> None:
        """`on_interrupt` is the message after Ctrl-C."""
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._raises = False  # a request raises StopRaised in the main thread
        self._grace: float | None = None  # seconds after which a request ends the process; None: it does not
        self._grace_seconds = _GRACE_SECONDS  # of the outermost block
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

    @classmethod
    def installed(cls, on_interrupt: str = STOPPING_TRAINING) -> "StopRequest":
        """A new one that handles the signals."""
        stop = cls(on_interrupt)
        stop.install()
        return stop

    def install(self) -> None:
        """Handle USR1, TERM and INT. Call it before torch is imported: until then, USR1 kills the process."""
        for number in _REQUESTS:
            signal.signal(number, self._handle)
        _shield_resource_tracker()

    def release(self) -> None:
        """Restore TERM and INT after training, so that they end the process; ignore USR1."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def ignore(self) -> None:
        """Ignore all signals while the process exits, so that they do not change the exit code. Python's shutdown
        resets signals that have a handler, but not those that are ignored."""
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_IGN)

    @staticmethod
    def ignore_at_exit() -> None:
        """As `ignore`, for a process that has done its work; but INT still ends one whose exit hangs."""
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def request(self, number: signal.Signals = signal.SIGUSR1) -> None:
        """Request a stop as the signal `number` would."""
        if self._signal is None:  # the first signal counts; TERM follows USR1 at the time limit
            self._since = time.monotonic()
            self._signal = number

    @contextlib.contextmanager
    def raised(
        self, grace_seconds: float = _GRACE_SECONDS, expire: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """In this block, the first request raises `StopRaised` in the main thread.

        The main thread may be in a library that does not return or that swallows exceptions. So if the process is still
        running after `grace_seconds`, `expire` is called in another thread, or, without it, the process exits with
        `EXIT_PREEMPTED`. Call it in the main thread, once per process.
        """
        self._grace_seconds = grace_seconds
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        # Python runs handlers between two instructions of the main thread, but writes to this pipe immediately.
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        watcher = guarded("stop", lambda: self._end_process(read_end, expire or self._exit_late))
        watcher.start()
        try:
            if self.requested:  # before this block
                os.write(write_end, bytes([signal.SIGUSR1]))
            with self._reacting(raises=True, grace=grace_seconds):
                yield
        except StopRaised:
            self._grace = grace_seconds  # what is left to do is to exit, which may hang too
            raise
        finally:
            signal.set_wakeup_fd(before)
            if not self.requested:
                os.write(write_end, bytes([_NO_SIGNAL]))
                watcher.join()
                os.close(write_end)
                os.close(read_end)

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Inside `raised`: in this block, a request is only noted, for work that must be finished."""
        return self._reacting(raises=False, grace=None)

    def limited(self, grace_seconds: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Inside `raised`: in this block, a request is noted, and ends the process after `grace_seconds`, by default
        those of `raised`. For work that normally is finished by then, but may wait for something that never comes."""
        return self._reacting(raises=False, grace=self._grace_seconds if grace_seconds is None else grace_seconds)

    def raised_again(self, ends: bool) -> contextlib.AbstractContextManager[None]:
        """Inside `noted`: in this block, a request raises again; with `ends`, the process also ends after
        `grace_seconds`. Without it, the process has as much time as it needs after the exception."""
        return self._reacting(raises=True, grace=self._grace_seconds if ends else None)

    @contextlib.contextmanager
    def _reacting(self, raises: bool, grace: float | None) -> Iterator[None]:
        before = self._raises, self._grace
        try:
            self._raises, self._grace = raises, grace
            if raises and self.requested:
                raise StopRaised
            yield
        finally:
            self._raises, self._grace = before

    def _end_process(self, read_end: int, expire: Callable[[], object]) -> None:
        """Call `expire` some seconds after a request, unless the block ends without one. Time inside `noted` does not
        count."""
        while (number := os.read(read_end, 1)[0]) not in _REQUESTS:  # torch handles SIGCHLD, for example
            if number == _NO_SIGNAL:
                return
        since = time.monotonic()
        while (grace := self._grace) is None or time.monotonic() - since < grace:
            if grace is None:
                since = time.monotonic()
            time.sleep(_POLL_SECONDS)
        expire()

    def _exit_late(self) -> None:
        text = f"still busy {self._grace_seconds:g} s after it was asked to stop; ended; the same command continues\n"
        os.write(2, text.encode())
        os._exit(EXIT_PREEMPTED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = not self.requested
        self.request(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # print() is not safe inside a handler that may have interrupted a print.
            os.write(2, self._on_interrupt)
        if is_first and self._raises:
            raise StopRaised


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block USR1, TERM and INT until the block ends. A process that is forked in it does not get signals before it has
    set how it handles them; this process gets all of them at the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """For a process of multiprocessing: exit when the process that started it has ended.

    By a thread, because the kernel's parent-death signal would only observe the fork server, which outlives the parent.
    """
    guarded("end-with-parent", _end_after_parent).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def ignore_signals_in_worker() -> None:
    """For loader processes, which were forked in `signals_held`: ignore signals that the whole process group gets.

    If TERM ended a loader process, its rank would fail in the middle of a save. So a loader process ends when the rank
    closes its loader, and, by the kernel's parent-death signal, when the rank's process has ended.
    """
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)  # drops those that have been held, too
    parent = multiprocessing.parent_process()
    be_killed_with_parent(None if parent is None else parent.pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)


def be_killed_with_parent(parent: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel kill this process when the thread that has started it has ended, however that ended.

    Args:
        parent: process that started this one; None if it is not known.
        number: signal that it gets.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:  # the parent ended before prctl was called
        os._exit(1)


def _shield_resource_tracker() -> None:
    """Start Python's resource tracker of shared memory now, with USR1 blocked.

    Slurm also sends USR1 to the children of ranks. It would end the tracker, and a new tracker, which does not know the
    existing blocks, would print a warning for each of them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))
