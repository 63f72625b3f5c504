"""Turns pydantic's validation errors into messages that name the file, line, key, expected value and fix."""

import difflib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from annotated_types import MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tolktrain.config.corrections import branches, fix_of, missing_blank
from tolktrain.config.document import KeyPath, Located, in_quotes

# What people name the key for a text, such as a path, that is no key.
_NAMES_OF_TEXT = frozenset({
    "path", "name", "name_or_path", "model_name_or_path", "pretrained_model_name_or_path", "pretrained",
    "from_pretrained", "checkpoint", "model", "model_name", "model_id", "id", "repo", "repo_id", "hub", "hub_id",
    "huggingface", "hf", "folder", "dir", "directory", "file", "value",
})  # fmt: skip
_LONGEST_SHOWN = 200  # characters of a value
SCALARS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
BOUNDS = {
    annotated_types.Gt: ("gt", "greater than"),
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Lt: ("lt", "below"),
    annotated_types.Le: ("le", "at most"),
}


def describe(errors: Sequence[ErrorDetails], tree: Located, root: type[BaseModel]) -> list[str]:
    """One message per mistake. `tree` is the document that `root` rejected."""
    messages: dict[str, None] = {}
    paths = [(key_path(error, tree), error) for error in errors]
    replaced: set[KeyPath] = set()
    for path, error in paths:
        if path is not None and (message := _text_as_mapping(error, path, tree, root)) is not None:
            messages[message] = None
            replaced.add(path[:-1])
    for path, error in paths:
        if path is None or path[:-1] in replaced or (error["type"] == "too_short" and _is_below(path, paths)):
            continue  # pydantic counts a list with invalid items as empty; the errors of the items are sufficient
        for message in _messages(error, path, tree, root):
            messages[message] = None
    return list(messages)


def key_path(error: ErrorDetails, tree: Located) -> KeyPath | None:
    """The keys of an error as the user would write them; None for the wrong branch of a union.

    Pydantic includes the branch of a union in the location (`model.backbone.str`), and `[key]` after an invalid key.
    """
    path: KeyPath = ()
    node: Located | None = tree
    location = error["loc"]
    for i, part in enumerate(location):
        known = node is not None and part in node.children
        last = i == len(location) - 1
        if not known and not (last and error["type"] in ("missing", "extra_forbidden")):
            tried_scalar = part in ("str", "int", "float", "bool")
            if node is not None and not node.is_list and part != "[key]" and tried_scalar == node.is_mapping:
                return None
            continue
        path = (*path, part)
        node = node.children.get(part) if node is not None else None
    return path


def dotted(path: KeyPath) -> str:
    """The keys as an override spells them: train.stages.0.tokens."""
    return ".".join(str(part) for part in path)


def _text_as_mapping(error: ErrorDetails, path: KeyPath, tree: Located, root: type[BaseModel]) -> str | None:
    """The message if text is given as a key of a mapping, which may be there too: `backbone: {path: FOLDER}`."""
    if error["type"] != "extra_forbidden" or not isinstance(error["input"], str):
        return None
    kinds = branches(annotation_at(root, path[:-1]))
    others = [key for key in _node(path[:-1], tree).children if key not in known_keys_of(kinds)]
    if str not in kinds or not known_keys_of(kinds) or (str(path[-1]) not in _NAMES_OF_TEXT and len(others) > 1):
        return None
    if str(path[-1]) not in _NAMES_OF_TEXT and _closest(str(path[-1]), known_keys_of(kinds)):
        return None
    parent, value = dotted(path[:-1]), error["input"]
    in_file = _node(path, tree).origin.file is not None
    correction = f"{path[-2]}: {value}" if in_file else f"{parent}={value}"
    return (
        f"{_origin(path, tree)}: {dotted(path)} is not a known key; if {parent} is to be {value!r}, write {correction}"
    )


def _is_below(path: KeyPath, paths: Sequence[tuple[KeyPath | None, ErrorDetails]]) -> bool:
    return any(other is not None and len(other) > len(path) and other[: len(path)] == path for other, _ in paths)


