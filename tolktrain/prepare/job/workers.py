"""Processes that do parts of a piece of work and report their progress."""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from tolktrain.cluster.signals import end_with_parent
from tolktrain.errors import UserError

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """A process has done further entries of its part."""

    entries: int


@dataclass(frozen=True)
class Done:
    """A process has finished a task."""

    task: int  # its place in the list of tasks
    result: Any


Report = Callable[[int], None]


def run_tasks(
    work: Callable[[int], Callable[[Any, Report], Any]],
    tasks: Sequence[Any],
    processes: int,
    preload: Sequence[str] = (),
) -> Generator[Progress | Done | None, None, None]:
    """Do tasks in this number of processes. Yields events as they happen, and None at least every half second.

    `work` is called once in each process, with the number of the process, and gives the function that does one task;
    both must be picklable. Modules to `preload` are shared by the processes. Processes end with this iterator, and with
    this process, however it ends.

    Raises:
        UserError: that a task raised, or because a process was killed.
    """
    context = multiprocessing.get_context("forkserver")
    # What takes seconds to import is imported once, by the process that the others are forked from.
    context.set_forkserver_preload(list(preload))
    _start_server()
    with contextlib.ExitStack() as stack:
        numbers = range(min(processes, len(tasks)))
        workers = [stack.enter_context(_Worker(context, partial(work, number))) for number in numbers]
        pending = list(range(len(tasks)))[::-1]
        for worker in workers:
            worker.start(pending.pop(), tasks)
        while any(worker.is_busy for worker in workers):
            ready = wait([worker.connection for worker in workers if worker.is_busy], _POLL_SECONDS)
            for worker in [worker for worker in workers if worker.connection in ready]:
                message = worker.receive()
                if isinstance(message, Progress):
                    yield message
                    continue
                yield Done(worker.task, message)
                worker.task = -1
                if pending:
                    worker.start(pending.pop(), tasks)
            yield None


def _start_server() -> None:
    """Start the process that the others are forked from with signals blocked, which these inherit.

    Ctrl-C and the signals of a batch system reach every process of the group: this one decides, and ends the others.
    """
    shielded = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, shielded)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, shielded)


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: Any, work: Callable[[], Callable[[Any, Report], Any]]) -> None:
        self.connection, theirs = context.Pipe()
        self.task = -1
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def is_busy(self) -> bool:
        return self.task >= 0

    def start(self, task: int, tasks: Sequence[Any]) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # it has died: `receive` reports this
            self.connection.send(tasks[task])

    def receive(self) -> Any:
        """The next event of the process. Raises what it raised."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
            raise UserError(
                f"a process of the preparation was ended {how}; if memory ran out, set processes lower; the same"
                " command continues with what is left"
            ) from None
        if isinstance(message, _Raised):
            raise message.error
        return message

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


@dataclass(frozen=True)
class _Raised:
    error: Exception


def _serve(connection: Connection, work: Callable[[], Callable[[Any, Report], Any]]) -> None:
    """Do tasks until the pipe closes."""
    end_with_parent()
    # The processes are the parallelism: threads of the tokenizers library would only compete for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        do = None
        while True:
            task = connection.recv()
            try:
                do = work() if do is None else do
                result = do(task, lambda entries: connection.send(Progress(entries)))
            except (UserError, OSError) as error:
                if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                    raise
                connection.send(_Raised(error))
            except Exception:
                connection.send(_Raised(RuntimeError(traceback.format_exc())))
            else:
                connection.send(result)
