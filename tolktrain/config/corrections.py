"""Corrections of values of a wrong type: what their author is likely to mean, as YAML spells it."""

import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from tolktrain.config.document import NULL_NAMES, Located, in_quotes, parse
from tolktrain.errors import UserError

_NUMBERS = frozenset({int, float})
_BOOLS = (("true", ("true", "yes", "on", "y", "t", "1")), ("false", ("false", "no", "off", "n", "f", "0")))
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_LONGEST = 200  # characters of text that is taken apart


def branches(annotation: Any) -> list[Any]:
    """The types of a union, or the type itself."""
    if get_origin(annotation) is Annotated:
        return branches(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [branch for a in get_args(annotation) for branch in branches(a)]
    return [annotation]


def fix_of(annotation: Any, given: Any, node: Located) -> str:
    """What to write instead of a refused value; empty if unknown.

    Args:
        annotation: the expected type.
        given: the refused value.
        node: the place in the document; its `written` is empty if the value is in quotes there.
    """
    kinds = branches(annotation)
    if isinstance(given, dict) and str in kinds and [type(value) for value in given.values()] == [str]:
        return f"write {next(iter(given.values()))}"
    if isinstance(given, str) and len(given) <= _LONGEST and (entries := _as_entries(kinds, given)):
        return f"write {_for_shell(entries, node)}"
    if (
        isinstance(given, list)
        and given
        and any(map(_holds_weights, kinds))
        and all(isinstance(one, str) for one in given)
    ):
        return f"write {_for_shell(_weights(given), node)}"
    if isinstance(given, (dict, list, tuple)) or given is None or (isinstance(given, str) and len(given) > _LONGEST):
        return ""
    unquoted = " without quotes" if isinstance(given, str) and not node.written else ""
    if type(None) in kinds and given in NULL_NAMES:
        return f"write null{unquoted}"
    for kind in kinds:
        if get_origin(kind) is tuple and not _models([get_args(kind)[0]]):
            return f"write {_for_shell(_list(given, node.written, get_args(kind)[0]), node)}"
        if _holds_weights(kind):
            text = node.written or str(given)
            entries = text if not node.written and _is_mapping(text) else _weights(_parts(text))
            return f"write {_for_shell(entries, node)}"
    if bool in kinds:
        meant = [word for word, spellings in _BOOLS if str(given).lower() in spellings]
        return f"write {meant[0]}{unquoted}" if meant else ""
    if _NUMBERS & set(kinds) and isinstance(given, (str, float)):
        number = _number(given, whole=float not in kinds)
        return "" if number is None else f"write {number}{unquoted}"
    if str in kinds and not isinstance(given, str):
        return f"put it in quotes{in_quotes(node.written or str(given), node.origin)}"
    return ""


def _holds_weights(kind: Any) -> bool:
    return get_origin(kind) is dict and branches(get_args(kind)[1]) == [float]


def _weights(names: list[str]) -> str:
    return f"{{{', '.join(f'{_item(name)}: 1' for name in names)}}}"


def _is_mapping(text: str) -> bool:
    """Whether a text in quotes is a mapping without them."""
    try:
        return parse(text, None).is_mapping
    except UserError:
        return False


def missing_blank(key: Any, given: Any) -> str:
    """What to write instead of a key such as `train:1`, which has no value; empty if it is none."""
    if given is not None or not isinstance(key, str) or len(key) > _LONGEST:
        return ""
    name, colon, value = key.partition(":")
    return f"a blank is missing after the colon; write {name}: {value}" if colon and name and value else ""


def _as_entries(kinds: list[Any], given: str) -> str:
    """A text as the only entry that a mapping needs, such as the path of a data set; empty if it needs others."""
    for model in _models(kinds):
        required = [name for name, field in model.model_fields.items() if field.is_required()]
        if len(required) == 1 and str in branches(model.model_fields[required[0]].annotation):
            if "://" in given and "remote" in model.model_fields:
                return f"{{remote: {_item(given)}, {required[0]}: FOLDER}}"
            return f"{{{required[0]}: {_item(given)}}}"
    return ""


def _models(kinds: list[Any]) -> list[type[BaseModel]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def null_name_mistake(annotation: Any, node: Located) -> str | None:
    """What is wrong with `None` where both null and text are allowed; None if nothing is."""
    kinds = branches(annotation)
    if node.written not in NULL_NAMES or str not in kinds or type(None) not in kinds:
        return None
    return (
        f"YAML reads {node.written} as text, not as an absent value; write null, or put it in"
        f" quotes{in_quotes(node.written, node.origin)} if the text is meant"
    )


def _for_shell(text: str, node: Located) -> str:
    """A value with spaces and brackets, in an override in the quotes that the shell removes."""
    return text if node.origin.file is not None else f'"{text}", in quotes for the shell'


def _list(given: Any, written: str, item: Any) -> str:
    parts = _parts(written or str(given))
    return f"[{', '.join(part if _NUMBERS & set(branches(item)) else _item(part) for part in parts)}]"


def _parts(text: str) -> list[str]:
    """The parts of what people write as a list."""
    return [part.strip("'\"") for part in re.split(r"[,;\s]+", text.strip("()[]{} \t\n")) if part] or [text]


def _item(text: str) -> str:
    """A text as an item of a YAML list, in quotes if it needs them."""
    shown: str = yaml.safe_dump([text], default_flow_style=True, width=1000, allow_unicode=True)
    return shown.strip()[1:-1]


def _number(given: str | float, whole: bool) -> str | None:
    """The number, as YAML reads it, from what looks like one to people; None if it is none, or must be whole and is
    not."""
    text = str(given).strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if re.fullmatch(r"0o[0-7]{1,20}", text):
        text = str(int(text, 8))
    text = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", text)
    try:
        value = parse(text, None).value
    except UserError:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if whole and isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return text
