"""Names of mosaicml-streaming's shared memory (`000000_locals`, ...), which all jobs of a node share.

In the library, each rank searches for the first free number. If another job frees a number meanwhile, the ranks use
different numbers and the run fails. Here, the first rank of a node draws a number and sends it to the others.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.files.shared import exclusive, is_own_folder
from tolktrain.libraries.streaming import (
    LOCALS,
    SHM_TO_CLEAN,
    SharedMemory,
    World,
    _get_path,
    _pack_locals,
    _unpack_locals,
    array,
    dataset,
)
from tolktrain.libraries.streaming_compat import exchanged
from tolktrain.parallel.collectives import all_gather_objects, is_distributed

_FOLDER = Path("/dev/shm")
# The library's lock files are in a folder of this user next to the blocks; the library would put them into TMPDIR.
_LOCK_FILES = "filelocks"
_BLOCK_NAME = re.compile(rf"(\d{{6,9}})_({'|'.join([*SHM_TO_CLEAN, _LOCK_FILES])})")
# The loader processes of a killed rank notice its end within 5 s.
_LOCK_TIMEOUT_SECONDS = 10.0
# For starts of this user's other jobs on this node, each of which scans the node's processes once.
_START_SECONDS = 120.0
_NOT_SHARED = (
    "data: ranks of a node must share memory, be numbered one after the other, and be as many on each node; start as"
    f" many tasks on each node (srun --distribution=block), and let containers on a node share {_FOLDER}"
)

logger = logging.getLogger(__name__)


def shared_memory_folder() -> Path | None:
    """The folder where the system shows shared memory as files; None if there is none."""
    return _FOLDER if _FOLDER.is_dir() else None


def block_path(number: int, name: str) -> Path:
    """File of a block of a data set, private to this user; `remove_stale_blocks` removes it if its process is
    killed."""
    return _lock_files(number) / name


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """In this context, data sets of mosaicml-streaming get their names from `register`. All ranks open one together.

    Raises UserError at the end if another user has created a block of that name, which the library would use.
    """
    numbers: list[int] = []

    def get_prefix(
        streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World, retry: int = 0
    ) -> tuple[int, SharedMemory]:
        number, block = register(streams_local, streams_remote, world)
        numbers.append(number)
        return number, block

    with (
        exchanged(dataset, get_shm_prefix=get_prefix, gettempdir=lambda: str(_lock_files(numbers[-1]))),
        exchanged(array, SharedMemory=_of_a_size),
    ):
        yield
    for number in numbers:
        _check_owner(number)


def remove_lock_files(number: int) -> None:
    """Remove the lock files of a data set; called by each rank of a node after closing it, so that the last one does.

    The others leave them: a slower rank may be in the library's last barrier, which opens a lock file by its name each
    time.
    """
    folder = _lock_files(number)
    prefix = folder.name.partition("_")[0]
    if not is_distributed() or prefix not in _users({prefix}):
        shutil.rmtree(folder, ignore_errors=True)


def register(
    streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World
) -> tuple[int, SharedMemory]:
    """Replaces the library's `get_shm_prefix`: the number of this node's blocks, and the block that claims it.

    The block lists the folders of the data set. Blocks of killed jobs are removed first.

    Raises UserError on all ranks if a folder that is filled from remote storage is open in another program on this
    node, or if ranks are not distributed over nodes as the order of the records requires.
    """
    caches = {folder for folder, remote in zip(streams_local, streams_remote, strict=True) if remote is not None}
    own: tuple[int, SharedMemory] | None = None
    failure: Exception | None = None
    if world.is_local_leader:
        try:
            own = _claim_patiently(list(streams_local), caches)
        except Exception as error:
            failure = error
    place = world.ranks_per_node, int(os.environ.get("LOCAL_RANK", world.rank_of_node))
    gathered = all_gather_objects((own and own[0], failure, place))
    for _, failure, _ in gathered:
        if failure is not None:
            raise failure
    # Each rank derives the number of nodes from its environment: if the numbers differed, records would silently be
    # read twice.
    if is_distributed() and [place for *_, place in gathered] != [
        (world.ranks_per_node, rank % world.ranks_per_node) for rank in range(len(gathered))
    ]:
        raise UserError(_NOT_SHARED)
    return own or _attach(gathered[world.node * world.ranks_per_node][0])


def _claim_patiently(folders: list[str], caches: set[str]) -> tuple[int, SharedMemory]:
    """Claim a number; waits for programs that are about to end."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
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
    """The block that the first rank of this node has claimed."""
    try:
        assert number is not None and is_own_folder(_lock_files(number))
        return number, SharedMemory(_get_path(number, LOCALS), False)
    except (AssertionError, FileNotFoundError):
        raise UserError(_NOT_SHARED) from None


