"""The forkserver of `multiprocessing` in a process that was forked from a warm one.

Started as usual, it would import for seconds what the process that starts it had imported at its own start. So that one
forks before it begins, while it has no threads, and what it has forked waits until a forkserver is wanted: it then does
what the new program would have been told to do, with the same open files, variables and blocked signals.
"""

import contextlib
import fcntl
import json
import multiprocessing.util
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

_MESSAGE_BYTES = 1 << 17
_NUMBERS_FROM = 1_000  # of open files on their way to their own numbers

_Start = Callable[[bytes, Sequence[str], Sequence[int]], int]


def keep_a_forkserver() -> None:
    """Fork the process that waits. It ends with this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # those to the group do not end it
    if (number := os.fork()) == 0:
        here.close()
        _wait(there)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    there.close()
    start_program = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]  # private, so not declared
    multiprocessing.util.spawnv_passfds = partial(_start, start_program, here, number)  # type: ignore[attr-defined]


def _start(
    start_program: _Start,
    waiting: socket.socket,
    number: int,
    path: bytes,
    arguments: Sequence[str],
    files: Sequence[int],
) -> int:
    """As `multiprocessing.util.spawnv_passfds`: a process with these open files, of which it gives the number."""
    code = arguments[-1]
    if waiting.fileno() < 0 or not code.startswith("from multiprocessing.forkserver import main;"):
        return start_program(path, arguments, files)
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    order = {"code": code, "files": list(files), "blocked": blocked, "environ": dict(os.environ), "folder": os.getcwd()}
    with waiting:
        socket.send_fds(waiting, [json.dumps(order).encode()], list(files))
    return number


def _wait(connection: socket.socket) -> NoReturn:
    """Become the forkserver, once it is wanted."""
    try:
        content, received, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 16)
        if content:
            order = json.loads(content)
            os.environ.clear()
            os.environ.update(order["environ"])
            os.chdir(order["folder"])
            _take(dict(zip(order["files"], received, strict=True)))
            signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
            exec(order["code"], {})
    except SystemExit:  # its way to end
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _take(files: dict[int, int]) -> None:
    """Give received files the numbers that they have in the process that sent them, and close all others."""
    aside = {wanted: fcntl.fcntl(number, fcntl.F_DUPFD, _NUMBERS_FROM) for wanted, number in files.items()}
    for name in os.listdir("/proc/self/fd"):
        if 2 < int(name) < _NUMBERS_FROM:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(int(name))
    for wanted, number in aside.items():
        os.dup2(number, wanted)
        os.close(number)
