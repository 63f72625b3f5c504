"""Reads YAML files and overrides into one validated configuration.

A configuration may name others in `base:` (one file or a list, relative to its own folder). They are read first, in
order, and the file is merged into them: mappings merge key by key, a mapping with item numbers as keys changes single
items of a list, any other value replaces the one before. Overrides are applied last.

Input paths may be relative. They are searched in the working directory, then in the folder of the file that names the
path, then in the folders above it up to the root of its git repository; the first existing path is used. The resolved
configuration contains absolute paths, so that it can be read from anywhere. A path that does not exist is resolved from
the working directory. The output folder (`run.dir`) stays relative to the working directory.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tolktrain.config.base import GivenPath, InputPath
from tolktrain.config.corrections import null_name_mistake
from tolktrain.config.document import KeyPath, Located, Origin, merge, override, parse, read_document, write_document
from tolktrain.config.mistakes import annotation_at, describe, dotted, field_at
from tolktrain.config.prepare import PrepareConfig
from tolktrain.config.root import Config, set_uses
from tolktrain.config.suite import SuiteConfig
from tolktrain.errors import UserError
from tolktrain.files.given import given_path

Root = TypeVar("Root", bound=BaseModel)

_MOST_MISTAKES = 50  # described mistakes; each is compared with all known keys
_MOST_FILES = 50  # a base counts each time it is named, because the number of bases can double at each level


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file `path`, with overrides such as `train.max_steps=10` (values are YAML).

    Raises UserError with all mistakes, each with its file and line, or if an override adds a data set that is not used.
    """
    return _overridden(_with_bases(Path(path), (), iter(range(_MOST_FILES))), overrides, Path(path))


def config_of(values: Mapping[str, Any], overrides: Sequence[str], source: Path) -> Config:
    """The configuration of plain values with overrides; `source` is where they come from, for messages.

    Raises UserError like `load_config`.
    """
    return _overridden(parse(write_document(values), source), overrides, source)


def _overridden(tree: Located, overrides: Sequence[str], path: Path) -> Config:
    in_files = _set_names(tree)
    added: dict[str, str] = {}  # data sets that overrides add, with the override
    for text in overrides:
        tree = _override(tree, text)
        added |= {name: text for name in _set_names(tree) if name not in in_files and name not in added}
    config = _validated(path, tree, Config)
    _refuse_unused(config, added)
    return config


def load_prepare_config(path: str | Path, overrides: Sequence[str] = ()) -> PrepareConfig:
    """The configuration of `tolktrain prepare` in the YAML file `path`; otherwise like `load_config`."""
    return _load(path, overrides, PrepareConfig)


def load_suite(path: str | Path) -> SuiteConfig:
    """The suite of benchmarks in the YAML file `path`. Raises UserError like `load_config`."""
    return _load(path, (), SuiteConfig)


def _load(path: str | Path, overrides: Sequence[str], root: type[Root]) -> Root:
    tree = _with_bases(Path(path), (), iter(range(_MOST_FILES)))
    for text in overrides:
        tree = _override(tree, text)
    return _validated(Path(path), tree, root)


def _validated(path: Path, tree: Located, root: type[Root]) -> Root:
    messages = _resolve_texts(tree, root)
    errors: list[ErrorDetails] = []
    try:
        config = root.model_validate(tree.plain())
        if not messages:
            return config
    except ValidationError as error:
        errors = error.errors(include_url=False)
        messages += describe(errors[:_MOST_MISTAKES], tree, root)
    if len(messages) == 1 and len(errors) <= _MOST_MISTAKES:
        raise UserError(messages[0])
    more = " and more" if len(errors) > _MOST_MISTAKES else ""
    raise UserError(f"{path}: {len(messages)} mistakes{more}\n" + "\n".join(f"  {message}" for message in messages))


def dump_config(config: BaseModel) -> str:
    """The whole configuration as YAML, from which the same configuration is read."""
    return write_document(config.model_dump(mode="json"))


def schema(root: type[BaseModel] = Config) -> dict[str, Any]:
    """JSON schema of configuration files, for editors."""
    result = root.model_json_schema()
    result["properties"] = {
        "base": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "Configuration file or files that this one builds on.",
        },
        **result["properties"],
    }
    # A file with a base need not contain all required keys.
    result.pop("required", None)
    return result


