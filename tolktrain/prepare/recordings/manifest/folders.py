"""Folders of audio files: which files are where, in the same order everywhere."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tolktrain.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".opus", ".ogg")
_WORD_TIMES_SUFFIXES = (".TextGrid", ".textgrid", ".ctm")
_READERS = 16  # files are small, and a network disk answers many at a time


@dataclass(frozen=True)
class Folder:
    """A folder below the root, with the files it holds."""

    path: str  # from the root, with slashes; "." for the root itself
    files: frozenset[str]

    def audio_files(self) -> list[str]:
        """Names of the audio files, numbers in them in the order of counting."""
        return sorted((name for name in self.files if is_audio(name)), key=counting)

    def word_times(self, stem: str) -> str | None:
        """Path, from the root, of the file of word times of an audio file."""
        found = (stem + suffix for suffix in _WORD_TIMES_SUFFIXES if stem + suffix in self.files)
        return next((self.join(name) for name in found), None)

    def join(self, name: str) -> str:
        """Path of one of the files, from the root."""
        return name if self.path == "." else f"{self.path}/{name}"


def is_audio(name: str) -> bool:
    """Whether the suffix is that of an audio file."""
    return name.lower().endswith(AUDIO_SUFFIXES)


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
            folders[:] = sorted((name for name in folders if not name.startswith(".")), key=counting)
            visible = frozenset(name for name in files if not name.startswith("."))
            yield Folder(os.path.relpath(path, root).replace(os.sep, "/"), visible)
    except RecursionError:  # of os.walk
        raise UserError(f"{root} holds folders nested too deeply; check recordings.manifest") from None


def counting(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts chapter 2 before chapter 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name
