"""Guards around the shared memory of mosaicml-streaming, whose names (`000000_locals`, ...) a node's jobs share."""

import contextlib
import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN
from torch import distributed

_FOLDER = Path("/dev/shm")
_BLOCK_NAME = re.compile(rf"(\d{{6}})_({'|'.join(SHM_TO_CLEAN)})")
_LOCK_NAME = re.compile(rf"(\d{{6}})_({BARRIER_FILELOCK}|{CACHE_FILELOCK})")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive_start(is_local_leader: bool) -> Iterator[None]:
    """Let one job of this user on this node at a time choose and create its shared memory.

    Two jobs that start together would otherwise take the same names, and read each other's sample order. What killed
    jobs left over is removed first. All ranks of a job enter together; the leader of each node holds the lock.
    """
    with contextlib.ExitStack() as stack:
        if is_local_leader:
            # Beside what it guards: nodes may share the folder for temporary files, but not this one.
            folder = _FOLDER if _FOLDER.is_dir() else Path(tempfile.gettempdir())
            path = folder / f"tolktrain-start-{os.getuid()}.lock"
            lock = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another job on this node to start (%s)", path)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Closing the file would not do while a process forked meanwhile has it open.
            stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)
            remove_stale_blocks()
        _barrier()
        yield
        _barrier()


def remove_stale_blocks() -> list[str]:
    """Remove blocks and lock files of this user that no living process uses; returns their names.

    The library's own `clean_stale_shared_memory` removes those of living jobs too, whose workers would then read the
    sample order of whoever takes the name next. Processes in another PID namespace are not seen: containers that share
    /dev/shm must share it too.
    """
    if not _FOLDER.is_dir():
        return []
    names = [name for name in os.listdir(_FOLDER) if _BLOCK_NAME.fullmatch(name)]
    locks = [name for name in os.listdir(tempfile.gettempdir()) if _LOCK_NAME.fullmatch(name)]
    if not names and not locks:
        return []
    used = _prefixes_in_use()
    removed = []
    for folder, candidates in ((_FOLDER, names), (Path(tempfile.gettempdir()), locks)):
        for name in candidates:
            path = folder / name
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if name[:6] not in used and path.stat().st_uid == os.getuid():
                    path.unlink()
                    removed.append(name)
    if removed:
        logger.info("removed what killed jobs left in shared memory: %s", ", ".join(sorted(removed)))
    return removed


def _prefixes_in_use() -> set[str]:
    """Prefixes of the blocks that living processes have mapped."""
    mapped = re.compile(rf"{re.escape(str(_FOLDER))}/{_BLOCK_NAME.pattern}")
    prefixes: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            prefixes.update(match[1] for match in mapped.finditer((process / "maps").read_text(errors="replace")))
    return prefixes


def _barrier() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
