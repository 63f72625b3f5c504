"""Imports point downwards, as docs/architecture.md says."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    **dict.fromkeys(("cli", "__main__"), 4),
    **dict.fromkeys(("train", "evaluate", "benchmark", "generate", "inspect", "interop", "prepare", "report"), 3),
    **dict.fromkeys(("model", "checkpoint", "data"), 2),
    **dict.fromkeys(("parallel", "streaming", "units", "cluster", "config", "files", "errors", "source_root"), 1),
    "compiler": 0,
    "imports": 0,
}
STRANGERS = {
    ("model", "data"),
    ("data", "model"),
    ("train", "prepare"),
    ("model", "checkpoint"),
    ("checkpoint", "data"),
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            yield node.module


@functools.cache
def edges() -> frozenset[tuple[str, str]]:
    """Which part of tolktrain imports which."""
    found = set()
    for path in (ROOT / "tolktrain").rglob("*.py"):
        part = path.relative_to(ROOT / "tolktrain").parts[0].removesuffix(".py")
        names = (name.split(".") for name in imported(path))
        found |= {(part, name[1]) for name in names if name[0] == "tolktrain" and len(name) > 1}
    return frozenset((here, there) for here, there in found if here != there and here != "__init__")


def test_every_part_has_a_floor() -> None:
    assert {part for edge in edges() for part in edge} == set(FLOORS)


@pytest.mark.parametrize(("here", "there"), sorted(edges()))
def test_imports_point_downwards(here: str, there: str) -> None:
    assert FLOORS[there] <= FLOORS[here]
    assert (here, there) not in STRANGERS
    assert (there, here) not in edges(), "two parts import each other"


def test_kernels_know_nothing_of_tolktrain() -> None:
    names = {name.split(".")[0] for path in (ROOT / "kernels").rglob("*.py") for name in imported(path)}
    assert "tolktrain" not in names
