"""Manifests of recordings in several formats.

The formats are those of `tolktrain.config.prepare.ManifestFormat`; each is a file here.
"""

import importlib
import os
from dataclasses import replace
from typing import get_args

from tolktrain.config.prepare import ManifestFormat, RecordingsConfig
from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest.entry import KEYS
from tolktrain.prepare.recordings.manifest.folders import AUDIO_SUFFIXES, conversion, stem_of, walk
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import Failure, Reason, Utterance

_MOST_SHOWN = 5


def read_manifest(config: RecordingsConfig, unused: Unused | None = None) -> tuple[list[Utterance], list[Failure]]:
    """The utterances of a manifest, those of a source together, and the entries that cannot be used.

    Sources are in the order of their first utterance, utterances in that of the manifest. The same manifest gives the
    same lists on every machine. Ids are unique: a later entry with a used id is a failure. Whether audio files and
    files of word times exist is not looked at. Fields and files that are not used are counted in `unused`. Raises
    `UserError` if the manifest is missing, empty or of no known format.
    """
    path = config.manifest
    name = format_of(path) if config.format == "auto" else config.format
    kind = _format(name)
    if kind.is_folder is not None and not os.path.exists(path):
        raise UserError(f"recordings.manifest: {path} does not exist")
    if kind.is_folder is not None and os.path.isdir(path) != kind.is_folder:
        expected = "a folder" if kind.is_folder else "a file"
        raise UserError(
            f"recordings.manifest: {path} must be {expected} for the format {name}; check recordings.format"
        )
    root = config.audio_root or os.path.dirname(path) or "."
    with_words = config.alignment.method == "given"
    manifest = Manifest(path, root, config.audio_root, with_words, Unused() if unused is None else unused)
    sources: dict[str, list[Utterance]] = {}
    failures: list[Failure] = []
    used: set[str] = set()
    for item in kind.read(manifest):
        if isinstance(item, Failure):
            failures.append(item)
        elif item.id in used:
            failures.append(
                Failure(
                    item.id,
                    Reason.MANIFEST,
                    f"an earlier entry has the id {item.id!r} too; give each its own",
                    item.place,
                )
            )
        else:
            used.add(item.id)
            sources.setdefault(item.source, []).append(item)
    if not sources and not failures:
        left = "".join(f"; {item.line()}" for item in manifest.unused.take()[:_MOST_SHOWN])
        raise UserError(f"recordings.manifest: {path} names no utterances; it was read as {name}{left}")
    utterances = [utterance for utterances in sources.values() for utterance in utterances]
    return _described(utterances, path), [replace(one, place=_where(path, one.place)) for one in failures]


def _described(utterances: list[Utterance], manifest: str) -> list[Utterance]:
    """The same with the file of their place, and with other audio that the lines of a CTM file could be of."""
    named: dict[tuple[str, str], dict[str, None]] = {}
    for one in utterances:
        if one.word_times is not None:
            named.setdefault((one.word_times, stem_of(os.path.basename(one.audio))), {})[one.audio] = None

    def namesake(one: Utterance) -> str | None:
        same = named.get((one.word_times or "", stem_of(os.path.basename(one.audio))), {})
        return next((audio for audio in same if audio != one.audio), None)

    return [replace(one, place=_where(manifest, one.place), namesake=namesake(one)) for one in utterances]


def _where(manifest: str, place: str) -> str:
    """File and line of an entry."""
    if os.path.isfile(manifest):
        return f"{manifest} {place}"
    return os.path.join(manifest if os.path.isdir(manifest) else os.path.dirname(manifest), place)


def format_of(path: str) -> str:
    """Name of the format of a manifest, by its name and content. Raises `UserError` with what was seen."""
    seen = Seen(path)
    if seen.is_file and not seen.lines:
        raise UserError(f"recordings.manifest: {path} is empty")
    for name in get_args(ManifestFormat):
        if _format(name).recognizes(seen):
            return str(name)
    if seen.is_folder:
        files = [folder.join(file) for folder in walk(path) for file in sorted(folder.files)]
        what = f"no {', '.join(AUDIO_SUFFIXES)} below it, but {', '.join(map(repr, files[:5])) or 'no files at all'}"
        command = next(filter(None, map(conversion, files)), None)
        what += f" (audio that is not decoded; convert it with {command})" if command else ""
    elif not seen.is_file:
        raise UserError(f"recordings.manifest: {path} does not exist")
    elif seen.objects:
        what = f"its objects have the keys {', '.join(map(repr, seen.objects[0])):.200}"
    else:
        what = f"its first line is {seen.lines[0].decode(errors='replace')!r:.100}{_other_form(seen.lines[0])}"
    raise UserError(
        f"{path}: the format cannot be recognized: {what}; set recordings.format, or give JSON lines or a table with"
        f" keys among {', '.join(KEYS)}"
    )


def _other_form(first_line: bytes) -> str:
    """What the first line of a file shows that it is instead."""
    line = first_line.strip()
    if line[:1] == b"[" or line == b"{":
        return (
            ", the beginning of JSON over several objects or lines; write one object per line:"
            " `jq -c 'if type == \"array\" then .[] else . end' IN > OUT.jsonl`"
        )
    names = {name.strip().strip(b'"').lower() for sign in (b",", b";") for name in line.split(sign)}
    if names & {b"audio", b"path", b"file", b"filename", b"audio_filepath", b"audio_path", b"wav"}:
        return ", with commas or semicolons; the columns of a table are separated by tabs"
    return ""


def _format(name: str) -> Format:
    found: Format = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found