def _messages(error: ErrorDetails, path: KeyPath, tree: Located, root: type[BaseModel]) -> list[str]:
    kind, given = error["type"], error["input"]
    where = _origin(path, tree)
    if kind == "missing" and isinstance(path[-1], int):
        kind, path = "too_short", path[:-1]  # pydantic reports a missing item of a list as a missing key
    if kind == "missing":
        field = field_at(root, path)
        meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        return [f"{where}: {dotted(path)} is missing{meaning}; {_add(path, field)}"]
    if kind == "extra_forbidden":
        return [f"{where}: {dotted(path)} is not a known key; {_nearest(path, root)}"]
    if error["loc"] and error["loc"][-1] == "[key]":
        expected = expectation(annotation_at(root, path[:-1]), keys=True)
        near = _closest(str(path[-1]), re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", ""))))
        if isinstance(path[-1], int) and expected == SCALARS[str]:
            quoted = in_quotes(str(path[-1]), _node(path[:-1], tree).origin)
            return [
                f"{where}: {dotted(path)}: YAML reads {path[-1]} as a number, not as a name; put it in quotes{quoted}"
            ]
        return [f"{where}: {dotted(path)} is not a known key; {near or f'expected {expected}'}"]
    if kind == "value_error":
        return [_placed(line, path, tree) for line in str(error["ctx"]["error"]).splitlines()]
    field = field_at(root, path)
    annotation = annotation_at(root, path)
    expected = expectation(annotation, field)
    node = _node(path, tree)
    shown = _shown(given)
    if not isinstance(given, str) and _differs(node.written, given):
        shown = f"{shown} (written {node.written})"
    fix = missing_blank(path[-1], given) or fix_of(annotation, given, node)
    return [f"{where}: {dotted(path)}: expected {expected}, got {shown}{'; ' if fix else ''}{fix}"]


def _node(path: KeyPath, tree: Located) -> Located:
    """The value at a path, or the one above it that exists."""
    node = tree
    for part in path:
        if part not in node.children:
            break
        node = node.children[part]
    return node


def _origin(path: KeyPath, tree: Located) -> str:
    return str(_node(path, tree).origin)


def _differs(written: str, value: Any) -> bool:
    """Whether a value that is no text looks so different from what was written that a reader would not find it."""
    if value is None or isinstance(value, bool):
        return bool(written) and written.lower() not in ("null", "true", "false")
    return isinstance(value, float) and not math.isfinite(value) and bool(written)


def _placed(message: str, path: KeyPath, tree: Located) -> str:
    """A validator's message, with the line of the key that it begins with."""
    first = message.split(" ", 1)[0]
    inner: KeyPath = tuple(int(part) if part.isdigit() else part for part in first.split("."))
    full = (*path, *inner)
    node: Located | None = tree
    for part in full:
        node = node.children.get(part) if node is not None else None
    if node is not None:
        return f"{_origin(full, tree)}: {dotted(full)}{message[len(first) :]}"
    return f"{_origin(path, tree)}: {dotted(path) + ': ' if path else ''}{message}"


def _add(path: KeyPath, field: FieldInfo | None) -> str:
    *parents, name = path
    expected = "a value" if field is None else expectation(field.annotation, field)
    return f"add '{name}: ...' under {dotted(tuple(parents)) or 'the top level'} with {expected}"


def _nearest(path: KeyPath, root: type[BaseModel]) -> str:
    name = str(path[-1])
    indexed = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    if indexed is not None:
        return f"write {dotted((*path[:-1], indexed[1], indexed[2]))}"
    siblings = known_keys_of([annotation_at(root, path[:-1])])
    elsewhere = [place for place in known_keys(root) if place.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere[:3])}?"
    return _closest(name, siblings) or f"known here: {', '.join(siblings)}"


def _closest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else ""


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration; N stands for an item's number, NAME for a name of the user's choice."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        annotation: Any = field.annotation
        place = f"{prefix}{name}."
        while get_origin(annotation) in (tuple, dict):
            place += "N." if get_origin(annotation) is tuple else "NAME."
            annotation = get_args(annotation)[0 if get_origin(annotation) is tuple else 1]
        inner = model_in(annotation)
        if inner is not None:
            keys += known_keys(inner, place)
    return keys


def known_keys_of(kinds: Sequence[Any]) -> list[str]:
    """The keys of the configuration model among some types."""
    return [key for kind in kinds if (model := model_in(kind)) is not None for key in model.model_fields]


@lru_cache(maxsize=1024)  # a configuration is searched for all its texts, whenever it is read
def annotation_at(root: type[BaseModel], path: KeyPath) -> Any:
    """The type that belongs at `path`; None when the path leads nowhere."""
    annotation: Any = root
    for part in path:
        model = model_in(annotation)
        container = next((a for a in branches(annotation) if get_origin(a) in (tuple, dict)), None)
        if model is not None:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
        elif container is None:
            return None
        elif get_origin(container) is dict:
            annotation = get_args(container)[1]
        else:
            items = [a for a in get_args(container) if a is not Ellipsis]
            annotation = items[part] if isinstance(part, int) and part < len(items) else items[0]
    return annotation


def field_at(root: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """The field definition at `path`, if a model (not a list or mapping) holds it."""
    model = model_in(annotation_at(root, path[:-1])) if path else None
    return model.model_fields.get(str(path[-1])) if model is not None else None


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The configuration model that a type accepts."""
    for branch in branches(annotation):
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            return branch
    return None


def expectation(annotation: Any, field: FieldInfo | None = None, keys: bool = False) -> str:
    """In words, what a type accepts: "a whole number greater than 0"."""
    words = [_words(branch, keys) for branch in branches(annotation)]
    limits = [*(field.metadata if field is not None else []), *_limits(annotation)]
    bounds = [
        f"{word} {getattr(limit, attribute):g}"
        for limit in limits
        for kind, (attribute, word) in BOUNDS.items()
        if isinstance(limit, kind)
    ]
    words[0] += f" {' and '.join(bounds)}" if bounds else ""
    words[0] += " with at least one entry" if any(isinstance(limit, MinLen) for limit in limits) else ""
    return " or ".join(words)


def _limits(annotation: Any) -> list[Any]:
    """Bounds inside `Annotated[float, Field(gt=0)]`."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [limit for extra in extras if isinstance(extra, FieldInfo) for limit in extra.metadata]


def _words(annotation: Any, keys: bool) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(value) for value in arguments)
    if get_origin(annotation) is dict:
        return _words(arguments[0], False) if keys else "a mapping"
    if get_origin(annotation) is tuple:
        if arguments[-1] is Ellipsis:
            model = model_in(arguments[0])
            return "a list of mappings" if model else f"a list with items of {_words(arguments[0], False)}"
        return f"a list of {len(arguments)} items, each {_words(arguments[0], False)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        required = [name for name, field in annotation.model_fields.items() if field.is_required()]
        return f"a mapping with {', '.join(required)}" if required else "a mapping"
    return SCALARS.get(annotation, str(annotation))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} items"
    shown = repr(value) if isinstance(value, (str, int, float)) else f"{value!s} ({type(value).__name__})"
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
