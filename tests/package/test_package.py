"""What is installed, and the files around it."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import tolktrain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that no build folder is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("tolktrain", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_module_under_its_import_name(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tolktrain").rglob("*.py")}
    expected |= {
        f"tolktrain_kernels/{path.relative_to(ROOT / 'kernels').as_posix()}"
        for path in (ROOT / "kernels").rglob("*.py")
    }
    assert expected <= names
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {
        "tolktrain",
        "tolktrain_kernels",
    }


def test_the_wheel_holds_templates_licence_and_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tolktrain").rglob("*.html")}
    assert templates <= set(names)
    assert "tolktrain/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "tolktrain = tolktrain.cli:main" in wheel.read(entry_points).decode()


def test_the_installed_package_is_this_one() -> None:
    assert metadata.version("tolktrain") == tolktrain.__version__
    assert set(metadata.metadata("tolktrain").get_all("Provides-Extra") or []) == {"gpu", "audio", "dev"}


def _name(requirement: str) -> str:
    matched = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert matched is not None
    return re.sub(r"[-_.]+", "-", matched[0]).lower()


def test_every_requirement_is_pinned_for_every_python() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r'[a-z0-9-]+==[^ ;]+(; python_version (<|>=) "3\.11")?', pin), pin
    for requirement in metadata.requires("tolktrain") or []:
        name = _name(requirement)
        if 'extra == "gpu"' in requirement:
            continue
        markers = sorted(pin.partition(";")[2].strip() for pin in pins if _name(pin) == name)
        assert markers in ([""], ['python_version < "3.11"', 'python_version >= "3.11"']), name


def test_the_installed_versions_are_the_pinned_ones() -> None:
    new = sys.version_info >= (3, 11)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin, _, marker = line.partition(";")
        applies = not marker or (">=" in marker) == new
        if "==" not in pin or not applies:
            continue
        name, version = pin.split("==")
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # pinned for another platform or Python
        assert installed == version, name


def test_the_licence_is_complete() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.split()) > 1500
