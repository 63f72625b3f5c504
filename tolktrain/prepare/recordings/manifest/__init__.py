"""What is to be prepared: utterances, from manifests of several formats."""

import os
from collections.abc import Iterator

from tolktrain.config.prepare import RecordingsConfig
from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest.detect import format_of
from tolktrain.prepare.recordings.manifest.folders import read_folder, read_librispeech
from tolktrain.prepare.recordings.manifest.lhotse_manifests import read_lhotse
from tolktrain.prepare.recordings.manifest.libriheavy import read_libriheavy
from tolktrain.prepare.recordings.manifest.tables import read_jsonl, read_tsv
from tolktrain.prepare.utterances import Failure, Reason, Utterance

_FOLDERS = ("folder", "librispeech")


def read_manifest(config: RecordingsConfig) -> tuple[list[Utterance], list[Failure]]:
    """The utterances of a manifest, those of a source together, and the entries that are none.

    Sources stand in the order of their first utterance, utterances in that of the manifest. The same manifest gives the
    same lists on every machine. Ids are unique: a later entry with a used id is a failure. Whether sound files and
    files of word times exist is not looked at. Raises `UserError` if the manifest is missing, empty or of no known
    format.
    """
    path = config.manifest
    kind = format_of(path) if config.format == "auto" else config.format
    if kind != "lhotse" and not os.path.exists(path):
        raise UserError(f"recordings.manifest: {path} does not exist")
    if kind != "lhotse" and os.path.isdir(path) != (kind in _FOLDERS):
        expected = "a folder" if kind in _FOLDERS else "a file"
        raise UserError(
            f"recordings.manifest: {path} must be {expected} for the format {kind}; check recordings.format"
        )
    sources: dict[str, list[Utterance]] = {}
    failures: list[Failure] = []
    used: set[str] = set()
    for item in _read(config, kind):
        if isinstance(item, Failure):
            failures.append(item)
        elif item.id in used:
            failures.append(Failure(item.id, Reason.MANIFEST, f"the id {item.id!r} is used by an entry before"))
        else:
            used.add(item.id)
            sources.setdefault(item.source, []).append(item)
    if not sources and not failures:
        raise UserError(f"recordings.manifest: {path} names no utterances; it was read as {kind}")
    return [utterance for utterances in sources.values() for utterance in utterances], failures


def _read(config: RecordingsConfig, kind: str) -> Iterator[Utterance | Failure]:
    path = config.manifest
    root = config.audio_root or os.path.dirname(path) or "."
    with_words = config.alignment.method == "given"
    if kind == "jsonl":
        return read_jsonl(path, root)
    if kind == "tsv":
        return read_tsv(path, root)
    if kind == "folder":
        return read_folder(path)
    if kind == "librispeech":
        return read_librispeech(path)
    if kind == "libriheavy":
        return read_libriheavy(path, root, with_words)
    assert kind == "lhotse", kind
    return read_lhotse(path, config.audio_root or (path if os.path.isdir(path) else root), with_words)
