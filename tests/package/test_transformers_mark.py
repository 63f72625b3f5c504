"""The tests that run with version 5 of transformers too are all that touch it."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
LIBRARY = "transformers"
MARK = "pytest.mark.transformers"
# Whose helpers import transformers, but for other tests than theirs or for a file that they then damage.
OTHERS = {"units/test_logmel.py", "files/test_readers_of_names.py", "interop/test_transformers_versions.py"}


def imported(path: Path) -> Iterator[str]:
    """First names of what a file imports, anywhere in it, `pytest.importorskip` included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield from (argument.value.split(".")[0] for argument in node.args if isinstance(argument, ast.Constant))


def touching() -> set[str]:
    """Test files that import transformers, or a helper that does."""
    files = {path: set(imported(path)) for path in TESTS.rglob("*.py")}
    helpers = {path.stem for path, names in files.items() if LIBRARY in names and not path.name.startswith("test_")}
    tests = {path for path, names in files.items() if path.name.startswith("test_") and names & {LIBRARY, *helpers}}
    return {path.relative_to(TESTS).as_posix() for path in tests}


def test_every_file_that_touches_transformers_has_the_mark() -> None:
    found = touching()
    assert {"units/test_mimi.py", "units/test_hubert.py", "prepare/test_ctc.py", "interop/test_huggingface.py"} < found
    assert found >= OTHERS
    marked = {name for name in found if MARK in (TESTS / name).read_text()}
    assert found - OTHERS == marked
