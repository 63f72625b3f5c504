"""Names of mosaicml-streaming's shared memory (`000000_locals`, ...), which all jobs of a node share.

The library has each rank look for the first free number. When another job frees one meanwhile, the ranks disagree and
the run ends. Here the leader of a node draws a number and tells the others.
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch.distributed as dist
from streaming.base import dataset
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN
from streaming.base.shared import SharedMemory
from streaming.base.shared.prefix import _get_path, _pack_locals, _unpack_locals
from streaming.base.world import World

from tolktrain.config.errors import UserError

_FOLDER = Path("/dev/shm")
_BLOCK_NAME = re.compile(rf"(\d{{6,9}})_({'|'.join(SHM_TO_CLEAN)})")
_LOCK_NAME = re.compile(rf"(\d{{6,9}})_({BARRIER_FILELOCK}|{CACHE_FILELOCK})")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Within it, data sets of mosaicml-streaming get their names from `register`. All ranks open one together."""
    original = dataset.get_shm_prefix
    dataset.get_shm_prefix = register
    try:
        yield
    finally:
        dataset.get_shm_prefix = original


def register(
    streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World, retry: int = 0
) -> tuple[int, SharedMemory]:
    """In place of the library's `get_shm_prefix`: the number of this node's blocks, and the block that claims it.

    The block lists the folders of the data set. What killed jobs left over is removed first. Raises UserError, on all
    ranks, if a living program of this node fills one of the folders from remote storage, too.
    """
    own: tuple[int, SharedMemory] | None = None
    caches = {folder for folder, remote in zip(streams_local, streams_remote, strict=True) if remote is not None}
    complaint = None
    if world.is_local_leader:
        with _exclusive():
            remove_stale_blocks()
            complaint = _complaint(caches)
            if complaint is None:
                own = _claim(list(streams_local))
    told: list[tuple[int | None, str | None]] = [(own and own[0], complaint)]
    if dist.is_available() and dist.is_initialized():
        told = [(None, None)] * world.num_ranks
        dist.all_gather_object(told, (own and own[0], complaint))
    for _, complaint in told:
        if complaint is not None:
            raise UserError(complaint)
    if own is None:
        number, _ = told[world.node * world.ranks_per_node]
        assert number is not None
        own = number, SharedMemory(_get_path(number, LOCALS), False)
    return own


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """One job of this user on this node at a time: a claim is not yet mapped for a moment, and would seem stale."""
    # Beside what it guards: nodes may share the folder for temporary files, but not this one.
    folder = _FOLDER if _FOLDER.is_dir() else Path(tempfile.gettempdir())
    with (folder / f"tolktrain-start-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing the file would not do while a process forked meanwhile has it open.
            fcntl.flock(lock, fcntl.LOCK_UN)


def _claim(folders: list[str]) -> tuple[int, SharedMemory]:
    while True:
        number = secrets.randbelow(10**9)
        content = _pack_locals(folders, number)
        with contextlib.suppress(FileExistsError):
            block = SharedMemory(_get_path(number, LOCALS), True, len(content))
            block.buf[: len(content)] = content
            return number, block


def _complaint(caches: set[str]) -> str | None:
    """What to say when a living program of this user fills one of the folders."""
    if not _FOLDER.is_dir():
        return None
    for prefix, process in _users().items():
        # Gone since, or of another program that has not filled it yet.
        with contextlib.suppress(OSError, IndexError):
            folders, _ = _unpack_locals((_FOLDER / f"{prefix}_{LOCALS}").read_bytes())
            for folder in sorted(caches.intersection(folders)):
                return (
                    f"{folder} is the local cache of process {process} on this node, and two programs cannot fill one"
                    " folder; wait for it to end, or give this run a folder of its own (data.sets.NAME.path)"
                )
    return None


def remove_stale_blocks() -> list[str]:
    """Remove blocks and lock files of this user that no living process uses; returns their names.

    The library's own `clean_stale_shared_memory` removes those of living jobs too, whose workers would then read the
    sample order of whoever takes the name next. Processes in another PID namespace are not seen: containers that share
    /dev/shm must share it too.
    """
    if not _FOLDER.is_dir():
        return []
    temporary = Path(tempfile.gettempdir())
    found = [
        (folder / name, match[1])
        for folder, pattern in ((_FOLDER, _BLOCK_NAME), (temporary, _LOCK_NAME))
        for name in os.listdir(folder)
        if (match := pattern.fullmatch(name))
    ]
    used = _users() if found else {}
    removed = []
    for path, prefix in found:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if prefix not in used and path.stat().st_uid == os.getuid():
                path.unlink()
                removed.append(path.name)
    if removed:
        logger.info("removed what killed jobs left in shared memory: %s", ", ".join(sorted(removed)))
    return removed


def _users() -> dict[str, int]:
    """A living process that has mapped blocks, by their prefix."""
    mapped = re.compile(rf"{re.escape(str(_FOLDER))}/{_BLOCK_NAME.pattern}")
    users: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for match in mapped.finditer((process / "maps").read_text(errors="replace")):
                users.setdefault(match[1], int(process.name))
    return users
