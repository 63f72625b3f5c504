"""The launch script on a node where another user has prepared everything that could be guessed."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from long_runs import SCRIPT
from small_runs import read_metrics, write_config, write_sets
from two_users import STRANGER, USER, command_as, needs_root, start_as

pytestmark = pytest.mark.slow

JOB = "777"
SRUN = """#!/bin/bash
while [[ $1 = -* ]]; do shift; done
exec "$@"
"""
# What a compiled kernel in a cache is: code that is loaded when its name is there.
LOAD_KERNELS = """
import os, runpy, sys
from tolktrain.cli import entry

def load_kernels(stop) -> int:
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        folder = os.environ.get(name, "")
        print(name, folder)
        if os.path.exists(os.path.join(folder, "kernel.py")):
            runpy.run_path(os.path.join(folder, "kernel.py"))
    return 0

entry.main = load_kernels
sys.exit(entry.program())
"""
SET_TRAPS = """
import fcntl, os, sys
scratch, mark, *locks = sys.argv[1:]
os.umask(0)
for folder in ("triton", "inductor", ""):
    for base in ("tolktrain-777", "torchinductor_bob", "tolktrain"):
        os.makedirs(os.path.join(scratch, base, folder), exist_ok=True)
        with open(os.path.join(scratch, base, folder, "kernel.py"), "w") as file:
            file.write(f"open({mark!r}, 'w')")
kept = []
for number, path in enumerate(locks):
    if number % 2:
        os.mkfifo(path)
    else:
        kept.append(open(path, "w"))
        fcntl.flock(kept[-1], fcntl.LOCK_EX)
print("ready", flush=True)
sys.stdin.read()
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def node() -> Iterator[Path]:
    """A folder of the user's, `home`, and one like /tmp, `scratch`, in which a stranger has been at work."""
    locks = [Path("/dev/shm", f"tolktrain-start-{USER}{end}.lock") for end in ("", "-0", "-a", "-z")]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        node = Path(folder)
        node.chmod(0o755)
        (node / "home").mkdir()
        (node / "scratch").mkdir()
        (node / "scratch").chmod(0o1777)
        (node / "bin").mkdir()
        written(node / "bin" / "srun", SRUN)
        written(node / "bin" / "scontrol", "#!/bin/sh\necho localhost\n")
        stranger = start_as(
            STRANGER, SET_TRAPS, str(node / "scratch"), str(node / "scratch" / "MARK"), *map(str, locks)
        )
        try:
            assert stranger.stdout is not None and stranger.stdout.readline() == "ready\n", stranger.communicate()
            yield node
        finally:
            stranger.communicate("", timeout=300)
            for path in [*locks, *Path("/dev/shm").glob(f"tolktrain-start-{USER}-*.lock")]:
                path.unlink(missing_ok=True)


def launch(node: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The launch script as a job of one rank of the user's."""
    slurm = {"JOB_ID": JOB, "JOB_NODELIST": "localhost", "JOB_NUM_NODES": "1", "CPUS_PER_TASK": "1", "STEP_ID": "0"}
    slurm |= {"PROCID": "0", "LOCALID": "0", "NTASKS": "1", "NODEID": "0", "STEP_TASKS_PER_NODE": "1"}
    return subprocess.run(
        command_as(USER, "bash", str(SCRIPT), *arguments),
        env={
            **{f"SLURM_{name}": value for name, value in slurm.items()},
            "PATH": f"{node / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            **{"VIRTUAL_ENV": sys.prefix, "TMPDIR": str(node / "scratch"), "HOME": str(node / "home"), "USER": "bob"},
        },
        cwd=node / "home",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def owner(path: Path) -> int | None:
    """User who has a file; None if another test has removed it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_uid
    return None


def traps(node: Path) -> dict[str, tuple[int, float]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime)
        for path in [*(node / "scratch").rglob("*"), *Path("/dev/shm").glob("tolktrain-start-*")]
        if owner(path) == STRANGER
    }


@needs_root
def test_kernels_that_a_stranger_has_compiled_are_not_loaded(node: Path) -> None:
    stub = written(node / "load_kernels.py", LOAD_KERNELS)
    written(node / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} {stub} "$@"\n')
    done = launch(node, "a.yaml")
    assert done.returncode == 0, done.stderr
    assert not (node / "scratch" / "MARK").exists()
    for kind in ("TRITON_CACHE_DIR .*/triton", "TORCHINDUCTOR_CACHE_DIR .*/inductor"):
        assert re.search(rf"^{kind}$", done.stdout, re.M), done.stdout
    assert all(path.stat().st_uid == STRANGER for path in (node / "scratch").iterdir()), "nothing is left behind"


@needs_root
def test_a_run_starts_and_ends_among_traps(node: Path) -> None:
    write_sets(node / "home" / "sets")
    config = write_config(node / "home", node / "home" / "sets")
    subprocess.run(["chown", "-R", f"{USER}:{USER}", node / "home"], check=True)
    before = traps(node)
    assert len(before) > 10
    done = launch(node, str(config), "train.max_steps=2", "evaluation.after_training=false")
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(node / "home" / "runs" / "small")) == 2
    assert traps(node) == before
    assert not (node / "scratch" / "MARK").exists()
    assert all(path.stat().st_uid == STRANGER for path in (node / "scratch").iterdir()), "nothing is left behind"
    assert not [path for path in Path("/dev/shm").glob("[0-9]*_*") if owner(path) == USER]
