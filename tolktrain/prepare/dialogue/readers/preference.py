"""Preferences: what precedes two answers, the chosen one and the rejected one.

```
{"prompt_path": "q.wav", "chosen_path": "good.wav", "rejected_path": "bad.wav"}
{"prompt": "Where is Rome?", "chosen": "In Italy.", "rejected": "In Spain."}
{"prompt": [{"role": "user", "content": ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
{"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}
```

The first form is that of slamkit; in the last one, the turns before the last are the same. A text and a path of the
same name are a transcript and its audio.
"""

from collections.abc import Mapping
from typing import Any

from tolktrain.data.records import ASSISTANT
from tolktrain.prepare.dialogue.readers import Reader
from tolktrain.prepare.dialogue.readers.messages import turns_of
from tolktrain.prepare.dialogue.talk import Context, Said, Talk, bad, note_unused, path_in, text_in

_NAMES = ("prompt", "chosen", "rejected")


def read_preference(entry: Mapping[str, Any], context: Context) -> Talk:
    """The turns before the answers, and both answers."""
    note_unused(entry, (*_NAMES, *(f"{name}_path" for name in _NAMES), "id"), context)
    user = context.config.roles.get("user", "user")
    prompt = _turns(entry, "prompt", user, context)
    answers = []
    befores = []
    for name in _NAMES[1:]:
        turns = _turns(entry, name, ASSISTANT, context)
        if not turns or turns[-1].role != ASSISTANT:
            raise bad(f"{name} is missing, or does not end with a turn of the role {ASSISTANT}")
        befores.append(turns[:-1])
        answers.append(turns[-1])
    if befores[0] != befores[1]:
        raise bad("chosen and rejected differ before their last turns; a preference is about the last turn")
    if prompt and befores[0] and befores[0] != prompt:
        raise bad("the turns before the answers in chosen and rejected are not those of prompt")
    before = prompt or befores[0]
    if not before:
        raise bad("prompt is missing, and chosen has no turns before its answer")
    if answers[0] == answers[1]:
        raise bad("chosen and rejected are the same")
    return Talk(tuple(before), (answers[0], answers[1]))


def _turns(entry: Mapping[str, Any], name: str, role: str, context: Context) -> list[Said]:
    value, path = entry.get(name), entry.get(f"{name}_path")
    if isinstance(value, list):
        if path is not None:
            raise bad(f"{name} is a list of messages, so {name}_path has no meaning")
        return list(turns_of(value, name, context))
    if value is None and path is None:
        return []
    text = None if value is None else text_in(value, name)
    audio = None if path is None else path_in(path, f"{name}_path", context)
    if audio is None and not (text or "").strip():
        raise bad(f"{name} is empty")
    return [Said(role, text, audio)]


READER = Reader(lambda first: "chosen" in first or "chosen_path" in first, read_preference, is_preference=True)
