"""LibriSpeech as it is distributed: a folder for each chapter, with the transcripts of its utterances in one file."""

import os
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from tolktrain.prepare.recordings.align.word_times import ALIGNMENTS_SUFFIX
from tolktrain.prepare.recordings.manifest.entry import failure_of, utterance_of
from tolktrain.prepare.recordings.manifest.folders import WORD_TIMES_SUFFIXES, Folder, counting, stem_of, walk
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.lines import read_lines, text_of
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

TRANSCRIPTS_SUFFIX = ".trans.txt"


def read_librispeech(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """The lines of all SPEAKER-CHAPTER.trans.txt below `root`, each with a FLAC file of the line's name.

    Without such a FLAC file, the audio file of another suffix with the line's name, if there is one. The source is
    SPEAKER-CHAPTER. Word times are in the utterance's own .TextGrid, or in SPEAKER-CHAPTER.alignment.txt of
    LibriSpeech-Alignments. A FLAC file without a line is a failure; other files are counted as unused.
    """
    root = manifest.path
    for folder in walk(root):
        used: set[str] = set()
        transcribed: set[str] = set()
        for name in _transcripts(folder):
            used.add(name)
            chapter = name[: -len(TRANSCRIPTS_SUFFIX)]
            for number, line in read_lines(os.path.join(root, folder.join(name))):
                place = f"{folder.join(name)} line {number}"
                try:
                    stem, _, text = text_of(line).strip().partition(" ")
                    transcribed.add(stem_of(f"{stem}.flac"))
                    entry, files = _chapter_entry(folder, chapter, stem, text)
                    used.update(files)
                    yield utterance_of(entry, root, manifest.unused, place)
                except EntryError as error:
                    yield failure_of(error, None, place)
        for name in folder.audio_files:
            if name.lower().endswith(".flac") and stem_of(name) not in transcribed:
                used.add(name)
                place = folder.join(name).encode(errors="backslashreplace").decode()
                yield Failure(place, Reason.MANIFEST, "no line of a .trans.txt in its folder names it", place)
        folder.count_unused(used, manifest.unused, partial(_why_unused, folder, transcribed))


def _why_unused(folder: Folder, transcribed: Collection[str], name: str) -> str | None:
    """Why a file was not used although its suffix is one of this format."""
    suffix = os.path.splitext(name)[1].lower()
    if name in folder.audio_files or suffix in WORD_TIMES_SUFFIXES:
        if stem_of(name) not in transcribed:
            return "because no line of a .trans.txt names them"
        return "because there is another file of the same name"
    return "because transcripts are read from .trans.txt" if suffix in (".txt", ".lab") else None


def _transcripts(folder: Folder) -> list[str]:
    return sorted((name for name in folder.files if name.lower().endswith(TRANSCRIPTS_SUFFIX)), key=counting)


def _chapter_entry(folder: Folder, chapter: str, stem: str, text: str) -> tuple[dict[str, Any], list[str]]:
    """The entry of a line, and the files that it names."""
    parts = stem.split("-")
    if len(parts) != 3 or not all(parts) or "-".join(parts[:2]) != chapter or "/" in stem:
        raise EntryError(Reason.MANIFEST, f"expected {chapter}-NUMBER and a transcript, got {stem!r:.80}")
    audio = _audio_file(folder, f"{stem}.flac")
    word_times = folder.word_times(audio)
    if word_times is None and chapter + ALIGNMENTS_SUFFIX in folder.files:
        word_times = chapter + ALIGNMENTS_SUFFIX
    entry = {
        "id": stem,
        "audio": folder.join(audio),
        "text": text,
        "speaker": parts[0],
        "source": chapter,
        "word_times": None if word_times is None else folder.join(word_times),
    }
    return entry, [audio] if word_times is None else [audio, word_times]


def _audio_file(folder: Folder, flac: str) -> str:
    if flac in folder.files:
        return flac
    others = folder.recordings.get(stem_of(flac), [])
    as_flac = [name for name in others if name.lower().endswith(".flac")]
    found = as_flac or others
    if len(found) > 1:
        raise EntryError(Reason.MANIFEST, f"{flac} does not exist, and several others may be meant: {', '.join(found)}")
    return found[0] if found else flac  # that it is missing is said when it is read


def _recognizes(seen: Seen) -> bool:
    """Whether the first folder that holds any audio or transcripts holds transcripts."""
    if not seen.is_folder:
        return False
    for folder in walk(seen.path):
        if _transcripts(folder):
            return True
        if folder.audio_files:
            return False
    return False


FORMAT = Format(read_librispeech, _recognizes, is_folder=True)
