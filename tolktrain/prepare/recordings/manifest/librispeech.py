"""LibriSpeech as it is distributed: a folder for each chapter, with the transcripts of its utterances in one file."""

import os
from collections.abc import Iterator
from typing import Any

from tolktrain.prepare.recordings.align.word_times import ALIGNMENTS_SUFFIX
from tolktrain.prepare.recordings.manifest.entry import failure_of, utterance_of
from tolktrain.prepare.recordings.manifest.folders import Folder, counting, walk
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.lines import read_lines, text_of
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

TRANSCRIPTS_SUFFIX = ".trans.txt"


def read_librispeech(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """The lines of all SPEAKER-CHAPTER.trans.txt below `root`, each with a FLAC file of the line's name.

    The source is SPEAKER-CHAPTER. Word times are in the utterance's own .TextGrid, or in SPEAKER-CHAPTER.alignment.txt
    of LibriSpeech-Alignments. A FLAC file without a line is a failure.
    """
    root = manifest.path
    for folder in walk(root):
        transcribed: set[str] = set()
        for name in sorted((name for name in folder.files if name.endswith(TRANSCRIPTS_SUFFIX)), key=counting):
            chapter = name[: -len(TRANSCRIPTS_SUFFIX)]
            for number, line in read_lines(os.path.join(root, folder.join(name))):
                place = f"{folder.join(name)} line {number}"
                try:
                    stem, _, text = text_of(line).strip().partition(" ")
                    transcribed.add(f"{stem}.flac")
                    yield utterance_of(_chapter_entry(folder, chapter, stem, text), root)
                except EntryError as error:
                    yield failure_of(error, None, place)
        for name in folder.audio_files():
            if name.endswith(".flac") and name not in transcribed:
                place = folder.join(name).encode(errors="backslashreplace").decode()
                yield Failure(place, Reason.MANIFEST, "no line of a .trans.txt in its folder names it")


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


def _recognizes(seen: Seen) -> bool:
    """Whether the first folder that holds any audio or transcripts holds transcripts."""
    if not seen.is_folder:
        return False
    for folder in walk(seen.path):
        if any(name.endswith(TRANSCRIPTS_SUFFIX) for name in folder.files):
            return True
        if folder.audio_files():
            return False
    return False


FORMAT = Format(read_librispeech, _recognizes, is_folder=True)
