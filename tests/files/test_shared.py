"""Files in folders that others write to: what a stranger has put there is neither used, nor changed, nor waited for."""

import contextlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_users import STRANGER, USER, needs_root, run_as, start_as

from tolktrain.cluster.kernel_caches import place_kernel_caches
from tolktrain.errors import UserError
from tolktrain.files.shared import create_file, exclusive, is_own_folder


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp, which other users can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


def ignore(path: Path) -> None:
    pass


def test_one_after_the_other(shared: Path) -> None:
    entered = threading.Event()
    waited: list[Path] = []

    def enter() -> None:
        with exclusive(shared, "start", 60, waited.append):
            entered.set()

    other = threading.Thread(target=enter, daemon=True)
    with exclusive(shared, "start", 60, ignore):
        other.start()
        assert not entered.wait(timeout=0.5)
    assert entered.wait(timeout=300)
    (lock,) = shared.iterdir()
    assert waited == [lock] and stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_lock_that_is_never_given_back_is_told(shared: Path) -> None:
    with (
        exclusive(shared, "start", 60, ignore),
        pytest.raises(UserError, match=rf"locked for 0 s by process {os.getpid()} of yours on .* end that process"),
        exclusive(shared, "start", 0.2, ignore),
    ):
        pass


def count_up(shared: Path, counter: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait(300)
    for _ in range(20):
        with exclusive(shared, "start", 60, ignore):
            number = int(counter.read_text())
            counter.write_text(str(number + 1))


def test_processes_that_make_the_lock_at_the_same_moment_share_one(shared: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        counter = tmp_path / str(turn)
        counter.write_text("0")
        folder = shared / str(turn)
        folder.mkdir()
        barrier = context.Barrier(6)
        processes = [context.Process(target=count_up, args=(folder, counter, barrier)) for _ in range(6)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0] * 6
        assert counter.read_text() == "120"


LOCK = """
import sys
from pathlib import Path
from tolktrain.files.shared import exclusive
with exclusive(Path(sys.argv[1]), "start", 20, print):
    print("ready", flush=True)
    if len(sys.argv) > 2:
        sys.stdin.read()
"""
# Under the names that the lock may have, and the plain one that any program would think of.
TRAPS = {
    "file": "open(path, 'w').close(); os.chmod(path, 0o666)",
    "locked file": "file = open(path, 'w'); os.chmod(path, 0o666); fcntl.flock(file, fcntl.LOCK_EX)",
    "fifo": "os.mkfifo(path); os.chmod(path, 0o666)",
    "folder": "os.mkdir(path); os.chmod(path, 0o777)",
    "link": "os.symlink(victim, path)",
    "link to a device": "os.symlink('/dev/zero', path)",
}
SET_TRAPS = """
import fcntl, os, sys
folder, victim, *names = sys.argv[1:]
kept = []
for name in names:
    path = os.path.join(folder, name)
    {trap}
    kept += [value for key, value in list(globals().items()) if key == "file"]
print("ready", flush=True)
sys.stdin.read()
"""


@needs_root
@pytest.mark.parametrize("trap", TRAPS)
def test_traps_of_a_stranger(shared: Path, trap: str) -> None:
    victim = shared / "thesis.txt"
    victim.write_text("years of work")
    os.chown(victim, USER, USER)
    names = [f"start-{USER}.lock", *(f"start-{USER}-{first}0000000.lock" for first in "0_az")]
    stranger = start_as(STRANGER, SET_TRAPS.replace("{trap}", TRAPS[trap]), str(shared), str(victim), *names)
    assert stranger.stdout is not None and stranger.stdout.readline() == "ready\n"
    try:
        first = start_as(USER, LOCK, str(shared), "hold")
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        second = run_as(USER, LOCK.replace("20", "0.3"), str(shared))  # the user's processes still exclude each other
        assert second.returncode == 1 and f"by process {first.pid} of yours" in second.stderr
        first.communicate("", timeout=300)
        third = run_as(USER, LOCK, str(shared))
        assert (third.returncode, third.stdout) == (0, "ready\n"), third.stderr
    finally:
        stranger.communicate("", timeout=300)
    assert victim.read_text() == "years of work"
    assert len(list(shared.glob(f"start-{USER}-????????.lock"))) == 5


def test_a_lock_that_others_can_open_is_not_used(shared: Path) -> None:
    """Whoever can read a file can lock it."""
    for mode in (0o644, 0o660):
        path = shared / f"start-{os.geteuid()}-{mode}.lock"
        path.touch()
        path.chmod(mode)
    with exclusive(shared, "start", 20, ignore):
        assert len(list(shared.iterdir())) == 3


def test_only_folders_that_nobody_else_can_write_to_are_own(tmp_path: Path) -> None:
    folder, link, file = tmp_path / "folder", tmp_path / "link", tmp_path / "file"
    folder.mkdir(mode=0o755)
    link.symlink_to(folder)
    file.touch()
    assert is_own_folder(folder)
    assert not any(is_own_folder(path) for path in (link, file, tmp_path / "absent"))
    for mode in (0o777, 0o775, 0o1777):
        folder.chmod(mode)
        assert not is_own_folder(folder)
    if os.geteuid() == 0:
        folder.chmod(0o755)
        os.chown(folder, STRANGER, STRANGER)
        assert not is_own_folder(folder)


def test_a_new_file_follows_no_link_and_empties_nothing(tmp_path: Path) -> None:
    path, victim = tmp_path / "mark", tmp_path / "thesis.txt"
    victim.write_text("years of work")
    path.symlink_to(victim)
    with create_file(path) as file:
        file.write(b"1")
    assert victim.read_text() == "years of work" and path.read_text() == "1" and not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    create_file(path).close()
    assert path.is_file()


ENTER = """
import os, sys, tempfile
from tolktrain.files.shared import enter_temporary_folder, leave_temporary_folder
folder = enter_temporary_folder()
assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder), folder
open(os.path.join(tempfile.mkdtemp(), "large"), "w").close()
print(folder, flush=True)
if sys.argv[1:] == ["stay"]:
    sys.stdin.read()
if os.fork() == 0:
    leave_temporary_folder()  # it is the parent's
    os._exit(0)
os.wait()
assert folder.exists()
leave_temporary_folder()
"""


def enter(base: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", ENTER, *arguments],
        env={**os.environ, "TMPDIR": str(base)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_temporary_files_of_killed_processes_are_removed(shared: Path) -> None:
    killed, living = enter(shared, "stay"), enter(shared, "stay")
    assert killed.stdout is not None and living.stdout is not None
    left, used = Path(killed.stdout.readline().strip()), Path(living.stdout.readline().strip())
    assert stat.S_IMODE(used.stat().st_mode) == 0o700 and left.parent == used.parent == shared
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    prefix = left.name[: len("tolktrain-12345678-")]
    # Of another machine that shares the folder, of a stranger, a link, and of another program.
    others = [shared / "tolktrain-00000000-abcdefgh", shared / "another", shared / f"{prefix}linked"]
    others[0].mkdir(mode=0o700)
    others[1].mkdir(mode=0o700)
    others[2].symlink_to(others[1])
    if os.geteuid() == 0:
        others.append(shared / f"{prefix}stranger")
        others[-1].mkdir(mode=0o777)
        os.chown(others[-1], STRANGER, STRANGER)
    third = enter(shared)
    assert third.wait(300) == 0
    assert not left.exists() and used.exists()
    living.communicate("", timeout=300)
    assert living.returncode == 0
    assert sorted(shared.iterdir()) == sorted(others)


def test_a_start_removes_what_was_killed_before_it_was_marked(shared: Path) -> None:
    done = enter(shared)
    assert done.stdout is not None
    name = Path(done.stdout.readline().strip()).name
    assert done.wait(300) == 0
    (shared / name).mkdir(mode=0o700)
    assert enter(shared).wait(300) == 0
    assert not list(shared.iterdir())


def test_many_starts_at_once_keep_each_their_own(shared: Path) -> None:
    processes = [enter(shared) for _ in range(12)]
    assert [process.wait(300) for process in processes] == [0] * 12
    assert not list(shared.iterdir())


def test_a_path_that_is_too_long_for_sockets_is_not_given_to_libraries(shared: Path) -> None:
    base = shared / ("x" * 60)
    base.mkdir()
    code = ENTER.replace(
        'tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder)',
        'tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder.parent)',
    )
    environ = {**os.environ, "TMPDIR": str(base)}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=300)
    assert len(list(base.iterdir())) == 1, "that of mkdtemp"


def test_the_fusion_of_triton_does_not_depend_on_its_version(tmp_path: Path) -> None:
    """Its default changes in Triton 3.10. A choice of the user stays."""
    for given in ({}, {"TRITON_DEFAULT_FP_FUSION": "0"}):
        environ = dict(given)
        place_kernel_caches(tmp_path, environ)
        assert environ["TRITON_DEFAULT_FP_FUSION"] == given.get("TRITON_DEFAULT_FP_FUSION", "1")


# PyTorch is imported once, but for its compiler, which chooses the folder when it is imported.
CACHES = """
import json, os, sys
import torch
from tolktrain.cluster.kernel_caches import place_kernel_caches
from tolktrain.files.shared import enter_temporary_folder, leave_temporary_folder

def show(environ):
    os.environ.update(environ)
    place_kernel_caches(enter_temporary_folder())
    import torch._inductor.runtime.cache_dir_utils as utils
    names = ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TMPDIR")
    print(utils.cache_dir(), *(os.environ.get(name) for name in names), flush=True)
    leave_temporary_folder()

assert "torch._inductor" not in sys.modules
for environ in json.loads(sys.argv[1]):
    process = os.fork()
    if process == 0:
        try:
            show(environ)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 0
"""


@pytest.mark.slow
@needs_root
def test_kernels_of_a_stranger_are_not_loaded(shared: Path) -> None:
    """PyTorch's own default is a name in the shared folder: whoever makes it first chooses the code that is loaded."""
    trap = shared / "torchinductor_bob"
    trap.mkdir(mode=0o777)
    os.chown(trap, STRANGER, STRANGER)
    home = shared / "home"
    home.mkdir(mode=0o755)
    os.chown(home, USER, USER)
    environ = {"TMPDIR": str(shared), "USER": "bob", "LOGNAME": "bob"}

    def places(*variables: dict[str, str]) -> list[list[str]]:
        done = run_as(USER, CACHES, json.dumps(variables), environ=environ)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    own_home = {"HOME": str(home)}
    at_home, in_a_job, *homeless = places(
        own_home, {**own_home, "SLURM_JOB_ID": "7"}, {"HOME": "/nonexistent"}, {"HOME": str(shared)}
    )
    inductor, triton, extensions, own = at_home
    assert (inductor, triton, extensions) == (f"{home}/.cache/tolktrain/inductor", "None", "None")
    assert Path(inductor).stat().st_uid == USER
    inductor, triton, extensions, own = in_a_job
    assert (inductor, triton, extensions) == (f"{own}/inductor", f"{own}/triton", "None")
    # Without a home folder of the user's own, everything is in the process's folder.
    assert len(homeless) == 2
    for inductor, triton, extensions, own in homeless:
        assert (inductor, triton, extensions) == (f"{own}/inductor", f"{own}/triton", f"{own}/extensions")
        assert Path(own).parent == shared
    with contextlib.suppress(FileNotFoundError):
        os.rename(home / ".cache", home / ".old")
    strangers = shared / "cache"
    strangers.mkdir(mode=0o777)
    os.chown(strangers, STRANGER, STRANGER)
    (home / ".cache").symlink_to(strangers)
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
    chosen = dict(zip(names, ("/tmp/mine-4242", "/my/own", "/my/other"), strict=True))
    (inductor, *_, own), given = places(own_home, chosen)
    assert inductor == f"{own}/inductor"
    assert given[:3] == ["/tmp/mine-4242", "/my/own", "/my/other"]
    os.rmdir("/tmp/mine-4242")
    assert not list(trap.iterdir()) and not list(strangers.iterdir())
