"""Which keys of a configuration may change between two starts of a run, and the differences of two configurations.

Configurations are plain trees here, as in the file config.yaml of a run, which an earlier release may have written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from tolktrain.config.base import ChangeClass
from tolktrain.config.corrections import branches
from tolktrain.config.document import KeyPath
from tolktrain.config.mistakes import annotation_at, dotted, field_at, known_keys, model_in
from tolktrain.config.root import Config

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A key with different values in two configurations."""

    path: KeyPath
    old: Any  # None also for an absent key
    new: Any

    @property
    def key(self) -> str:
        """The key as an override spells it."""
        return dotted(self.path)


def classes_of_keys() -> dict[str, ChangeClass | None]:
    """The class of every key that holds a value; N stands for the number of an item, NAME for a name of the user's
    choice. None if the definition of the key states no class.
    """
    keys = known_keys(Config)
    classes = {key: _own_class(tuple(0 if part == "N" else part for part in key.split("."))) for key in keys}
    groups = {key.rpartition(".")[0].removesuffix(".N").removesuffix(".NAME") for key in keys}
    return {key: found for key, found in classes.items() if found is not None or key not in groups}


def class_of(path: KeyPath) -> ChangeClass | None:
    """The class of a key. None for a key that this release does not know, unless all keys next to it are free."""
    for end in range(len(path), 0, -1):
        found = _own_class(path[:end])
        if found is not None:
            return found
        if field_at(Config, path[:end]) is None:  # the key, or a name of the user's choice
            model = model_in(annotation_at(Config, path[: end - 1]))
            if model is not None:
                classes = {_own_class((*path[: end - 1], name)) for name in model.model_fields}
                return ChangeClass("free") if classes == {ChangeClass("free")} else None
    return None


def with_defaults(tree: Any, annotation: Any = Config) -> Any:
    """The tree with the default of every absent key that has one."""
    model = model_in(annotation)
    if isinstance(tree, Mapping):
        if model is not None:
            return {**_defaults(model), **{k: with_defaults(v, _type_of(model, k)) for k, v in tree.items()}}
        values = next((get_args(a)[1] for a in branches(annotation) if get_origin(a) is dict), None)
        return {key: with_defaults(value, values) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = next((get_args(a)[0] for a in branches(annotation) if get_origin(a) is tuple), None)
        return [with_defaults(value, items) for value in tree]
    return tree


def differences(old: Any, new: Any, path: KeyPath = ()) -> list[Difference]:
    """The keys whose values differ. Lists of values, and mappings of which only one exists, count as values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys((*old, *new))
        return [found for key in keys for found in differences(old.get(key), new.get(key), (*path, key))]
    return [] if old == new else [Difference(path, old, new)]


def value_at(tree: Any, key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    for part in key.split("."):
        if isinstance(tree, Sequence) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping):
            tree = tree.get(part)
        else:
            return None
    return tree


def _own_class(path: KeyPath) -> ChangeClass | None:
    field = field_at(Config, path)
    return next((item for item in (field.metadata if field is not None else []) if isinstance(item, ChangeClass)), None)


def _type_of(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].annotation if name in model.model_fields else None


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    values = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    return {name: to_jsonable_python(value) for name, value in values.items() if value is not PydanticUndefined}
