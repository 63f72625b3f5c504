"""A Python process that has imported what training needs, and forks itself instead of starting another one.

Usage: server.py SOCKET. It ends with its standard input. `warm.py` starts it; that and `client.py` are its clients.

Per connection, one process. It is sent what to run, as JSON, with three descriptors for standard input, output, error:
    {"arguments": [...], "environ": {...}, "folder": current one, "ignored": signal numbers, "new_session": bool}
`arguments` are the interpreter's: a script, or -m and a module, or -c and code, with arguments of its own. Answers are
{"pid": n}, and after its end {"code": n}, negative for a signal; or {"refused": why}. Each byte that is sent later is a
signal for the process, and the end of the connection is SIGKILL.

The process runs in the namespaces of whoever asked. It differs from one that was started as usual in its command line,
in the seed of hashes, which all processes of a server share, and in that neither modules nor what libraries have made
when they were imported is taken down at its end.
"""

import atexit
import contextlib
import ctypes
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO, cast

from forked_forkserver import keep_a_forkserver

MESSAGE_BYTES = 1 << 17
PADDING = "WARM_PADDING"  # makes room in /proc/self/environ for those of processes
# Variables that are read when libraries are imported, which is before a process gets its own.
READ_BY_IMPORTS = ("DS_", "HF_", "HOME", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH_LOGS", "TRITON_INTERPRET")
READ_LATER = {"PYTHONUNBUFFERED"}  # by this file
_NAMESPACES = {"mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "net": 0x40000000, "pid": 0x20000000}

Order = dict[str, Any]
Environ = Mapping[str, str]


def preload() -> None:
    """Import what takes long, without starting threads or talking to devices."""
    import pytest  # noqa: F401  # helpers of tests import it
    import torch

    import tolktrain.checkpoint.writer  # else imported by the first save of each process
    import tolktrain.cli
    import tolktrain.prepare.job.pipeline
    import tolktrain.train.run  # noqa: F401
    from tolktrain.train.process import import_deepspeed

    import_deepspeed()
    import deepspeed.runtime.pipe.module  # noqa: F401

    with contextlib.suppress(ImportError):  # else imported by the first engine of each process; a detail of its version
        import deepspeed.module_inject.auto_ep_layer  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == threading.active_count() == 1, "a process with threads cannot fork"
    assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        # At its end a process would take all operators out of torch, which takes as long as three forks.
        finalizer.atexit = False
    gc.collect()
    gc.freeze()  # else the collector would write to, and so copy, all memory in every process


def serve(listener: socket.socket, given: Environ) -> Callable[[], object]:
    """Until the input ends, which ends this process. In the processes it returns what they are to do.

    `given` are the variables with which this process was started.
    """
    while True:
        ready = readable(listener, 0)
        if 0 in ready:
            with contextlib.suppress(ChildProcessError):  # they end too; waited for, their CPU time is not lost
                while True:
                    os.wait()
            os._exit(0)
        connection, _ = listener.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            listener.close()
            return guard(connection, given)
        connection.close()


def run(program: Callable[[], object]) -> int:
    """The exit code of a program, after what Python does about its exceptions."""
    try:
        program()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """Do what Python does at the end of a process, but for taking modules down, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def guard(connection: socket.socket, given: Environ) -> Callable[[], object]:
    """Start a process and watch over it. Returns in that process only."""
    content, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
    if not content:  # it was only asked whether there is somebody
        os._exit(0)
    order: Order = json.loads(content)
    if reason := refusal(order["environ"], given):
        connection.send(json.dumps({"refused": reason}).encode())
        os._exit(0)
    enter_namespaces(connection)
    if (pid := os.fork()) == 0:
        connection.close()
        return become(order, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    watch(pid, connection)


def watch(pid: int, connection: socket.socket) -> NoReturn:
    """Pass signals on until the process ends, and tell how it did."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps({"pid": pid}).encode())
    ended = os.pidfd_open(pid)
    while True:
        ready = readable(ended, connection, 0)
        if ended in ready:
            break
        received = b""
        if 0 not in ready:  # else the server was asked to end
            with contextlib.suppress(ConnectionError):
                received = connection.recv(1)
        os.kill(pid, received[0] if received else signal.SIGKILL)
        if not received:
            break
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
    os._exit(0)


def readable(*sources: int | socket.socket) -> list[int | socket.socket]:
    """Which of them can be read from, once one can."""
    ready: list[int | socket.socket] = select.select(sources, [], [])[0]
    return ready


def refusal(environ: Environ, given: Environ) -> str:
    """Why a process with these variables must be started as usual; empty if it need not."""
    names = {name for name in environ.keys() | given.keys() if name.startswith(READ_BY_IMPORTS)} - READ_LATER
    # What was set on the way to an import would be set by the process too, or is so already by its parent.
    other = sorted(name for name in names if environ.get(name) not in (given.get(name), os.environ.get(name)))
    return f"{', '.join(other)}: read by imports, which were made with another value" if other else ""


def enter_namespaces(connection: socket.socket) -> None:
    """Those of the process at the other end, where they are others than here; the next fork is in all of them."""
    peer, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    others = 0
    for name, flag in _NAMESPACES.items():
        if os.readlink(f"/proc/{peer}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            others |= flag
    if others and ctypes.CDLL(None, use_errno=True).setns(os.pidfd_open(peer), others) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def become(order: Order, streams: list[int]) -> Callable[[], object]:
    """Make this process like a new one; returns what it is to run."""
    if order["new_session"]:
        os.setsid()
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(order["folder"])
    set_environment(order["environ"])
    sys.stdout, sys.stderr = reopened(sys.stdout), reopened(sys.stderr)
    # What imports have kept for good.
    tempfile.tempdir = None
    import numpy as np
    import torch

    np.random.seed()
    torch.default_generator.seed()
    first, *rest = order["arguments"]
    if "prepare" in rest:  # the verb, which has its work done by processes of a forkserver
        keep_a_forkserver()
    if first == "-m":
        sys.argv, sys.path[0] = rest, order["folder"]
        return partial(runpy.run_module, rest[0], run_name="__main__", alter_sys=True)
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        return partial(exec, rest[0], {"__name__": "__main__"})
    sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
    return partial(runpy.run_path, first, run_name="__main__")


def reopened(stream: TextIO) -> TextIO:
    """Standard output or error as Python opens it at its start, with a buffer or without."""
    raw = io.FileIO(stream.fileno(), "w", closefd=False)
    if os.environ.get("PYTHONUNBUFFERED"):
        return io.TextIOWrapper(cast(BinaryIO, raw), stream.encoding, stream.errors, write_through=True)
    is_error = stream.fileno() == 2
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=is_error)


def set_environment(environ: Environ) -> None:
    """Replace all variables, those that /proc shows too."""
    os.environ.clear()
    os.environ.update(environ)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[47]), int(fields[48])  # env_start and env_end of proc(5)
    shown = b"".join(f"{name}={value}\0".encode(errors="surrogateescape") for name, value in environ.items())
    assert len(shown) <= end - begin
    ctypes.memmove(begin, shown.ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    given = dict(os.environ)
    preload()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(sys.argv[1])
        sock.listen(64)
        program = serve(sock, given)
    leave(run(program))
