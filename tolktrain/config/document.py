"""YAML documents as trees that remember where each value was written."""

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tolktrain.config.errors import UserError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where something was written: a line of a file, or the command line."""

    file: Path | None = None
    line: int = 0

    def __str__(self) -> str:
        return "on the command line" if self.file is None else f"{self.file}:{self.line}"


@dataclass
class Located:
    """A value with its origin: a mapping or list of further located values, or a scalar.

    `origin` is the line of the key (or list item), which is where a reader looks.
    """

    value: Any
    origin: Origin
    children: "dict[Any, Located]" = field(default_factory=dict)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    def plain(self) -> Any:
        """The value without origins."""
        if self.is_mapping:
            return {key: child.plain() for key, child in self.children.items()}
        if self.is_list:
            return [child.plain() for child in self.children.values()]
        return self.value

    def scalars(self, path: KeyPath = ()) -> "Iterator[tuple[KeyPath, Located]]":
        """Every scalar below with its keys."""
        if not self.is_mapping and not self.is_list:
            yield path, self
        for key, child in self.children.items():
            yield from child.scalars((*path, key))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, and numbers such as 1e-3 and 1e9, which it would take for text."""


def _exponent(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    number = float(node.value.replace("_", ""))
    return int(number) if number.is_integer() and 1 <= abs(number) < 1e15 else number


_Loader.add_implicit_resolver(
    "!exponent", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_constructor("!exponent", _exponent)


def read_document(path: Path) -> Located:
    """The YAML mapping in `path`. Raises UserError when it cannot be read, is no valid YAML, or gives a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a YAML file such as configs/quickstart.yaml") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); a configuration is a YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    document = parse(text, path)
    if not document.is_mapping:
        found = "nothing" if document.value is None else type(document.value).__name__
        raise UserError(f"{path}: expected a mapping such as 'run: {{name: ...}}', found {found}")
    return document


def parse(text: str, file: Path | None) -> Located:
    """The YAML value in `text`; `file` names its source in messages, None stands for the command line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return Located(None, Origin(file, 1)) if node is None else _Builder(loader, file).build(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = Origin(file, mark.line + 1 if mark else 1)
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: not valid YAML: {problem}{_hint(text, mark)}") from None
    finally:
        loader.dispose()


def _hint(text: str, mark: yaml.Mark | None) -> str:
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    return "; indent with spaces, not tabs" if "\t" in line else ""


class _Builder:
    """Turns YAML nodes into located values."""

    def __init__(self, loader: _Loader, file: Path | None) -> None:
        self.loader = loader
        self.file = file
        self.open: list[yaml.Node] = []

    def build(self, node: yaml.Node, line: int | None = None) -> Located:
        origin = Origin(self.file, (node.start_mark.line if line is None else line) + 1)
        if node in self.open:
            raise UserError(f"{origin}: this alias contains itself")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return Located({}, origin, self._mapping(node))
            if isinstance(node, yaml.SequenceNode):
                return Located([], origin, dict(enumerate(self.build(item) for item in node.value)))
            return Located(self._scalar(node, origin), origin)
        finally:
            self.open.pop()

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Located]:
        children: dict[Any, Located] = {}
        for key_node, value_node in node.value:
            origin = Origin(self.file, key_node.start_mark.line + 1)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise UserError(f"{origin}: '<<' is not supported; use 'base: other.yaml' to build on another file")
            key = self._scalar(key_node, origin) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, Hashable) or key is None:
                raise UserError(f"{origin}: a key must be a name")
            if key in children:
                raise UserError(f"{origin}: {key} is given twice (first in line {children[key].origin.line}); keep one")
            children[key] = self.build(value_node, key_node.start_mark.line)
        return children

    def _scalar(self, node: yaml.Node, origin: Origin) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError as error:
            raise UserError(f"{origin}: {node.value!r} cannot be read ({error}); put text in quotes") from None


def merge(below: Located, above: Located) -> Located:
    """`above` laid over `below`: mappings merge key by key; anything else replaces what is below.

    A mapping whose keys are item numbers changes single items of a list (`stages: {0: {tokens: 5000}}`).
    Raises UserError when there is no such item.
    """
    if above.is_mapping and below.is_list and above.children and all(isinstance(key, int) for key in above.children):
        for key, child in above.children.items():
            if key not in below.children:
                raise UserError(
                    f"{child.origin}: there is no item {key}; the list has {len(below.children)} items, from 0"
                )
    elif not (above.is_mapping and below.is_mapping):
        return above
    children = dict(below.children)
    for key, child in above.children.items():
        children[key] = merge(children[key], child) if key in children else child
    return Located(below.value, above.origin, children)


def override(tree: Located, keys: Sequence[str], value: Located, spelled: str) -> Located:
    """`tree` with the value at the dotted `keys` replaced. `spelled` is the override as written, for messages.

    Raises UserError when the keys lead through a scalar or to a missing list item.
    """
    if not keys:
        return value
    key: str | int = keys[0]
    if tree.is_list:
        if not keys[0].isdigit() or int(keys[0]) not in tree.children:
            raise UserError(
                f"{spelled}: {keys[0]!r} is no item of a list; use a number from 0 to {len(tree.children) - 1}"
            )
        key = int(keys[0])
    elif not tree.is_mapping:
        raise UserError(f"{spelled}: there is no {keys[0]!r} to set, because {tree.value!r} stands in its place")
    child = tree.children.get(key, Located({}, Origin()))
    changed = override(child, keys[1:], value, spelled)
    return Located(tree.value, tree.origin, {**tree.children, key: changed})
