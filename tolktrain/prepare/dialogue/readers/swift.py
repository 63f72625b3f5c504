"""Chats of ms-swift: audio is a tag in the text of a message.

```
{"messages": [{"role": "user", "content": "<audio>q.wav</audio>What is said?"}, {"role": "assistant", ...}]}
{"messages": [{"role": "user", "content": "<audio>What is said?"}, ...], "audios": ["q.wav"]}
```
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tolktrain.prepare.dialogue.readers import Reader
from tolktrain.prepare.dialogue.readers.messages import joined
from tolktrain.prepare.dialogue.talk import (
    Context,
    Said,
    Talk,
    bad,
    list_in,
    note_unused,
    object_in,
    path_in,
    role_in,
    text_in,
)

_TAG = "<audio>"
_AUDIO = re.compile(r"<audio>(?:([^<>]*)</audio>)?")


def read_swift(entry: Mapping[str, Any], context: Context) -> Talk:
    """The turns of the messages, `system` before them if it is given."""
    note_unused(entry, ("messages", "audios", "system", "id"), context)
    files = iter([entry["audios"]] if isinstance(entry.get("audios"), str) else entry.get("audios") or [])
    turns: list[Said] = []
    if entry.get("system"):
        turns.append(Said(role_in("system", "system", context), text_in(entry["system"], "system")))
    for number, value in enumerate(list_in(entry.get("messages"), "messages"), 1):
        where = f"turn {number}"
        message = object_in(value, where)
        note_unused(message, ("role", "content"), context, " of messages")
        role = role_in(message.get("role"), f"{where}: role", context)
        parts = _parts(role, text_in(message.get("content"), f"{where}: content"), where, files, context)
        turns += joined(list(parts), where, context)
    left = len(list(files))
    if left:
        raise bad(f"audios has {left} more files than the messages have tags {_TAG}")
    return Talk(tuple(turns))


def _parts(role: str, content: str, where: str, files: Iterator[Any], context: Context) -> Iterator[Said]:
    begin = 0
    for match in _AUDIO.finditer(content):
        if text := content[begin : match.start()].strip():
            yield Said(role, text)
        path = match[1] if match[1] is not None else next(files, None)
        if path is None:
            raise bad(f"{where} has a tag {_TAG} without a path, and audios has no more files for it")
        yield Said(role, audio=path_in(path, f"{where}: audio", context))
        begin = match.end()
    if text := content[begin:].strip():
        yield Said(role, text)


def _recognizes(first: Mapping[str, Any]) -> bool:
    messages = first.get("messages")
    contents = (
        [message.get("content") for message in messages if isinstance(message, dict)]
        if isinstance(messages, list)
        else []
    )
    return "audios" in first or any(isinstance(content, str) and _TAG in content for content in contents)


READER = Reader(_recognizes, read_swift)
