"""What is installed, and the files around it."""

import ast
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TypeGuard

import tolktrain

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_every_module_under_its_import_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
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


def test_the_wheel_holds_templates_licence_and_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tolktrain").rglob("*.html")}
    assert templates <= set(names)
    assert "tolktrain/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "tolktrain = tolktrain.cli:program" in archive.read(entry_points).decode()


def test_the_installed_package_is_this_one() -> None:
    assert metadata.version("tolktrain") == tolktrain.__version__
    extras = {"gpu", "audio", "text", "eval", "demo", "dev"}
    assert set(metadata.metadata("tolktrain").get_all("Provides-Extra") or []) == extras


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


def _declared() -> set[str]:
    """Requirements in setup.py, those of the extra dev left out."""
    call = next(node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if _is_setup(node))
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    extras = ast.literal_eval(given["extras_require"])
    names = ("gpu", "audio", "text", "eval", "demo")
    lists = [ast.literal_eval(given["install_requires"]), *(extras[name] for name in names)]
    return {_name(requirement) for requirements in lists for requirement in requirements}


def _is_setup(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"


def _imported() -> dict[str, str]:
    """Every foreign top-level module that the package imports, with a file that does."""
    found: dict[str, str] = {}
    for folder in ("tolktrain", "kernels"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.append(str(node.module))
                found |= {name.split(".")[0]: file.name for name in names}
    own = {"tolktrain", "tolktrain_kernels"}
    return {name: file for name, file in found.items() if name not in own | set(sys.stdlib_module_names)}


def test_everything_that_is_imported_is_required() -> None:
    declared, distributions = _declared(), metadata.packages_distributions()
    # The first are asked for by configuration; a message says how to install them. The last runs tests of a checkout.
    optional = {"wandb", "lhotse", "pytest"}
    missing = {
        name: file
        for name, file in _imported().items()
        if name not in optional and not declared & {_name(item) for item in distributions.get(name, [name])}
    }
    assert missing == {}


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
