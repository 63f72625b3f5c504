"""Private names of libraries are used through the modules that list them; other tests compare the lists with them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tolktrain.libraries.streaming_compat import STREAMING
from tolktrain.libraries.torch_compat import TORCH
from tolktrain.parallel.megatron_compat import MEGATRON
from tolktrain.train.deepspeed.compat import DEEPSPEED

ROOT = Path(__file__).parents[2]
USERS = (
    "libraries/compiler.py",
    "libraries/streaming_compat.py",
    "libraries/torch_compat.py",
    "parallel/megatron_compat.py",
    "train/deepspeed/bf16_update.py",  # its methods of DeepSpeed's optimizer, which compat.py lists
    "train/deepspeed/compat.py",
)
TABLE = (*DEEPSPEED, *MEGATRON, *STREAMING, *TORCH)
LISTED = {name for entry in TABLE for name in (entry.attribute, *re.split(r"[.:]", entry.owner))}
DOCUMENTED = {
    "_asdict",
    "_current_frames",
    "_exit",
    "_fields",
    "_make",
    "_replace",
}  # by Python, in spite of their name


def own_names(tree: ast.AST) -> set[str]:
    """Names of functions, classes and attributes of instances that a file defines."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def foreign_private_names(path: Path, ours: set[str]) -> Iterator[tuple[int, str, bool]]:
    """Line and name of each private attribute that is not `ours`, and whether a class of the file inherits it."""
    tree = ast.parse(path.read_text())
    own = own_names(tree) | DOCUMENTED | (ours - LISTED)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            is_inherited = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr not in own:
                yield node.lineno, node.attr, is_inherited


def test_private_names_of_libraries_are_listed() -> None:
    """Those that a class of ours inherits are in a list; all others are used in few modules alone."""
    wrong = []
    paths = sorted((ROOT / "tolktrain").rglob("*.py"))
    ours = set().union(*(own_names(ast.parse(path.read_text())) for path in paths))
    for path in paths:
        name = path.relative_to(ROOT / "tolktrain").as_posix()
        for line, attribute, is_inherited in foreign_private_names(path, ours):
            if attribute not in LISTED or not (is_inherited or name in USERS):
                wrong.append(f"tolktrain/{name}:{line}: {attribute}")
    assert not wrong, "\n".join(wrong)
