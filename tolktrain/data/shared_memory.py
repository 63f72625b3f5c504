"""Names of mosaicml-streaming's shared memory (`000000_locals`, ...), which all jobs of a node share.

The library has each rank look for the first free number. When another job frees one meanwhile, the ranks disagree and
the run ends. Here the leader of a node draws a number and tells the others.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
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
    dataset,
)
from tolktrain.libraries.streaming_compat import exchanged
from tolktrain.parallel.collectives import all_gather_objects, is_distributed

_FOLDER = Path("/dev/shm")
# Beside the blocks stands a folder of this user's for the library's lock files, which it would put into TMPDIR.
_LOCK_FILES = "filelocks"
_BLOCK_NAME = re.compile(rf"(\d{{6,9}})_({'|'.join([*SHM_TO_CLEAN, _LOCK_FILES])})")
# A killed rank's loader processes notice within 5 s that it is gone.
_LOCK_TIMEOUT_SECONDS = 10.0
# For starts of this user's other jobs on this node: each looks through the node's processes once.
_START_SECONDS = 120.0
_NOT_SHARED = (
    "data: ranks of a node must share memory, be numbered one after the other, and be as many on each node; start as"
    f" many tasks on each node (srun --distribution=block), and let containers on a node share {_FOLDER}"
)

logger = logging.getLogger(__name__)


def shared_memory_folder() -> Path | None:
    """Where the system shows shared memory as files, None where it does not."""
    return _FOLDER if _FOLDER.is_dir() else None


def block_path(number: int, name: str) -> Path:
    """File of a block of a data set, out of reach of other users; `remove_stale_blocks` finds it if its process is
    killed."""
    return _lock_files(number) / name


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Within it, data sets of mosaicml-streaming get their names from `register`. All ranks open one together.

    Raises UserError at the end if another user has made a block of that name before the library did: it would use it.
    """
    numbers: list[int] = []

    def get_prefix(
        streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World, retry: int = 0
    ) -> tuple[int, SharedMemory]:
        number, block = register(streams_local, streams_remote, world)
        numbers.append(number)
        return number, block

    with exchanged(dataset, get_shm_prefix=get_prefix, gettempdir=lambda: str(_lock_files(numbers[-1]))):
        yield
    for number in numbers:
        _check_owner(number)


def remove_lock_files(number: int) -> None:
    """The leader of a node calls this when it has closed a data set.

    A slower rank may still be leaving the library's last barrier, which opens a lock file by its name each time. Then
    the next start removes the files.
    """
    folder = _lock_files(number)
    if folder.name.partition("_")[0] not in _users():
        shutil.rmtree(folder, ignore_errors=True)


def register(
    streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World
) -> tuple[int, SharedMemory]:
    """In place of the library's `get_shm_prefix`: the number of this node's blocks, and the block that claims it.

    The block lists the folders of the data set. What killed jobs left over is removed first.

    Raises UserError, on all ranks, if one of the folders is to be filled from remote storage and a living program of
    this node has it open, or if ranks are not dealt out to nodes as the order of the records supposes.
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
    # Each rank counts nodes by what it is told: of different counts records would be read twice, without a word.
    if is_distributed() and [place for *_, place in gathered] != [
        (world.ranks_per_node, rank % world.ranks_per_node) for rank in range(len(gathered))
    ]:
        raise UserError(_NOT_SHARED)
    return own or _attach(gathered[world.node * world.ranks_per_node][0])


def _claim_patiently(folders: list[str], caches: set[str]) -> tuple[int, SharedMemory]:
    """Claim a number, after a while of waiting for programs that are about to end."""
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
    """The block that the leader of this node has claimed."""
    try:
        assert number is not None and is_own_folder(_lock_files(number))
        return number, SharedMemory(_get_path(number, LOCALS), False)
    except (AssertionError, FileNotFoundError):
        raise UserError(_NOT_SHARED) from None


def _exclusive() -> contextlib.AbstractContextManager[None]:
    """One job of this user on this node at a time: a claim is not yet mapped for a moment, and would seem stale."""

    def on_wait(path: Path) -> None:
        logger.info("waiting for another job on this node to start (%s)", path)

    # Beside what it guards: nodes may share the folder for temporary files, but not this one.
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
    """Raise UserError if one of this data set's blocks is another user's: its name can be guessed from the first."""
    for kind in SHM_TO_CLEAN:
        path = _FOLDER / _get_path(number, kind)
        if os.path.lexists(path) and not _is_own(path):
            raise UserError(
                f"another user of this node has made {path}, which this run needs; start it again, it draws"
                " another name"
            )


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
    /dev/shm must share it too.
    """
    if not _FOLDER.is_dir():
        return []
    found = [(name, match[1]) for name in os.listdir(_FOLDER) if (match := _BLOCK_NAME.fullmatch(name))]
    used = _users() if found else {}
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
        logger.info("removed what killed jobs left in shared memory: %s", ", ".join(sorted(removed)))
    return removed


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
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