def _of_a_size(
    name: str | None = None, create: bool | None = None, size: int = 0, auto_cleanup: bool = True
) -> SharedMemory:
    """Replaces the library's `SharedMemory` in its arrays, which each rank of a node creates or attaches to.

    A block exists before it has a size. The library waits for 7 ms; on a busy node, the rank that creates it may be
    interrupted for longer in between.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    while True:
        try:
            return SharedMemory(name, create, size, auto_cleanup)
        except ValueError:  # an empty file cannot be mapped
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _exclusive() -> contextlib.AbstractContextManager[None]:
    """A lock for one job of this user on this node: before it is mapped, a new claim would be considered stale."""

    def on_wait(path: Path) -> None:
        logger.info("waiting for another job on this node to start (%s)", path)

    # In the folder that it guards: nodes may share the folder for temporary files, but not this one.
    return exclusive(_folder(), "tolktrain-start", _START_SECONDS, on_wait)


def _folder() -> Path:
    return _FOLDER if _FOLDER.is_dir() else Path(tempfile.gettempdir())


def _lock_files(number: int) -> Path:
    return _folder() / _get_path(number, _LOCK_FILES)


def _claim(folders: list[str]) -> tuple[int, SharedMemory]:
    while True:
        number = secrets.randbelow(10**9)
        content = _pack_locals(folders, number)
        with contextlib.suppress(FileExistsError):
            _lock_files(number).mkdir(mode=0o700)
            try:
                block = SharedMemory(_get_path(number, LOCALS), True, len(content))
            except BaseException:
                _lock_files(number).rmdir()
                raise
            block.buf[: len(content)] = content
            return number, block


def _check_owner(number: int) -> None:
    """Raise UserError if another user owns a block of this data set: the names can be guessed from the first."""
    for kind in SHM_TO_CLEAN:
        path = _FOLDER / _get_path(number, kind)
        if os.path.lexists(path) and not _is_own(path):
            raise UserError(
                f"another user of this node has made {path}, which this run needs; start it again, it draws"
                " another name"
            )


def _complaint(caches: set[str]) -> str | None:
    """The message if a running program of this user has one of the folders open; otherwise None."""
    if not caches or not _FOLDER.is_dir():
        return None
    for prefix, process in _users().items():
        # The block was removed meanwhile, or another program has not filled it yet.
        with contextlib.suppress(OSError, IndexError, ValueError):
            folders, _ = _unpack_locals((_FOLDER / f"{prefix}_{LOCALS}").read_bytes())
            for folder in sorted(caches.intersection(folders)):
                return (
                    f"process {process} on this node has {folder} open, and no other may fill it meanwhile; wait for it"
                    " to end, or give this run a cache of its own (data.sets.NAME.path)"
                )
    return None


def remove_stale_blocks() -> list[str]:
    """Remove blocks of this user that no running process uses, and their lock files; returns their names.

    The library's `clean_stale_shared_memory` also removes blocks of running jobs, whose workers would then read the
    sample order of the next owner of the name. Processes in another PID namespace are invisible: containers that share
    /dev/shm must also share the namespace.
    """
    if not _FOLDER.is_dir():
        return []
    found = [(name, match[1]) for name in os.listdir(_FOLDER) if (match := _BLOCK_NAME.fullmatch(name))]
    used = _users({prefix for _, prefix in found}) if found else {}
    stale = {prefix for name, prefix in found if prefix not in used and _is_own(_FOLDER / name)}
    removed = []
    for name in (name for name, prefix in found if prefix in stale):
        path = _FOLDER / name
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(name)
    if removed:
        logger.info("removed shared memory of killed jobs: %s", ", ".join(sorted(removed)))
    return removed


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _users(sought: Set[str] | None = None) -> dict[str, int]:
    """A running process that has mapped blocks, by the prefix of the blocks; at least the prefixes that are `sought`.

    The kernel takes milliseconds to list what a process has mapped: once all that are sought were found, no more
    processes are asked. Those that were started at about the same time come first, as the ranks of a job are.
    """
    mapped = re.compile(rf"{re.escape(str(_FOLDER))}/{_BLOCK_NAME.pattern}")
    users: dict[str, int] = {}
    own = os.getpid()
    processes = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    for process in sorted(processes, key=lambda number: abs(number - own)):
        if sought is not None and sought <= users.keys():
            break
        with contextlib.suppress(OSError):
            for match in mapped.finditer(Path(f"/proc/{process}/maps").read_text(errors="replace")):
                users.setdefault(match[1], process)
    return users
