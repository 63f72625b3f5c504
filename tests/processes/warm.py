"""Processes that are forked from one that has imported everything: a second less to wait for, where it took ten.

For training processes of tests, which are otherwise started as usual. At least one of each kind is a real one: started
by torchrun, by srun, as a console script; and what is chosen by variables before an import needs a real one too.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ports import free_port

HERE = Path(__file__).resolve().parent
CLIENT = HERE / "client.py"
START_SECONDS = 300.0  # on a busy machine
SHIM = """#!/bin/sh
case "$*" in
    "-m tolktrain train "* | "-m tolktrain bench "*) exec {python} -I -S {client} {address} "$@" ;;
    *) exec {python} "$@" ;;
esac
"""


class WarmProcess:
    """A process that a warm one has forked. What it writes is in files, so that it never waits for a reader."""

    def __init__(self, connection: socket.socket, pid: int, output: Path, errors: Path) -> None:
        self.pid = pid
        self._connection = connection
        self._code: int | None = None
        self._output = output
        self._errors = errors

    @property
    def output(self) -> str:
        """What it has written to standard output."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self._errors.read_text()

    def fileno(self) -> int:
        """Can be read from when the process has ended."""
        return self._connection.fileno()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None and select.select([self], [], [], 0)[0]:
            self.wait()
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal; `subprocess.TimeoutExpired` if it still runs after so many seconds."""
        if self._code is None:
            if not select.select([self], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            answer = self._connection.recv(1000)
            assert answer, "the warm process has ended"
            self._code = int(json.loads(answer)["code"])
            self._connection.close()
        return self._code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that forks others. It is started when it is first asked for one, and ends with the context."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="warm-", dir="/tmp"))  # paths of sockets must be short
        self._server: subprocess.Popen[bytes] | None = None
        self._started = 0

    def __enter__(self) -> "Warm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it and all that it has started."""
        if self._server is not None:
            self._server.communicate(timeout=60)
        shutil.rmtree(self._folder)

    def start(
        self,
        *arguments: str | Path,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
        log: Path | None = None,
        new_session: bool = False,
    ) -> WarmProcess:
        """Start a script, or -m and a module, or -c and code, with arguments of its own.

        `environ` are all its variables, as those of this process if None. `log` is a file that gets both its output and
        its errors, after what there is.
        """
        self._started += 1
        output, errors = (self._folder / f"{self._started}.{end}" for end in ("out", "err"))
        if log is not None:
            output = errors = log
        ignored = [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
        order = {
            "arguments": list(map(str, arguments)),
            "environ": dict(os.environ if environ is None else environ),
            "folder": str(folder or Path.cwd()),
            "ignored": ignored,
            "new_session": new_session,
        }
        connection = self._connect()
        with open(os.devnull) as nothing, open(output, "ab") as out, open(errors, "ab") as err:
            streams = [stream.fileno() for stream in (nothing, out, err)]
            socket.send_fds(connection, [json.dumps(order).encode()], streams)
        answer = json.loads(connection.recv(1000))
        assert "pid" in answer, answer
        return WarmProcess(connection, answer["pid"], output, errors)

    def run(self, *arguments: str | Path, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Start a process and wait for its end."""
        process = self.start(*arguments)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, process.output, process.errors)

    def start_ranks(
        self,
        num_ranks: int,
        *arguments: str | Path,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> list[WarmProcess]:
        """As many processes that find each other on this machine, as srun would start them."""
        group = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
        group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
        shared = {**(os.environ if environ is None else environ), **group}
        return [
            self.start(*arguments, environ={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, folder=folder)
            for rank in range(num_ranks)
        ]

    def python_for_launchers(self) -> Path:
        """A folder with a program `python` that is this interpreter, but that ranks are forked from here."""
        self._connect().close()
        folder = self._folder / "bin"
        if not folder.exists():
            folder.mkdir()
            program = folder / "python"
            program.write_text(SHIM.format(python=sys.executable, client=CLIENT, address=self._address))
            program.chmod(0o755)
        return folder

    @property
    def _address(self) -> str:
        return str(self._folder / "socket")

    def _connect(self) -> socket.socket:
        if self._server is None:
            command = [sys.executable, str(HERE / "server.py"), self._address]
            environ = {**os.environ, "WARM_PADDING": " " * 50_000}
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ)
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(self._address)
                return connection
            connection.close()
            assert self._server.poll() is None and time.monotonic() < deadline, "the warm process does not start"
            time.sleep(0.05)


def is_client(pid: int) -> bool:
    """Whether a process only stands for one that was forked from a warm one."""
    with contextlib.suppress(OSError):
        return str(CLIENT).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def wait_for_all(processes: Sequence[WarmProcess], timeout: float) -> list[int]:
    """Exit codes; when one process fails, or too much time passes, the others are killed."""
    deadline = time.monotonic() + timeout
    running = list(processes)
    try:
        while running:
            ready, _, _ = select.select(running, [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired("ranks", timeout)
            running = [process for process in running if process not in ready]
            if any(process.wait() for process in ready):
                break
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes]
