"""Files in folders that other users of the machine can write to: /tmp, /dev/shm, TMPDIR.

Another user may create a predictable name in advance: as a folder of code that would be loaded, a link to a file that
would be emptied, a FIFO that would block, or a file whose lock is never released. So names are random, and existing
files are used only if they belong to this user and nobody else can write to them.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tolktrain.errors import UserError

_OWN = "TOLKTRAIN_TEMPORARY"  # names the folder that this process, or its parent, has created
_IN_USE = ".in-use"  # in that folder: locked while its process is running; contains the process's number
# A socket's path has at most 107 bytes. Python and torch put sockets up to 40 bytes below the temporary folder.
_LONGEST_FOLDER = 64


def is_own_folder(path: str | Path) -> bool:
    """Whether the path is a folder, not a link to one, of this user, that nobody else can write to."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and _is_private(status, 0o022)


def create_file(path: str | Path) -> BinaryIO:
    """A new file, opened for writing. An existing file or link of this name is removed, not followed or emptied.

    Raises OSError if it cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, "wb")


@contextlib.contextmanager
def exclusive(folder: Path, name: str, timeout_seconds: float, on_wait: Callable[[Path], object]) -> Iterator[None]:
    """A lock for one process of this user on this machine, whatever other users have created in `folder`.

    Args:
        folder: of the lock file `<name>-<uid>-<random>.lock`, which is not removed.
        name: of the lock.
        timeout_seconds: how long to wait for another process.
        on_wait: called once with the lock's path before waiting.

    Raises:
        UserError: another process of this user holds the lock for longer.
        OSError: the folder cannot be written to.
    """
    prefix = f"{name}-{os.geteuid()}-"
    if not _own_locks(folder, prefix):
        descriptor, _ = tempfile.mkstemp(prefix=prefix, suffix=".lock", dir=folder)
        os.close(descriptor)
    deadline = time.monotonic() + timeout_seconds
    with contextlib.ExitStack() as held:
        # All lock files, listed only now: processes that have each created one at the same time share at least one.
        for path, descriptor in _own_locks(folder, prefix, held).items():
            _lock(path, descriptor, deadline, timeout_seconds, on_wait)
            # Closing the file is not sufficient if a process forked meanwhile has it open.
            held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield


def _own_locks(folder: Path, prefix: str, opened: contextlib.ExitStack | None = None) -> dict[Path, int]:
    """Lock files of this user, in the order in which all processes take them, and their open files."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in sorted(os.listdir(folder)):
            if name.startswith(prefix) and name.endswith(".lock"):
                with contextlib.suppress(OSError):
                    # O_NONBLOCK: opening a FIFO without a writer would block.
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                    descriptor = os.open(folder / name, flags)
                    stack.callback(os.close, descriptor)
                    status = os.fstat(descriptor)
                    # Where another user can open it, he can lock it; with a second name it may be any file of this one.
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _is_private(status, 0o077):
                        found[folder / name] = descriptor
        if opened is not None:
            opened.push(stack.pop_all())
        return found


def _lock(
    path: Path, descriptor: int, deadline: float, timeout_seconds: float, on_wait: Callable[[Path], object]
) -> None:
    waits = False
    while not _try_lock(descriptor):
        if not waits:
            waits = True
            on_wait(path)
        if time.monotonic() > deadline:
            holder = _holder(descriptor)
            raise UserError(
                f"{path} has been locked for {timeout_seconds:.0f} s by"
                f" {'another process' if holder is None else f'process {holder}'} of yours on {socket.gethostname()},"
                " which should keep it for a moment only; end that process if it is stuck, and start again"
            )
        time.sleep(0.05)


def _holder(descriptor: int) -> int | None:
    """The process that holds a lock, if it is visible to this one."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with contextlib.suppress(OSError):
        found = re.search(rf"FLOCK .* (\d+) {device}:{status.st_ino} ", Path("/proc/locks").read_text())
        return int(found[1]) if found else None
    return None


def enter_temporary_folder() -> Path:
    """Create a private folder for temporary files of this process and its libraries; returns it.

    TMPDIR names it from now on, unless its path is too long for the sockets that libraries create there. Folders of
    killed processes on this machine are removed. `leave_temporary_folder` removes this one.

    Raises OSError if no folder for temporary files can be written to.
    """
    base = Path(tempfile.gettempdir())
    prefix = _prefix()
    _remove_leftovers(base, prefix)
    folder = None
    while folder is None:
        folder = _claim(Path(tempfile.mkdtemp(prefix=prefix, dir=base)))
    os.environ[_OWN] = str(folder)
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None  # it is looked up once
    return folder


def leave_temporary_folder() -> None:
    """Remove the folder that `enter_temporary_folder` has created in this process. No effect in child processes."""
    folder = Path(os.environ.get(_OWN, os.devnull))
    with contextlib.suppress(OSError, ValueError):
        if int((folder / _IN_USE).read_bytes()) == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    # Nodes may share the folder without sharing its locks.
    return f"tolktrain-{zlib.crc32(socket.gethostname().encode()):08x}-"


def _claim(folder: Path) -> Path | None:
    """Mark a new folder as used by this process; None if another process has removed it as a leftover."""
    try:
        descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    # Left open: the kernel releases the lock when the process ends, for whatever reason. On a file system without
    # locks, no folder counts as a leftover.
    with contextlib.suppress(OSError):
        if not _try_lock(descriptor):
            os.close(descriptor)
            return None
    os.write(descriptor, str(os.getpid()).encode())
    return folder if (folder / _IN_USE).exists() else None


def _remove_leftovers(base: Path, prefix: str) -> None:
    for entry in os.scandir(base):
        if entry.name.startswith(prefix) and is_own_folder(entry.path):
            with contextlib.suppress(OSError):
                descriptor = os.open(Path(entry.path, _IN_USE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    if _try_lock(descriptor):
                        shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Whether the lock was free. Raises OSError if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_private(status: os.stat_result, others: int) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & others
