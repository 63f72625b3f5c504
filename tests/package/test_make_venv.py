"""Choice of the interpreter for .venv: the messages where none is fit."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make_venv(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "make_venv.sh"), str(tmp_path / "venv")],
        env={**os.environ, **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def interpreter(folder: Path, name: str, answer: str) -> str:
    """A stand-in for a Python that answers the fitness question with `answer`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/bash\n{answer}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("echo is Python 3.9", "is Python 3.9"),
        (
            "echo 'lacks the venv module (Debian, Ubuntu: apt-get install python3-venv)'",
            "lacks the venv module (Debian, Ubuntu: apt-get install python3-venv)",
        ),
        ("exit 1", "does not run"),
    ],
)
def test_an_unfit_interpreter_is_named(tmp_path: Path, answer: str, reason: str) -> None:
    python = interpreter(tmp_path / "bin", "python3", answer)
    done = make_venv(tmp_path, PYTHON=python)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: tolktrain needs Python 3.10, 3.11 or 3.12 with its venv module:",
        f"  {python} {reason}",
        "error: install one, or name it: make PYTHON=/path/to/python3.11 ...",
    ]
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    assert "/nowhere/python3 is not installed" in make_venv(tmp_path, PYTHON="/nowhere/python3").stderr


def test_a_failed_installation_shows_the_reason_and_little_else(tmp_path: Path) -> None:
    pip = (
        'case "$*" in\n'
        "*--version) exit 0 ;;\n"
        "*) echo \"WARNING: Location 'file:///x/torch/' is ignored: it is neither a file nor a directory.\" >&2\n"
        '   echo "ERROR: no space left on device" >&2; exit 1 ;;\n'
        "esac"
    )
    (tmp_path / "venv").mkdir()
    interpreter(tmp_path / "venv" / "bin", "python", pip)
    done = make_venv(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ERROR: no space left on device",
        "error: the installation failed; see the reason above. Run make again to continue where it stopped.",
    ]
    assert "Installed" not in done.stdout
