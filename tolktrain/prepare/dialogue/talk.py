"""Dialogues as the files of users have them, before texts become ids and audio becomes units."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tolktrain.config.prepare import DialogueConfig
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Reason, Word


@dataclass(frozen=True)
class Said:
    """What a role says in one turn: text, audio, or audio with its transcript."""

    role: str
    text: str | None = None
    audio: str | None = None  # path
    channel: int | None = None
    offset: float = 0.0  # seconds into the audio
    duration: float | None = None  # seconds; None: to the end
    words: tuple[Word, ...] | None = None  # with times in seconds from `offset`


@dataclass(frozen=True)
class Talk:
    """A conversation; or what precedes two answers, and both of them."""

    turns: tuple[Said, ...]  # of a preference, the turns before the answer
    answers: tuple[Said, Said] | None = None  # of a preference: chosen and rejected
    # Of tagged transcripts: one recording of all turns, which is cut where their words end.
    recording: str | None = None


@dataclass(frozen=True)
class Context:
    """What a reader knows besides the entry itself."""

    config: DialogueConfig
    root: str  # folder of relative paths
    unused: Unused
    place: str  # file and line


def bad(detail: str) -> EntryError:
    """The error for an entry that is not of its format."""
    return EntryError(Reason.MANIFEST, detail)


def text_in(value: Any, where: str) -> str:
    """A text. Raises `EntryError` unless the value is one that UTF-8 has."""
    if not isinstance(value, str):
        raise bad(f"{where} must be a text, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise bad(f"{where} has half of a surrogate pair, which is not text") from None
    return value


def path_in(value: Any, where: str, context: Context) -> str:
    """The path of a file, from the folder of relative paths. Raises `EntryError` unless the value names one."""
    path = text_in(value, where)
    if not path.strip() or "\0" in path:
        raise bad(f"{where} must be the path of a file, got {path!r:.80}")
    if "://" in path:
        raise bad(f"{where} is the address {path!r:.80}; download the file and give its path")
    return os.path.join(context.root, path)


def role_in(value: Any, where: str, context: Context) -> str:
    """The role of a turn, renamed by `dialogue.roles`. Raises `EntryError` unless the value is a name."""
    role = text_in(value, where)
    role = context.config.roles.get(role, role)
    if not role.strip() or not role.isprintable() or len(role) > 64:
        raise bad(f"{where} is {role!r:.80}; a role is a name of at most 64 printable characters")
    return role


def object_in(value: Any, where: str) -> Mapping[str, Any]:
    """An object. Raises `EntryError` unless the value is one."""
    if not isinstance(value, dict):
        raise bad(f"{where} must be an object, got {value!r:.80}")
    return value


def list_in(value: Any, where: str) -> Sequence[Any]:
    """A list that is not empty. Raises `EntryError` unless the value is one."""
    if not isinstance(value, list) or not value:
        raise bad(f"{where} must be a list that is not empty, got {value!r:.80}")
    return value


def note_unused(entry: Mapping[str, Any], used: Sequence[str], context: Context, of: str = "") -> None:
    """Count the keys that no reader uses."""
    for key in entry:
        if key not in used:
            context.unused.add(f"the key {key!r}{of}", context.place)
