"""Folders of audio files with their transcripts in files of the same stem."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tolktrain.files.reading import parse_json, read_text
from tolktrain.prepare.recordings.manifest.entry import KEYS, utterance_of
from tolktrain.prepare.recordings.manifest.folders import Folder, walk
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

_READERS = 16  # files are small, and a network disk answers many at a time


def read_folder(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """Every audio file below `root` is an utterance; its id is its path from there.

    The transcript is in `STEM.txt` or `STEM.json`; the latter may have all keys of a manifest but `audio`. Word times
    are in `STEM.TextGrid` or `STEM.ctm`. The source is the folder of the file, from the root, if it has several audio
    files, so that they are taken to be consecutive, in the order of their names; else it is the file. The speaker is
    unknown unless the JSON file names one.
    """
    root = manifest.path
    with ThreadPoolExecutor(_READERS) as pool:
        for folder in walk(root):
            audio_files = folder.audio_files()

            def read(name: str, folder: Folder = folder, several: bool = len(audio_files) > 1) -> Utterance | Failure:
                return _utterance(root, folder, name, several)

            yield from pool.map(read, audio_files)


def _utterance(root: str, folder: Folder, name: str, several: bool) -> Utterance | Failure:
    """The utterance of an audio file and the files of the same stem."""
    audio, stem = folder.join(name), os.path.splitext(name)[0]
    place = audio.encode(errors="backslashreplace").decode()
    try:
        entry: dict[str, Any] = {"id": audio, "source": folder.path if several else audio}
        if f"{stem}.txt" in folder.files:
            entry["text"] = " ".join(_content(root, folder.join(f"{stem}.txt")).split())
        if f"{stem}.json" in folder.files:
            entry |= _described(root, folder.join(f"{stem}.json"))
        if "words" not in entry and "word_times" not in entry:
            entry["word_times"] = folder.word_times(stem)
        elif isinstance(entry.get("word_times"), str):
            entry["word_times"] = folder.join(entry["word_times"])
        return utterance_of({**entry, "audio": audio}, root)
    except EntryError as error:
        return Failure(place, error.reason, error.detail)


def _described(root: str, path: str) -> dict[str, Any]:
    try:
        described = parse_json(_content(root, path))
    except ValueError as error:
        raise EntryError(Reason.MANIFEST, f"{path} is not JSON ({error})") from None
    if not isinstance(described, dict) or "audio" in described:
        raise EntryError(
            Reason.MANIFEST, f"{path} must hold an object with keys among {', '.join(KEYS)}, but not audio"
        )
    return described


def _content(root: str, path: str) -> str:
    try:
        return read_text(os.path.join(root, path))
    except OSError as error:
        raise EntryError(Reason.MANIFEST, f"{path} cannot be read ({error.strerror})") from None
    except UnicodeError:
        raise EntryError(Reason.MANIFEST, f"{path} is not UTF-8 text") from None


def _recognizes(seen: Seen) -> bool:
    return seen.is_folder and any(folder.audio_files() for folder in walk(seen.path))


FORMAT = Format(read_folder, _recognizes, is_folder=True)
