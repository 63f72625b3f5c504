"""Imports that are put off, with small packages made for the purpose."""

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tolktrain.libraries.imports import deferred

Write = Callable[..., ModuleType]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Imports a module with this content within `deferred("heavy")`; the package `heavy` is there to be imported."""
    (tmp_path / "heavy" / "inner").mkdir(parents=True)
    (tmp_path / "heavy" / "__init__.py").write_text("class Base:\n    def __init__(self, x=0): self.x = x\n")
    (tmp_path / "heavy" / "inner" / "__init__.py").write_text("VALUE = 7\ndef double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(content: str, *packages: str) -> ModuleType:
        (tmp_path / "user_of_heavy.py").write_text(content)
        with deferred(*(packages or ("heavy",))):
            return importlib.import_module("user_of_heavy")

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] in ("heavy", "user_of_heavy")]:
        del sys.modules[name]
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "tolktrain.libraries.imports"]


def is_loaded() -> bool:
    return any(name.split(".")[0] == "heavy" for name in sys.modules)


def test_nothing_is_imported_until_it_is_used(user: Write) -> None:
    module = user("import heavy\nimport heavy.inner as inner\nfrom heavy.inner import double\n")
    assert not is_loaded()
    assert module.double(4) == 8
    assert is_loaded()
    assert module.inner.VALUE == 7
    assert module.heavy.Base(3).x == 3


def test_later_imports_give_the_package_itself(user: Write) -> None:
    user("import heavy\n")
    heavy = importlib.import_module("heavy")
    assert heavy.__file__ is not None
    assert isinstance(heavy.Base, type)
    assert sys.modules["heavy"] is heavy


def test_classes_can_be_asked_about_and_inherited_from(user: Write) -> None:
    module = user("from heavy import Base\ndef is_one(x): return isinstance(x, (int, Base))\n")
    real = importlib.import_module("heavy").Base
    assert module.is_one(real()) and module.is_one(1) and not module.is_one("")
    assert issubclass(type("Derived", (real,), {}), module.Base)

    class Inherited(module.Base):  # type: ignore[name-defined,misc]
        pass

    assert Inherited.__mro__[1] is real


def test_annotations_import_nothing(user: Write) -> None:
    user(
        "from typing import Optional\nfrom heavy import Base\n"
        "def f(a: Optional[Base], b: Base | None = None, c: 'None | Base' = None) -> None | Base: ...\n"
    )
    assert not is_loaded()


@pytest.mark.parametrize(
    "use",
    ["class Derived(heavy.Base): pass\n", "made = heavy.Base(1)\n", "from heavy.inner import double\ndouble(1)\n"],
)
def test_a_use_while_importing_gets_the_package(user: Write, use: str) -> None:
    module = user(f"import heavy\n{use}")
    assert is_loaded()
    assert sys.modules["heavy"].__file__ is not None
    assert module.heavy.Base is sys.modules["heavy"].Base


def test_a_package_that_is_not_installed_is_missed(user: Write) -> None:
    module = user("try:\n    import lighter\nexcept ImportError:\n    lighter = None\n", "lighter")
    assert module.lighter is None


def test_a_loaded_package_is_used(user: Write) -> None:
    heavy = importlib.import_module("heavy")
    assert user("import heavy\n").heavy is heavy


def test_submodules_alone_can_be_put_off(user: Write) -> None:
    module = user("import heavy\nimport heavy.inner\n", "heavy.inner")
    assert module.heavy.Base().x == 0
    assert "heavy.inner" not in sys.modules
    assert module.heavy.inner.double(2) == 4
    assert module.heavy.inner is sys.modules["heavy.inner"]


def test_a_failing_import_leaves_nothing_behind(user: Write) -> None:
    with pytest.raises(ZeroDivisionError):
        user("import heavy\n1 / 0\n")
    assert not is_loaded()


@pytest.mark.transformers
@pytest.mark.slow
def test_real_libraries_are_whole_after_ours_were_imported(repository: Path, tmp_path: Path) -> None:
    """What we keep out of mosaicml-streaming, megatron-core and DeepSpeed is there for whoever uses it."""
    program = Path(__file__).parent / "whole_libraries.py"
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("library", "door"),
    [
        ("streaming", "libraries/streaming.py"),
        ("megatron", "parallel/megatron.py"),
        ("tensorboard", "train/callbacks/trackers.py"),
    ],
)
def test_there_is_one_way_in(repository: Path, library: str, door: str) -> None:
    """An import past it would bring in all that is kept out."""
    package = repository / "tolktrain"
    importing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if library in set(imported_by(path.read_text()))
    }
    assert importing == {door}


@functools.cache
def imported_by(source: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
