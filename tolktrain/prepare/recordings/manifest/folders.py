"""Folders of sound files: with transcripts beside them, and as LibriSpeech comes."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json, read_text
from tolktrain.prepare.recordings.align.word_times import ALIGNMENTS_SUFFIX
from tolktrain.prepare.recordings.manifest.entry import KEYS, failure_of, utterance_of
from tolktrain.prepare.recordings.manifest.lines import read_lines, text_of
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".opus", ".ogg")
TRANSCRIPTS_SUFFIX = ".trans.txt"

_WORD_TIMES_SUFFIXES = (".TextGrid", ".textgrid", ".ctm")
_READERS = 16  # files are small, and a network disk answers many at a time


@dataclass(frozen=True)
class Folder:
    """A folder below the root, with the files it holds."""

    path: str  # from the root, with slashes; "." for the root itself
    files: frozenset[str]

    def sounds(self) -> list[str]:
        """Names of the sound files, numbers in them in the order of counting."""
        return sorted((name for name in self.files if is_sound(name)), key=_counting)

    def word_times(self, stem: str) -> str | None:
        """Path, from the root, of the file of word times of a sound file."""
        found = (stem + suffix for suffix in _WORD_TIMES_SUFFIXES if stem + suffix in self.files)
        return next((self.join(name) for name in found), None)

    def join(self, name: str) -> str:
        """Path of one of the files, from the root."""
        return name if self.path == "." else f"{self.path}/{name}"


def is_sound(name: str) -> bool:
    """Whether the suffix is that of a sound file."""
    return name.lower().endswith(SOUND_SUFFIXES)


def walk(root: str) -> Iterator[Folder]:
    """The root and all folders below, in the same order everywhere; hidden ones are left out, links are followed.

    Raises `UserError` if one cannot be listed, or they are nested too deeply.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}); check recordings.manifest") from None

    seen = set()
    try:
        for path, folders, files in os.walk(root, onerror=refuse, followlinks=True):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()  # a link to a folder above, which would not end
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_counting)
            visible = frozenset(name for name in files if not name.startswith("."))
            yield Folder(os.path.relpath(path, root).replace(os.sep, "/"), visible)
    except RecursionError:  # of os.walk
        raise UserError(f"{root} holds folders nested too deeply; check recordings.manifest") from None


def read_folder(root: str) -> Iterator[Utterance | Failure]:
    """Every sound file below `root` is an utterance; its id is its path from there.

    The transcript is in `STEM.txt` or `STEM.json`; the latter may have all keys of a manifest but `audio`. Word times
    are in `STEM.TextGrid` or `STEM.ctm`. The source is the folder of the file, from the root, if it has several sound
    files, so that they are taken to be consecutive, in the order of their names; else it is the file. The speaker is
    unknown unless the JSON file names one.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        for folder in walk(root):
            sounds = folder.sounds()

            def read(name: str, folder: Folder = folder, several: bool = len(sounds) > 1) -> Utterance | Failure:
                return _beside(root, folder, name, several)

            yield from pool.map(read, sounds)


def _beside(root: str, folder: Folder, name: str, several: bool) -> Utterance | Failure:
    """The utterance of a sound file and the files beside it."""
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


def read_librispeech(root: str) -> Iterator[Utterance | Failure]:
    """The lines of all SPEAKER-CHAPTER.trans.txt below `root`, each with a FLAC file beside it of the line's name.

    The source is SPEAKER-CHAPTER. Word times are in the utterance's own .TextGrid, or in SPEAKER-CHAPTER.alignment.txt
    of LibriSpeech-Alignments. A FLAC file without a line is a failure.
    """
    for folder in walk(root):
        transcribed: set[str] = set()
        for name in sorted((name for name in folder.files if name.endswith(TRANSCRIPTS_SUFFIX)), key=_counting):
            chapter = name[: -len(TRANSCRIPTS_SUFFIX)]
            for number, line in read_lines(os.path.join(root, folder.join(name))):
                place = f"{folder.join(name)} line {number}"
                try:
                    stem, _, text = text_of(line).strip().partition(" ")
                    transcribed.add(f"{stem}.flac")
                    yield utterance_of(_chapter_entry(folder, chapter, stem, text), root)
                except EntryError as error:
                    yield failure_of(error, None, place)
        for name in folder.sounds():
            if name.endswith(".flac") and name not in transcribed:
                place = folder.join(name).encode(errors="backslashreplace").decode()
                yield Failure(place, Reason.MANIFEST, "no line of a .trans.txt beside it names it")


def _chapter_entry(folder: Folder, chapter: str, stem: str, text: str) -> dict[str, Any]:
    parts = stem.split("-")
    if len(parts) != 3 or not all(parts) or "-".join(parts[:2]) != chapter or "/" in stem:
        raise EntryError(Reason.MANIFEST, f"expected {chapter}-NUMBER and a transcript, got {stem!r:.80}")
    word_times = folder.word_times(stem)
    if word_times is None and chapter + ALIGNMENTS_SUFFIX in folder.files:
        word_times = folder.join(chapter + ALIGNMENTS_SUFFIX)
    return {
        "id": stem,
        "audio": folder.join(f"{stem}.flac"),
        "text": text,
        "speaker": parts[0],
        "source": chapter,
        "word_times": word_times,
    }


def _counting(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts chapter 2 before chapter 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name
