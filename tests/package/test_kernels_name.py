"""`kernels` belongs to Hugging Face: our folder of that name must never be found in its place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

AT_EXIT = """
import atexit

def tell():
    import kernels, tolktrain_kernels
    print("kernels", kernels.__file__)
    print("tolktrain_kernels", tolktrain_kernels.__file__)

atexit.register(tell)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with a package `kernels`, as transformers imports it, and a hook that tells at exit what was found."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("__version__ = '0.10.0'\n")
    (tmp_path / "sitecustomize.py").write_text(AT_EXIT)
    return tmp_path


def found(library: Path, *command: str) -> dict[str, str]:
    environ = {**os.environ, "PYTHONPATH": str(library)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()[-2:]
    return dict(line.split(" ", 1) for line in lines)


def test_both_are_found_beside_each_other_from_the_root_of_the_repository(library: Path) -> None:
    expected = {
        "kernels": str(library / "kernels" / "__init__.py"),
        "tolktrain_kernels": str(ROOT / "kernels" / "__init__.py"),
    }
    assert found(library, "-m", "tolktrain", "config", "--schema") == expected
    script = Path(sys.executable).with_name("tolktrain")
    assert found(library, str(script), "config", "--schema") == expected


def test_the_danger_is_real(library: Path) -> None:
    """Without precautions the working folder hides the library: what the first test proves is not vacuous."""
    assert found(library, "-c", "pass")["kernels"] == str(ROOT / "kernels" / "__init__.py")


def test_nothing_of_ours_answers_to_the_name_here() -> None:
    """In this very test process, where no such library is installed."""
    code = (
        "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; print(u.find_spec('kernels'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None" or str(ROOT) not in done.stdout
    assert str(ROOT) not in sys.path
