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
import time
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
# A killed rank's loader processes notice within 5 s that it is gone.
_PATIENCE_SECONDS = 10.0

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
    ranks, if one of the folders is to be filled from remote storage and a living program of this node has it open.
    """
    caches = {folder for folder, remote in zip(streams_local, streams_remote, strict=True) if remote is not None}
    own: tuple[int, SharedMemory] | None = None
    failure: Exception | None = None
    if world.is_local_leader:
        try:
            own = _claim_patiently(list(streams_local), caches)
        except Exception as error:
            failure = error
    told: list[tuple[int | None, Exception | None]] = [(own and own[0], failure)]
    if dist.is_available() and dist.is_initialized():
        told = [(None, None)] * dist.get_world_size()
        dist.all_gather_object(told, (own and own[0], failure))
    for _, failure in told:
        if failure is not None:
            raise failure
    return own or _attach(told[world.node * world.ranks_per_node][0])


def _claim_patiently(folders: list[str], caches: set[str]) -> tuple[int, SharedMemory]:
    """Claim a number, after a while of waiting for programs that are about to end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with _exclusive():
            remove_stale_blocks()
            complaint = _complaint(caches)
            if complaint is None:
                return _claim(folders)
        if time.monotonic() > deadline:
            raise UserError(complaint)
        time.sleep(0.1)


def _attach(number: int | None) -> tuple[int, SharedMemory]:
    """The block that the leader of this node has claimed."""
    try:
        assert number is not None
        return number, SharedMemory(_get_path(number, LOCALS), False)
    except (AssertionError, FileNotFoundError):
        raise UserError(
            "data: the ranks of this node do not share memory; start as many tasks on each node, numbered node after"
            f" node, and let containers on a node share {_FOLDER}"
        ) from None


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """One job of this user on this node at a time: a claim is not yet mapped for a moment, and would seem stale."""
    # Beside what it guards: nodes may share the folder for temporary files, but not this one.
    folder = _FOLDER if _FOLDER.is_dir() else Path(tempfile.gettempdir())
    path = folder / f"tolktrain-start-{os.getuid()}.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another job on this node to start (%s)", path)
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
    """What to say when a living program of this user has one of the folders open."""
    if not _FOLDER.is_dir():
        return None
    for prefix, process in _users().items():
        # Gone since, or of another program that has not filled it yet.
        with contextlib.suppress(OSError, IndexError, ValueError):
            folders, _ = _unpack_locals((_FOLDER / f"{prefix}_{LOCALS}").read_bytes())
            for folder in sorted(caches.intersection(folders)):
                return (
                    f"process {process} of this node has {folder} open, and no other may fill it meanwhile; wait for it"
                    " to end, or give this run a cache of its own (data.sets.NAME.path)"
                )
    return None


def remove_stale_blocks() -> list[str]:
    """Remove blocks of this user that no living process uses, and their lock files; returns their names.

    The library's own `clean_stale_shared_memory` removes those of living jobs too, whose workers would then read the
    sample order of whoever takes the name next. Processes in another PID namespace are not seen: containers that share
    /dev/shm must share it too. A lock file without a block is let alone: it may be another node's, and disturbs nobody.
    """
    if not _FOLDER.is_dir():
        return []
    found = [(name, match[1]) for name in os.listdir(_FOLDER) if (match := _BLOCK_NAME.fullmatch(name))]
    used = _users() if found else {}
    stale = {prefix for name, prefix in found if prefix not in used and _is_own(_FOLDER / name)}
    paths = [_FOLDER / name for name, prefix in found if prefix in stale]
    for prefix in stale:
        paths += [Path(tempfile.gettempdir(), f"{prefix}_{name}") for name in (BARRIER_FILELOCK, CACHE_FILELOCK)]
    removed = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            path.unlink()
            removed.append(path.name)
    if removed:
        logger.info("removed what killed jobs left in shared memory: %s", ", ".join(sorted(removed)))
    return removed


def _is_own(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _users() -> dict[str, int]:
    """A living process that has mapped blocks, by their prefix."""
    mapped = re.compile(rf"{re.escape(str(_FOLDER))}/{_BLOCK_NAME.pattern}")
    users: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for match in mapped.finditer((process / "maps").read_text(errors="replace")):
                users.setdefault(match[1], int(process.name))
    return users
