"""YAML documents as trees with the origin of each value."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tolktrain.errors import UserError
from tolktrain.files.reading import DEEPEST, read_text

try:
    from yaml import CSafeDumper as FastDumper  # several times as fast
except ImportError:  # PyYAML was built without its C library
    from yaml import SafeDumper as FastDumper

KeyPath = tuple[str | int, ...]

# Limits that no hand-written file reaches, but a few hundred bytes of aliases can exceed.
_LARGEST_BYTES = 1 << 20
_MOST_NODES = 50_000  # keys, items and values, including those that aliases repeat
_MOST_CHARACTERS = 1 << 22  # of all scalars, likewise
_LONGEST_NUMBER = 100  # characters; also of dates, true and false
_TEXT = "tag:yaml.org,2002:str"
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]*[1-9][0-9_]*")
NULL_NAMES = ("None", "none", "NONE", "nil", "Nil")  # of other languages; text in YAML
_SIGNED_64_BITS = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class Origin:
    """The origin of a value: a line of a file, or the command line."""

    file: Path | None = None
    line: int = 0

    def __str__(self) -> str:
        return "on the command line" if self.file is None else f"{self.file}:{self.line}"


@dataclass
class Located:
    """A value with its origin: a mapping or list of further located values, or a scalar.

    `origin` is the line of the key (or list item).
    """

    value: Any
    origin: Origin
    children: "dict[Any, Located]" = field(default_factory=dict)
    written: str = ""  # text of a scalar without quotes

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
        """All scalars of the tree, with their keys."""
        if not self.is_mapping and not self.is_list:
            yield path, self
        for key, child in self.children.items():
            yield from child.scalars((*path, key))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, and numbers such as 1e-3, .5e3 and +.5, which PyYAML reads as text.

    Also raises `yaml.YAMLError` for documents with too many or too deeply nested values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. PyYAML calls this for each node, recursively for its children."""
        self._depth += 1
        self._num_nodes += 1
        if self._depth > DEEPEST:
            self._refuse(f"it is nested deeper than {DEEPEST} levels")
        if self._num_nodes > _MOST_NODES:
            self._refuse(_too_much())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, problem: str) -> None:
        raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)


class _Dumper(FastDumper):
    """Writes what `_Loader` reads back: text that looks like 1e9, or like a name for null, is put in quotes."""


def _too_much() -> str:
    return f"it holds more than {_MOST_NODES:,} values or {_MOST_CHARACTERS:,} characters, counting what aliases repeat"


def _exponent(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    number = float(node.value.replace("_", ""))
    return int(number) if number.is_integer() and 1 <= abs(number) < 1e15 else number


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "!exponent",
        re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)$", re.ASCII),
        list("-+.0123456789"),
    )
_Dumper.add_implicit_resolver("!null-name", re.compile(f"(?:{'|'.join(NULL_NAMES)})$"), list("Nn"))
_Loader.add_constructor("!exponent", _exponent)