def _with_bases(path: Path, opened: tuple[Path, ...], budget: Iterator[int]) -> Located:
    if next(budget, None) is None:
        raise UserError(f"{path}: more than {_MOST_FILES} files are read by way of base; join some of them")
    document = read_document(path)
    base = document.children.pop("base", None)
    if base is None:
        return document
    names = list(base.children.values()) if base.is_list else [base]
    opened = (*opened, path.resolve())
    below: Located | None = None
    for name in names:
        if not isinstance(name.value, str):
            raise UserError(f"{name.origin}: base: expected the name of a YAML file or a list of them")
        try:
            file = path.parent / given_path(name.value, is_input=True)
        except UserError as error:
            raise UserError(f"{name.origin}: base: {error}") from None
        if not os.path.isfile(file):
            raise UserError(f"{name.origin}: base names {file}, which does not exist; it is relative to {path.parent}")
        if file.resolve() in opened:
            chain = " -> ".join(str(item.name) for item in (*opened, file))
            raise UserError(f"{name.origin}: base leads back to {file}: {chain}")
        document_below = _with_bases(file, opened, budget)
        below = document_below if below is None else merge(below, document_below)
    return document if below is None else merge(below, document)


def _override(tree: Located, text: str) -> Located:
    dotted, equals, value = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"on the command line: {text!r} is not of the form key=value, such as train.max_steps=10")
    if not value.strip():
        raise UserError(f"on the command line: {text!r} has no value; write {dotted}=null to unset it")
    return override(tree, keys, parse(value, None), f"on the command line: {text!r}")


def _set_names(tree: Located) -> list[str]:
    node: Located | None = tree
    for key in ("data", "sets"):
        node = node.children.get(key) if node is not None else None
    return list(node.children) if node is not None and node.is_mapping else []


def _refuse_unused(config: Config, added: Mapping[str, str]) -> None:
    """Refuse an unused data set that an override adds: its name is misspelled. Shared files may define unused sets."""
    used = {name for _, name in set_uses(config)}
    for name, text in added.items():
        if name not in used and name in config.data.sets:
            others = sorted(other for other in config.data.sets if other not in added)
            near = difflib.get_close_matches(name, others, n=1)
            hint = f"did you mean {near[0]}?" if near else f"defined sets: {', '.join(others) or 'none'}"
            raise UserError(
                f"on the command line: {text!r} adds the data set {name!r}, which no mixture, validation or evaluation"
                f" names; {hint}"
            )


def _resolve_texts(tree: Located, root: type[BaseModel]) -> list[str]:
    """Make the paths of inputs absolute and expand the others, in the tree itself; returns mistakes in texts."""
    mistakes = []
    for path, node in tree.scalars():
        mistake = null_name_mistake(annotation_at(root, path), node)
        if mistake is not None:
            mistakes.append(f"{node.origin}: {dotted(path)}: {mistake}")
            node.value = None  # so that it causes no further mistakes
            continue
        mark = _mark(path, root)
        if mark is None or not isinstance(node.value, str) or not node.value:
            continue
        try:
            node.value = _resolved(node.value, node.origin, mark)
        except UserError as error:
            mistakes.append(f"{node.origin}: {dotted(path)}: {error}")
    return mistakes


def _mark(path: KeyPath, root: type[BaseModel]) -> InputPath | GivenPath | None:
    """The mark of a field or, for an item of a list, of the list."""
    field = field_at(root, path) or (field_at(root, path[:-1]) if path and isinstance(path[-1], int) else None)
    marks = [item for item in (field.metadata if field is not None else []) if isinstance(item, (InputPath, GivenPath))]
    return marks[0] if marks else None


def _resolved(value: str, origin: Origin, mark: InputPath | GivenPath) -> str:
    if isinstance(mark, GivenPath):
        return given_path(value, is_input=mark.is_input, may_be_address=mark.may_be_address)
    found = _search(value, origin)
    if found is not None:
        return str(found)
    path = given_path(value, is_input=True)
    if mark.may_be_hub_id and not value.startswith((".", "/", "~")):
        return value
    return os.path.abspath(path)


def _search(name: str, origin: Origin) -> Path | None:
    """The absolute path if it exists in one of the searched folders; otherwise None."""
    given = os.path.expanduser(name)
    folders = [Path.cwd(), *([] if origin.file is None else _folders_of(origin.file))]
    for folder in folders:
        if os.path.exists(folder / given):  # unlike Path.exists, returns False for an invalid file name
            return Path(os.path.abspath(folder / given))
    return None


def _folders_of(file: Path) -> list[Path]:
    """The file's folder and those above it up to the root of its git repository; outside of one only the folder."""
    folder, *above = file.resolve().parents
    folders = [folder, *above]
    roots = [i for i, candidate in enumerate(folders) if (candidate / ".git").exists()]
    return folders[: roots[0] + 1] if roots else [folder]
