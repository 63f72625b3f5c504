"""Manifests with a JSON object on each line."""

from collections.abc import Iterator

from tolktrain.prepare.recordings.manifest.entry import failure_of, utterance_of
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.lines import json_of, read_lines
from tolktrain.prepare.utterances import EntryError, Failure, Utterance


def read_jsonl(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """An object on each line, with the keys of `entry.KEYS`."""
    for number, line in read_lines(manifest.path):
        entry = None
        try:
            entry = json_of(line)
            yield utterance_of(entry, manifest.root, manifest.unused, f"line {number}")
        except EntryError as error:
            yield failure_of(error, entry, f"line {number}")


def _recognizes(seen: Seen) -> bool:
    return "audio" in seen.telling or seen.ends_with(".jsonl")


FORMAT = Format(read_jsonl, _recognizes)
