"""Chats with a list of messages, whose content is a text or parts of text and audio.

```
{"messages": [{"role": "user", "content": [{"type": "audio", "path": "q.wav"}, {"type": "text", "text": "And?"}]},
              {"role": "assistant", "content": "Rome."}]}
```

A part of audio has `path` (or `audio`, `audio_url`), and may have its transcript under `text` and `words` with times.
The form of ShareGPT, `conversations` of `from` and `value`, is read too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tolktrain.prepare.dialogue.readers import Reader
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
from tolktrain.prepare.recordings.align.word import word
from tolktrain.prepare.utterances import Word

_LISTS = ("messages", "conversations")
_AUDIO_KEYS = ("path", "audio", "audio_url")
SHAREGPT_ROLES = (("human", "user"), ("gpt", "assistant"))


def read_messages(entry: Mapping[str, Any], context: Context) -> Talk:
    """The turns of a list of messages."""
    names = [name for name in _LISTS if name in entry]
    if len(names) != 1:
        raise bad(f"expected one of the keys {' and '.join(_LISTS)}, found {', '.join(names) or 'none'}")
    note_unused(entry, (*names, "id"), context)
    return Talk(tuple(turns_of(entry[names[0]], names[0], context)))


def turns_of(messages: Any, name: str, context: Context) -> Iterator[Said]:
    """The turns of a list of messages under the key `name`."""
    for number, value in enumerate(list_in(messages, name), 1):
        yield from turns_in(value, f"turn {number}", context)


def turns_in(value: Any, where: str, context: Context) -> Iterator[Said]:
    """What a message says: one turn, or one for each of its parts."""
    message = object_in(value, where)
    role, content = ("role", "content") if "role" in message else ("from", "value")
    if role not in message or content not in message:
        raise bad(f"{where} needs role and content, found {', '.join(map(repr, message)) or 'nothing'}")
    note_unused(message, (role, content), context, " of messages")
    given = text_in(message[role], f"{where}: {role}")
    known = dict(SHAREGPT_ROLES).get(given, given) if role == "from" else given
    yield from said_in(role_in(known, f"{where}: {role}", context), message[content], where, context)


def said_in(role: str, content: Any, where: str, context: Context) -> Iterator[Said]:
    """What a message says: one turn, or one for each of its parts."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts: list[Said] = []
    for place, value in enumerate(list_in(content, f"{where}: content"), 1):
        part_where = f"{where}, part {place}"
        part = object_in(value, part_where)
        kind = part.get("type") or ("text" if "text" in part and not set(part) & set(_AUDIO_KEYS) else "audio")
        if kind == "text":
            note_unused(part, ("type", "text"), context, " of parts of text")
            text = text_in(part.get("text"), f"{part_where}: text")
            if parts and parts[-1].audio is None:
                parts[-1] = Said(role, (parts[-1].text or "") + text)
            else:
                parts.append(Said(role, text))
        elif kind in ("audio", "audio_url", "input_audio"):
            parts.append(_audio(role, part, part_where, context))
        else:
            raise bad(f"{part_where} has the type {kind!r:.40}; only text and audio can be used")
    yield from joined(parts, where, context)


def joined(parts: list[Said], where: str, context: Context) -> Iterator[Said]:
    """The turns of the parts of a message, of which text may be the transcript of the audio."""
    present = [part for part in parts if part.audio is not None or (part.text or "").strip()]
    if not present:
        raise bad(f"{where} is empty")
    audio = [part for part in present if part.audio is not None]
    texts = [part for part in present if part.audio is None]
    if not audio or not texts:
        yield from present
        return
    meaning = context.config.text_with_audio
    if meaning is None:
        raise bad(
            f"{where} has text and audio; set dialogue.text_with_audio to transcript, if the text is what is said in"
            " the audio, or to separate, if it is said in addition"
        )
    if meaning == "separate":
        yield from present
        return
    if len(audio) > 1 or len(texts) > 1 or audio[0].text is not None:
        raise bad(
            f"{where} has {len(audio)} parts of audio and {len(texts)} of text, so which text is the transcript of"
            " which audio is not clear; give each transcript as `text` of its part of audio"
        )
    yield Said(audio[0].role, texts[0].text, audio[0].audio, words=audio[0].words)


def _audio(role: str, part: Mapping[str, Any], where: str, context: Context) -> Said:
    keys = [key for key in _AUDIO_KEYS if part.get(key) is not None]
    if len(keys) != 1:
        raise bad(f"{where} needs one of {', '.join(_AUDIO_KEYS)}, found {', '.join(keys) or 'none'}")
    note_unused(part, ("type", "text", "words", keys[0]), context, " of parts of audio")
    value = part[keys[0]]
    if isinstance(value, dict):  # {"audio_url": {"url": ...}}
        value = value.get("url", value.get("path"))
    text = None if part.get("text") is None else text_in(part["text"], f"{where}: text")
    words = None if part.get("words") is None else words_in(part["words"], f"{where}: words")
    return Said(role, text, path_in(value, f"{where}: {keys[0]}", context), words=words)


def words_in(value: Any, where: str) -> tuple[Word, ...]:
    """Words with times: objects with word, start and end, or lists of these."""
    found = []
    for item in list_in(value, where):
        if isinstance(item, dict):
            item = [item.get("word"), item.get("start"), item.get("end")]
        if not isinstance(item, list) or len(item) != 3:
            raise bad(f"{where}: expected word, start and end, got {item!r:.80}")
        found.append(word(*item))
    return tuple(found)


READER = Reader(lambda first: bool(set(_LISTS) & set(first)), read_messages)