def read_document(path: Path) -> Located:
    """The YAML mapping in `path`. Raises UserError if it cannot be read, is not valid YAML, or has a key twice."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name a YAML file in it")
    try:
        text = read_text(path, _LARGEST_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a YAML file such as configs/quickstart.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); a configuration is a YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    document = parse(text, path)
    if not document.is_mapping:
        found = "nothing" if document.value is None else type(document.value).__name__
        raise UserError(f"{path}: expected a mapping such as 'run: {{name: ...}}', found {found}")
    return document


def write_document(content: Mapping[str, Any]) -> str:
    """YAML that `read_document` reads as the same values."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def parse(text: str, file: Path | None) -> Located:
    """The YAML value in `text`; `file` is its source for messages, None means the command line."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise UserError(f"{Origin(file, 1)}: not valid YAML: {error.reason}") from None
    try:
        node = loader.get_single_node()
        return Located(None, Origin(file, 1)) if node is None else _Builder(loader, file).build(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = Origin(file, mark.line + 1 if mark else 1)
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: {_quoted(text, file)}not valid YAML: {problem}{_hint(text, mark, file)}") from None
    finally:
        loader.dispose()


def _quoted(text: str, file: Path | None) -> str:
    """The value of the command line that a message is about; a file has its line."""
    return f"{text[:80]!r} is " if file is None else ""


def _hint(text: str, mark: yaml.Mark | None, file: Path | None) -> str:
    if file is None:
        return "; put key=value in quotes, so that the shell does not split or change it"
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    return "; indent with spaces, not tabs" if "\t" in line else ""


class _Builder:
    """Turns YAML nodes into located values."""

    def __init__(self, loader: _Loader, file: Path | None) -> None:
        self.loader = loader
        self.file = file
        self.open: list[yaml.Node] = []
        self.num_nodes = self.num_characters = 0

    def build(self, node: yaml.Node, line: int | None = None) -> Located:
        origin = Origin(self.file, (node.start_mark.line if line is None else line) + 1)
        if node in self.open:
            raise UserError(f"{origin}: this alias contains itself")
        self._count(node, origin)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return Located({}, origin, self._mapping(node))
            if isinstance(node, yaml.SequenceNode):
                return Located([], origin, dict(enumerate(self.build(item) for item in node.value)))
            return Located(self._scalar(node, origin), origin, written=_plain_text(node))
        finally:
            self.open.pop()

    def _count(self, node: yaml.Node, origin: Origin) -> None:
        """Count a node, and refuse too many: an alias is expanded to a copy, and nested aliases grow exponentially."""
        self.num_nodes += 1
        self.num_characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if self.num_nodes > _MOST_NODES or self.num_characters > _MOST_CHARACTERS:
            raise UserError(f"{origin}: {_too_much()}; a configuration needs no more")
        if len(self.open) >= DEEPEST:
            raise UserError(f"{origin}: it is nested deeper than {DEEPEST} levels")

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Located]:
        children: dict[Any, Located] = {}
        for key_node, value_node in node.value:
            origin = Origin(self.file, key_node.start_mark.line + 1)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise UserError(f"{origin}: '<<' is not supported; use 'base: other.yaml' to build on another file")
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{origin}: a key must be a name")
            key = self._scalar(key_node, origin)
            if not isinstance(key, (str, int)) or isinstance(key, bool):  # integers are the numbers of items
                raise UserError(
                    f"{origin}: YAML reads the key {key_node.value or 'null'} as {_meaning(key)}, not as a name; put it"
                    f" in quotes{in_quotes(key_node.value, origin)}"
                )
            if key in children:
                raise UserError(f"{origin}: {key} is given twice (first in line {children[key].origin.line}); keep one")
            children[key] = self.build(value_node, key_node.start_mark.line)
        return children

    def _scalar(self, node: yaml.ScalarNode, origin: Origin) -> Any:
        shown = f"{node.value[:80]!r}{'...' if len(node.value) > 80 else ''}"
        # Parsing a million digits takes minutes, and Python refuses to print numbers of thousands of digits.
        if node.tag != _TEXT and len(node.value) > _LONGEST_NUMBER:
            raise UserError(f"{origin}: {shown} has more than {_LONGEST_NUMBER} characters; put text in quotes")
        _refuse_misread(node, origin)
        try:
            value = self.loader.construct_object(node)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML raises various exceptions for a tag such as !!bool that does not fit
            raise UserError(f"{origin}: {shown} cannot be read ({error}); put text in quotes") from None
        if isinstance(value, int) and value not in _SIGNED_64_BITS:
            raise UserError(f"{origin}: {shown} is beyond the whole numbers of 64 bits; put text in quotes")
        if isinstance(value, str) and not _is_text(value):
            raise UserError(f"{origin}: {shown} holds a character that no file or name can have; leave it out")
        return value


def _refuse_misread(node: yaml.ScalarNode, origin: Origin) -> None:
    """Raise UserError for numbers that YAML 1.1 reads as others than people who write them mean."""
    text = _plain_text(node)
    if node.tag not in (_INT, _FLOAT) or not text:
        return
    quoted = f"or put it in quotes{in_quotes(text, origin)} if it is text"
    if node.tag == _INT and _LEADING_ZERO.fullmatch(text):
        digits = text.replace("_", "")
        raise UserError(
            f"{origin}: {text} begins with 0, so YAML reads it as the octal number {int(digits, 8)}; write"
            f" {int(digits)}, {quoted}"
        )
    if ":" in text:
        seconds = yaml.SafeLoader("").construct_yaml_float(yaml.ScalarNode(_FLOAT, text))
        raise UserError(
            f"{origin}: YAML reads {text} in base 60, as the number {seconds:.15g}; write a number, {quoted}"
        )


def _plain_text(node: yaml.ScalarNode) -> str:
    return node.value if node.style is None else ""


def _meaning(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"a {'number' if isinstance(value, float) else type(value).__name__}"


def in_quotes(text: str, origin: Origin) -> str:
    """How to write a value so that YAML reads it as text; the shell removes quotes around an override."""
    return f": '{text}'" if origin.file is not None else f" that the shell keeps: \"'{text}'\""


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def merge(below: Located, above: Located) -> Located:
    """Merge `above` into `below`: mappings merge key by key; any other value replaces the one in `below`.

    A mapping whose keys are item numbers changes single items of a list (`stages: {0: {tokens: 5000}}`).
    Raises UserError if there is no such item.
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

    Raises UserError if there are too many keys, or they lead through a scalar or to a missing list item.
    """
    if not keys:
        return value
    if len(keys) > DEEPEST:
        raise UserError(f"{spelled}: it names a key deeper than {DEEPEST} levels")
    key: str | int = keys[0]
    if tree.is_list:
        if keys[0] not in map(str, tree.children):
            raise UserError(
                f"{spelled}: {keys[0]!r} is no item of a list; use a number from 0 to {len(tree.children) - 1}"
            )
        key = int(keys[0])
    elif not tree.is_mapping:
        raise UserError(
            f"{spelled}: there is no {keys[0]!r} to set, because the value is {tree.value!r}, not a mapping"
        )
    child = tree.children.get(key, Located({}, Origin()))
    changed = override(child, keys[1:], value, spelled)
    return Located(tree.value, tree.origin, {**tree.children, key: changed})
