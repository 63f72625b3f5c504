"""Which format a manifest has, by its name and its content."""

import glob
import itertools
import os
from typing import Any

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest.entry import KEYS
from tolktrain.prepare.recordings.manifest.folders import SOUND_SUFFIXES, TRANSCRIPTS_SUFFIX, walk
from tolktrain.prepare.recordings.manifest.lhotse_manifests import SUFFIXES as LHOTSE_SUFFIXES
from tolktrain.prepare.recordings.manifest.libriheavy import value_at
from tolktrain.prepare.recordings.manifest.lines import json_of, read_lines
from tolktrain.prepare.utterances import EntryError

_LINES = 20  # some of the first may be bad
_LHOTSE_NAMES = ("cuts", "supervisions", "recordings")


def format_of(path: str) -> str:
    """jsonl, tsv, folder, librispeech, libriheavy or lhotse. Raises `UserError` that says what was seen."""
    if os.path.isdir(path):
        return _of_folder(path)
    if os.path.isfile(path):
        return _of_file(path)
    if any(map(_is_lhotse_name, glob.glob(glob.escape(path) + "*"))):
        return "lhotse"
    raise UserError(f"recordings.manifest: {path} does not exist")


def _of_folder(path: str) -> str:
    if any(map(_is_lhotse_name, os.listdir(path))):
        return "lhotse"
    seen: list[str] = []
    for folder in walk(path):
        if any(name.endswith(TRANSCRIPTS_SUFFIX) for name in folder.files):
            return "librispeech"
        if folder.sounds():
            return "folder"
        seen += map(folder.join, sorted(folder.files))
    raise _undecided(
        path,
        f"no {', '.join(SOUND_SUFFIXES)} below it, but {', '.join(map(repr, seen[:5])) or 'no files at all'}",
    )


def _is_lhotse_name(path: str) -> bool:
    name = os.path.basename(path)
    return name.endswith(LHOTSE_SUFFIXES) and any(kind in name for kind in _LHOTSE_NAMES)


def _of_file(path: str) -> str:
    lines = [line for _, line in itertools.islice(read_lines(path), _LINES)]
    if not lines:
        raise UserError(f"recordings.manifest: {path} is empty")
    if path.lower().endswith((".tsv", ".tsv.gz")) or b"audio" in (name.strip() for name in lines[0].split(b"\t")):
        return "tsv"
    objects = [item for item in map(_object, lines) if item is not None]
    for item in objects:
        if "supervisions" in item or "recording_id" in item or "sources" in item:
            return "libriheavy" if _has_texts(item.get("supervisions")) else "lhotse"
        if "audio" in item:
            return "jsonl"
    if path.lower().endswith((".jsonl", ".jsonl.gz")):
        return "jsonl"
    if objects:
        raise _undecided(path, f"its objects have the keys {', '.join(map(repr, objects[0])):.200}")
    raise _undecided(path, f"its first line is {lines[0].decode(errors='replace')!r:.100}")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        item = json_of(line)
    except EntryError:
        return None
    return item if isinstance(item, dict) else None


def _has_texts(supervisions: Any) -> bool:
    first = supervisions[0] if isinstance(supervisions, list) and supervisions else None
    return value_at(first, "custom", "texts", or_none=True) is not None


def _undecided(path: str, seen: str) -> UserError:
    return UserError(
        f"{path}: the format cannot be told: {seen}; set recordings.format, or give JSON lines or a table with"
        f" keys among {', '.join(KEYS)}"
    )
