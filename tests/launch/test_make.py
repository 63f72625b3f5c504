"""`make pretrain` that is interrupted: the run's own message is the last one."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `make` fails with "wait: No child processes" if its recipe ends before it has handled its own SIGINT: it waits again
# in the handler, for a child that it has just reaped. A run takes longer than that to save.
SAVES = """trap 'sleep 0.5; echo "stopped after step 3 with a checkpoint"; exit {code}' INT
touch ready
while :; do sleep 0.05; done
"""


def make(folder: Path, run: str, installing: str = "") -> subprocess.Popen[str]:
    """`make pretrain` with stand-ins for the launch script and, if it is not empty, the installation."""
    (folder / "launch").mkdir()
    (folder / ".venv").mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "launch" / "pretrain.sbatch").write_text(run)
    (folder / "launch" / "make_venv.sh").write_text(installing)
    for name in ("setup.py", "constraints.txt"):
        (folder / name).touch()
    if not installing:
        (folder / ".venv" / ".installed").touch()
        os.utime(folder / ".venv" / ".installed", (time.time() + 60,) * 2)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(["make", "pretrain"], cwd=folder, text=True, start_new_session=True, **streams)


def interrupt(process: subprocess.Popen[str], ready: Path) -> str:
    """Ctrl-C once the file is there; returns all output."""
    deadline = time.monotonic() + 300
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=300)[0]


@pytest.mark.parametrize("code", [75, 130])
def test_ctrl_c_during_the_run(tmp_path: Path, code: int) -> None:
    process = make(tmp_path, SAVES.format(code=code))
    output = interrupt(process, tmp_path / "ready")
    assert output.splitlines()[-1] == "stopped after step 3 with a checkpoint", output
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_during_the_installation(tmp_path: Path) -> None:
    """The environment does not count as installed."""
    process = make(tmp_path, "echo trained\n", SAVES.format(code=1))
    output = interrupt(process, tmp_path / "ready")
    assert "***" not in output and "trained" not in output and process.returncode == -signal.SIGINT
    assert not (tmp_path / ".venv" / ".installed").exists()


def test_a_run_that_fails_is_an_error_of_make(tmp_path: Path) -> None:
    process = make(tmp_path, "exit 2\n")
    assert "Error 2" in process.communicate(timeout=300)[0] and process.returncode == 2
