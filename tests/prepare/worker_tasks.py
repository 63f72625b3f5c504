"""Tasks that other processes import: what pytest collects has no name there."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tolktrain.prepare.job.workers import Report


def square(number: int, report: Report) -> tuple[int, int]:
    """Report as many entries as the number says."""
    for _ in range(number):
        report(1)
    return number**2, os.getpid()


def squares(process: int) -> Callable[[int, Report], tuple[int, int]]:
    """A process of squares."""
    return square


def fail(error: Exception, number: int, report: Report) -> int:
    """Raise at task 1."""
    if number == 1:
        raise error
    return number


def failing(error: Exception, process: int) -> Callable[[int, Report], int]:
    """A process that raises."""
    return partial(fail, error)


def die(number: int, report: Report) -> int:
    """Killed by the kernel at any task but 0."""
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dying(process: int) -> Callable[[int, Report], int]:
    """A process that is killed."""
    return die


def linger(folder: str, number: int, report: Report) -> None:
    """Say who works, and never end."""
    Path(folder, str(os.getpid())).touch()
    while True:
        report(1)
        time.sleep(0.05)


def lingering(folder: str, process: int) -> Callable[[int, Report], None]:
    """A process that never ends."""
    return partial(linger, folder)


def never_return() -> None:
    """Wait in C for a mutex that nobody will release: no signal handler of Python can run."""
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)


def stick(folder: str, number: int, report: Report) -> None:
    """Say who works, and hang in a library."""
    Path(folder, str(os.getpid())).touch()
    never_return()


def sticking(folder: str, process: int) -> Callable[[int, Report], None]:
    """A process that hangs in a library."""
    return partial(stick, folder)
