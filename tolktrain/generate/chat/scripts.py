"""Conversations in JSON lines, of which the model says the assistant's open turns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.prepare import DialogueConfig
from tolktrain.data.records import ASSISTANT
from tolktrain.errors import UserError
from tolktrain.files.names import check_stem
from tolktrain.files.reading import parse_json
from tolktrain.generate.chat.forms import FORMS, Form
from tolktrain.generate.requests import STANDARD_INPUT, lines_of
from tolktrain.prepare.dialogue.readers.messages import turns_in
from tolktrain.prepare.dialogue.talk import Context, Said
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError

_KEYS = ("messages", "name", "answer")
_EXAMPLE = '{"messages": [{"role": "user", "content": "Where is it?"}]}'


@dataclass(frozen=True, eq=False)
class Message:
    """A message of a script: what it says, one turn or several; or nothing, if the model says it."""

    turns: tuple[Said, ...]
    given: Any  # the message as it was read; None if the model says it

    @property
    def is_open(self) -> bool:
        """Whether the model says it."""
        return not self.turns


@dataclass(frozen=True, eq=False)
class Script:
    """A conversation of which the model says the open turns."""

    name: str  # of its files
    form: Form | None
    messages: tuple[Message, ...]
    source: str  # for messages of errors


def read_scripts(source: str) -> Iterator[Script]:
    """The conversations of a file of JSON lines, or of standard input for "-", as they are read.

    A line is an object with `messages` in the form of docs/instruct.md (`messages`); optional are `name` (of the files
    that are written) and `answer` (a form of answers). The model says the assistant's messages whose content is null,
    and, if the last message is not the assistant's, one after it.

    Raises:
        UserError: the file cannot be read, has no conversation, or a line is something else; names line and turn.
    """
    shown = "standard input" if source == STANDARD_INPUT else source
    root = "" if source == STANDARD_INPUT else str(Path(source).parent)
    names: set[str] = set()
    for number, line in lines_of(source, shown):
        place = f"{shown}, line {number}"
        script = _parse(line, number, place, root)
        if script.name in names:
            raise UserError(f"{place}: the name {script.name!r} was used before; give every conversation its own")
        names.add(script.name)
        yield script
    if not names:
        raise UserError(f"{shown} holds no conversation; expected lines such as {_EXAMPLE}")


def _parse(line: bytes, number: int, place: str, root: str) -> Script:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}); expected an object such as {_EXAMPLE}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("messages"), list) or not entry["messages"]:
        raise UserError(f"{place}: expected an object with a list `messages` that is not empty, such as {_EXAMPLE}")
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise UserError(f"{place}: the key {unknown[0]!r} is unknown; known are {', '.join(_KEYS)}")
    form = entry.get("answer")
    if form is not None and form not in FORMS:
        raise UserError(f"{place}: answer is {form!r:.40}; use {', '.join(FORMS)}")
    name = check_stem(entry.get("name", f"line-{number}"), place)
    messages = [_message(value, turn, place, root) for turn, value in enumerate(entry["messages"], start=1)]
    last = messages[-1]
    if not last.is_open and last.turns[-1].role != ASSISTANT:
        messages.append(Message((), None))
    if not any(message.is_open for message in messages):
        raise UserError(
            f"{place}: every turn is given, so nothing is to be answered; end with a turn of the user, or set the"
            " content of a turn of the assistant to null"
        )
    return Script(name, form, tuple(messages), place)


# Text that is not the transcript of a part of audio is said in addition.
_READING = DialogueConfig(files=("-",), strategies=("answer_text",), sequence_length=2, text_with_audio="separate")


def _message(value: Any, number: int, place: str, root: str) -> Message:
    if isinstance(value, dict) and value.get("role") == ASSISTANT and value.get("content", "") is None:
        return Message((), None)
    unused = Unused()
    try:
        turns = tuple(turns_in(value, f"turn {number}", Context(_READING, root, unused, place)))
    except EntryError as error:
        raise UserError(f"{place}: {error.detail}") from None
    for item in unused.take():
        raise UserError(f"{place}, turn {number}: {item.what} is unknown; leave it out")
    return Message(turns, value)
