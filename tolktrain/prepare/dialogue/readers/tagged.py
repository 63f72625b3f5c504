"""Transcripts of dialogues with tags of the speakers, and one recording of all of them, as MOSS-TTSD has it.

```
{"file_path": "a.wav", "full_transcript": "[S1]Where are you?[S2]In Rome."}
```

Tags are roles; `dialogue.roles` gives them names, such as `{S1: user, S2: assistant}`. With `alignment.method: ctc`,
the recording is cut where the turns end. Without it, only the text is used.
"""

import re
from collections.abc import Mapping
from typing import Any

from tolktrain.prepare.dialogue.readers import Reader
from tolktrain.prepare.dialogue.talk import Context, Said, Talk, bad, note_unused, path_in, role_in, text_in

_TAG = re.compile(r"\[([A-Za-z]+\d*)\]")


def read_tagged(entry: Mapping[str, Any], context: Context) -> Talk:
    """The turns of a transcript; those of one speaker that follow each other are one."""
    note_unused(entry, ("file_path", "full_transcript", "id"), context)
    transcript = text_in(entry.get("full_transcript"), "full_transcript")
    before, *pieces = _TAG.split(transcript)
    if before.strip() or not pieces:
        raise bad(f"full_transcript must begin with the tag of a speaker such as [S1], got {transcript!r:.60}")
    turns: list[Said] = []
    for number, (tag, text) in enumerate(zip(pieces[::2], pieces[1::2], strict=True), 1):
        if not text.strip():
            raise bad(f"turn {number} ([{tag}]) is empty")
        role = role_in(tag, f"turn {number}", context)
        if turns and turns[-1].role == role:
            turns[-1] = Said(role, f"{turns[-1].text} {text.strip()}")
        else:
            turns.append(Said(role, text.strip()))
    audio = None if entry.get("file_path") is None else path_in(entry["file_path"], "file_path", context)
    if audio is not None and context.config.alignment.method != "ctc":
        context.unused.add(
            "recordings of tagged transcripts, because dialogue.alignment.method is not ctc", context.place
        )
        audio = None
    return Talk(tuple(turns), recording=audio)


READER = Reader(lambda first: "full_transcript" in first, read_tagged)
