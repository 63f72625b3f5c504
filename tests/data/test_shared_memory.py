"""What killed runs leave behind neither blocks nor misleads the next, and living runs are let alone."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

from tolktrain.data.shared_memory import (
    _check_owner,
    _complaint,
    _exclusive,
    _users,
    own_names,
    remove_stale_blocks,
)
from tolktrain.errors import UserError
from tolktrain.libraries.streaming import array

HOLDER = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
block = shared_memory.SharedMemory(sys.argv[1], create=True, size=64)
resource_tracker.unregister(block._name, "shared_memory")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def name() -> Iterator[str]:
    """A block name far from those that running programs take. None of them removes stale blocks meanwhile."""
    name = f"{900_000 + os.getpid() % 99_999:06}_barrier"
    with _exclusive():
        yield name
    Path("/dev/shm", name).unlink(missing_ok=True)


def test_only_blocks_of_dead_processes_are_removed(name: str) -> None:
    lock = Path("/dev/shm") / f"{name[:6]}_filelocks" / "barrier"
    lock.parent.mkdir(mode=0o700)
    lock.touch()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, name], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
        remove_stale_blocks()
        assert Path("/dev/shm", name).exists() and lock.exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert Path("/dev/shm", name).exists(), "a killed process leaves its block"
    removed = remove_stale_blocks()
    assert {name, lock.parent.name} <= set(removed)
    assert not Path("/dev/shm", name).exists() and not lock.parent.exists()


def test_a_rank_waits_for_the_size_of_a_block_that_another_one_creates(name: str) -> None:
    """`shm_open` and `ftruncate` are two calls, between which the creator may be interrupted."""
    created = os.open(f"/dev/shm/{name}", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    timer = threading.Timer(0.3, os.ftruncate, (created, 12))
    timer.start()
    try:
        with own_names():
            found = array.SharedArray(3, np.int32, name)
        found[1] = 5
        assert os.pread(created, 12, 0) == bytes([0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0])
        found.shm.cleanup()  # else the block would be mapped by this process in later tests
    finally:
        timer.join()
        os.close(created)


def test_lock_files_without_blocks_are_removed(name: str) -> None:
    """Python removes the blocks of a job that failed, and the library would leave its lock files for ever."""
    folder = Path("/dev/shm") / f"{name[:6]}_filelocks"
    folder.mkdir(mode=0o700)
    (folder / "barrier").touch()
    assert folder.name in remove_stale_blocks() and not folder.exists()


def test_a_block_of_another_user_is_not_used(name: str) -> None:
    """All names of a data set can be guessed once its first block is there, and the library takes what it finds."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    path = Path("/dev/shm", name)
    path.touch()
    _check_owner(int(name[:6]))
    os.chown(path, 4243, 4243)
    with pytest.raises(UserError, match=f"another user of this node has made {path}"):
        _check_owner(int(name[:6]))


def test_own_blocks_are_in_use(name: str) -> None:
    block = shared_memory.SharedMemory(name, create=True, size=64)
    remove_stale_blocks()
    assert Path("/dev/shm", name).exists()
    block.close()
    block.unlink()


def test_other_names_are_let_alone(name: str) -> None:
    other = f"psm_{name}"
    block = shared_memory.SharedMemory(other, create=True, size=64)
    block.close()
    remove_stale_blocks()
    assert Path("/dev/shm", other).exists()
    block.unlink()


def test_jobs_choose_one_after_the_other() -> None:
    """A claim is not mapped for a moment: another job would take it for a dead one's."""
    entered = threading.Event()

    def enter() -> None:
        with _exclusive():
            entered.set()

    other = threading.Thread(target=enter, daemon=True)
    with _exclusive():
        other.start()
        assert not entered.wait(timeout=0.5)
    assert entered.wait(timeout=300)


def test_no_more_processes_are_asked_than_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing what a process has mapped takes milliseconds, and a node has hundreds of them."""
    asked: list[str] = []
    read = Path.read_text

    def counted(path: Path, **options: str) -> str:
        asked.append(str(path))
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    assert _complaint(set()) is None and not asked
    block = shared_memory.SharedMemory(name, create=True, size=64)
    prefix = name.partition("_")[0]
    assert _users({prefix})[prefix] == os.getpid() and asked == [f"/proc/{os.getpid()}/maps"]
    block.close()
    block.unlink()
    assert prefix not in _users({prefix}) and len(asked) > 3
    distances = [abs(int(Path(path).parts[2]) - os.getpid()) for path in asked[1:]]
    assert distances == sorted(distances), "ranks of a job, which are started together, are asked before others"
