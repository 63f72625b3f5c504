"""The package as users get it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def copy_sources(folder: Path) -> Path:
    """What an installation is made from, copied so that no build folder is left in the repository."""
    for name in ("tolktrain", "kernels", "src", "launch"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources in a folder named as the package is."""
    return copy_sources(tmp_path_factory.mktemp("home") / "tolktrain")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel file."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_sources(folder / "source")
    command = [sys.executable, *PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))
