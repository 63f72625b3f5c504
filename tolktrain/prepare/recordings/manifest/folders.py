"""Folders of audio files: which files are where and which belong together, in the same order everywhere."""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from tolktrain.errors import UserError
from tolktrain.files.reading import open_regular
from tolktrain.prepare.unused import Unused

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".mp3", ".opus", ".ogg",
    ".wave", ".wavex", ".bwf", ".rf64", ".w64", ".mp2", ".mpga", ".oga", ".aiff", ".aif", ".aifc", ".au", ".caf",
    ".sph", ".nist", ".voc",
)  # fmt: skip
"""Of audio that libsndfile reads."""

# libsndfile reads these too, but most files with such a name hold something else, such as features or drawings.
_DOUBTFUL_SUFFIXES = frozenset({
    ".snd", ".sf", ".ircam", ".svx", ".iff", ".8svx", ".16sv", ".avr", ".htk", ".mat", ".mat4", ".mat5", ".mpc",
    ".mpc2k", ".paf", ".pvf", ".sd2", ".sds", ".wve", ".xi", ".wv1", ".wv2",
})  # fmt: skip
_UNDECODABLE_SUFFIXES = frozenset({
    ".m4a", ".m4b", ".mp4", ".aac", ".webm", ".wma", ".amr", ".awb", ".ac3", ".eac3", ".ape", ".wv", ".shn", ".tta",
    ".spx", ".mka", ".mkv", ".mov", ".avi", ".3gp", ".3g2", ".dsf", ".dff", ".ra", ".rm", ".gsm", ".flv", ".mpg",
    ".mpeg", ".m4v", ".wmv", ".ogv", ".mts",
})  # fmt: skip
_SHORTENED_SUFFIXES = frozenset({".wv1", ".wv2"})  # of NIST, usually compressed by shorten
WORD_TIMES_SUFFIXES = (".textgrid", ".ctm")


@dataclass(frozen=True)
class Folder:
    """A folder below the root, with the files it holds."""

    root: str
    path: str  # from the root, with slashes; "." for the root itself
    files: frozenset[str]

    @cached_property
    def audio_files(self) -> list[str]:
        """Names of the audio files, numbers in them in the order of counting."""
        return sorted((name for name in self.files if self._is_audio(name)), key=counting)

    @cached_property
    def recordings(self) -> dict[str, list[str]]:
        """The audio files of each stem, in the order of `audio_files`."""
        found: dict[str, list[str]] = {}
        for name in self.audio_files:
            found.setdefault(stem_of(name), []).append(name)
        return found

    def of_same_stem(self, name: str, suffixes: Collection[str]) -> list[str]:
        """The files with the stem of `name` and one of some lower-case suffixes; the most fitting first.

        Suffixes are in order of preference, and are met in any case. Names match if they are the same text to Unicode:
        file systems and archives write an accent within its letter or after it.
        """
        stem, order = os.path.splitext(name)[0], list(suffixes)
        found = [
            other for other in self._by_stem.get(stem_of(name), ()) if os.path.splitext(other)[1].lower() in suffixes
        ]

        def preference(other: str) -> tuple[object, ...]:
            begin, suffix = os.path.splitext(other)
            return begin != stem, order.index(suffix.lower()), suffix != suffix.lower(), other

        return sorted(found, key=preference)

    def word_times(self, name: str) -> str | None:
        """Name of the file of word times of an audio file."""
        return next(iter(self.of_same_stem(name, WORD_TIMES_SUFFIXES)), None)

    def join(self, name: str) -> str:
        """Path of one of the files, from the root."""
        return name if self.path == "." else f"{self.path}/{name}"

    def count_unused(
        self, used: Collection[str], unused: Unused, reason: Callable[[str], str | None] = lambda _: None
    ) -> None:
        """Count the files that are not `used`, by their suffix and the reason; None: the format has no such files."""
        for name in sorted(self.files.difference(used), key=counting):
            unused.add(_kind_of_file(name, reason(name) or "which this format does not read"), self.join(name))

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.files:
            found.setdefault(stem_of(name), []).append(name)
        return found

    def _is_audio(self, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        return suffix in AUDIO_SUFFIXES or (
            suffix in _DOUBTFUL_SUFFIXES and _opens(os.path.join(self.root, self.join(name)))
        )


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
            yield Folder(root, os.path.relpath(path, root).replace(os.sep, "/"), visible)
    except RecursionError:  # of os.walk
        raise UserError(f"{root} holds folders nested too deeply; check recordings.manifest") from None


def counting(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts chapter 2 before chapter 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name


def stem_of(name: str) -> str:
    """What files that belong together have in common: the name without its suffix, in Unicode's composed form."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def conversion(name: str) -> str | None:
    """The command that converts files like this one, if it is audio in a format that is not decoded here."""
    suffix = os.path.splitext(name)[1]
    if suffix.lower() in _SHORTENED_SUFFIXES:
        return f'for f in *{suffix}; do sph2pipe -f wav "$f" "${{f%.*}}.wav"; done'
    if suffix.lower() not in _UNDECODABLE_SUFFIXES:
        return None
    return f'for f in *{suffix}; do ffmpeg -i "$f" "${{f%.*}}.wav"; done'


def _kind_of_file(name: str, reason: str) -> str:
    suffix = os.path.splitext(name)[1]
    command = conversion(name)
    if command is not None:
        return f"files {suffix}, which are in a format that is not decoded; convert them: {command}"
    return f"files {suffix.lower():.40}, {reason}" if suffix else f"files without a suffix, {reason}"


def _opens(path: str) -> bool:
    """Whether libsndfile takes the file for audio."""
    try:
        import soundfile

        with open_regular(path) as file:
            if file.read(1) == b"\xff":
                return False  # MPEG, which has none of these names; its decoder would write notes to stderr
        # A name like .snd is enough for libsndfile to take any bytes for samples without a header.
        return bool(soundfile.info(path).format != "RAW")
    except (ImportError, OSError, RuntimeError, TypeError, ValueError):  # soundfile's own are RuntimeError
        return False
