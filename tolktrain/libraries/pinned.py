"""Undocumented parts of libraries that are used, as tables that a test compares with the installed library.

Each module that uses private parts of a library lists them. When a pinned version is raised, one test per library
reports everything that has changed.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Pinned:
    """An attribute of a module, a class or its instances."""

    owner: str  # "package.module" or "package.module:Class"
    attribute: str
    # Names of a function's parameters in order; "value" for what is no function and exists before any call; "assigned"
    # for what the owner's code sets on instances.
    expected: tuple[str, ...] | Literal["value", "assigned"] = "value"


def changes(table: Iterable[Pinned]) -> list[str]:
    """The differences of the installed libraries from the table, one line each."""
    return [line for entry in table if (line := _change(entry)) is not None]


def _change(entry: Pinned) -> str | None:
    name = f"{entry.owner}.{entry.attribute}"
    try:
        owner = _resolve(entry.owner)
    except (ImportError, AttributeError) as error:
        return f"{name}: {entry.owner} does not exist any more ({error})"
    if entry.expected == "assigned":
        return None if entry.attribute in _assigned(owner) else f"{name}: nothing sets it any more"
    if not hasattr(owner, entry.attribute):
        return f"{name}: is gone"
    found = getattr(owner, entry.attribute)
    if entry.expected == "value":
        return None
    if not callable(found):
        return f"{name}: is no function any more"
    parameters = tuple(inspect.signature(found).parameters)
    return None if parameters == entry.expected else f"{name}: takes {parameters}, expected {entry.expected}"


def _resolve(path: str) -> Any:
    module, _, qualified = path.partition(":")
    owner: Any = importlib.import_module(module)
    for part in qualified.split(".") if qualified else ():
        owner = getattr(owner, part)
    return owner


def _assigned(owner: Any) -> set[str]:
    """Names of attributes that the code of a module or class sets, or annotates in the body of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    found = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    fields = [node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return found | {target.id for target in fields if isinstance(target, ast.Name)}
