"""Readers of dialogues in several formats.

The formats are those of `tolktrain.config.prepare.DialogueFormat`; each is a file here, which defines it as `READER`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from tolktrain.config.prepare import DialogueFormat
from tolktrain.errors import UserError
from tolktrain.prepare.dialogue.talk import Context, Talk


@dataclass(frozen=True)
class Reader:
    """How a format is recognized and read."""

    # Whether an object of the first line of a file is of the format.
    recognizes: Callable[[Mapping[str, Any]], bool]
    # The dialogue in an object. Raises `EntryError` with the turn.
    read: Callable[[Mapping[str, Any], Context], Talk]
    is_preference: bool = False


def reader_of(name: str) -> Reader:
    """The reader of a format."""
    reader: Reader = importlib.import_module(f"{__name__}.{name}").READER
    return reader


def format_of(first: Any, path: str) -> str:
    """The format of a file, by the object of its first line. Raises `UserError` with what was seen."""
    if isinstance(first, dict):
        for name in get_args(DialogueFormat):
            if reader_of(name).recognizes(first):
                return str(name)
        seen = f"the first object has the keys {', '.join(map(repr, first)):.200}"
    else:
        seen = f"its first line is {first!r:.100}"
    raise UserError(
        f"{path}: the format cannot be recognized: {seen}; set dialogue.format to one of"
        f" {', '.join(get_args(DialogueFormat))}"
    )
