"""Folders of audio files with their transcripts in files of the same stem."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tolktrain.files.reading import RepeatedKeyError, decode_text, parse_json, read_bytes
from tolktrain.prepare.recordings.align.word_times import is_word_times
from tolktrain.prepare.recordings.manifest.entry import KEYS, utterance_of
from tolktrain.prepare.recordings.manifest.folders import WORD_TIMES_SUFFIXES, Folder, stem_of, walk
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

_READERS = 16  # files are small, and a network disk answers many at a time
_TRANSCRIPT_SUFFIXES = (".txt", ".lab")
# HTK, Festival and others keep times and phones in .lab files, perhaps after a header that ends with "#".
_TIMED_LABEL = re.compile(r"\s*[0-9.]+\s+[-0-9.]+\s+\S.*")


def read_folder(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """Every audio file below `root` is an utterance; its id is its path from there.

    The transcript is in `STEM.txt`, `STEM.lab` or `STEM.json`; the latter may have all keys of a manifest but `audio`,
    or be what an aligner such as WhisperX writes. Word times are in `STEM.TextGrid`, `STEM.ctm` or the aligner's JSON.
    Suffixes may be in any case. The source is the folder of the file, from the root, if it has several audio files, so
    that they are taken to be consecutive, in the order of their names; else it is the file. The speaker is unknown
    unless the JSON file names one. Several audio files of one stem are a failure. Other files are counted as unused.
    """
    root = manifest.path
    with ThreadPoolExecutor(_READERS) as pool:
        for folder in walk(root):
            several = len(folder.audio_files) > 1
            used: set[str] = set()
            single = [names[0] for names in folder.recordings.values() if len(names) == 1]
            done = pool.map(partial(_read, folder, several), single)
            for names in folder.recordings.values():
                used.update(names)
                if len(names) > 1:
                    yield _ambiguous(folder, names)
                    continue
                item, files, unused = next(done)
                used.update(files)
                manifest.unused.join(unused.take())
                yield item
            folder.count_unused(used, manifest.unused, partial(_why_unused, folder, used))


def _why_unused(folder: Folder, used: Collection[str], name: str) -> str | None:
    """Why a file was not used although its suffix is one of this format."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in (*_TRANSCRIPT_SUFFIXES, ".json", *WORD_TIMES_SUFFIXES):
        return None
    audio = folder.recordings.get(stem_of(name), [])
    if not audio:
        return "because no audio file has the same name"
    if len(audio) > 1:
        return "because several audio files have the same name"
    same_kind = next((kind for kind in (_TRANSCRIPT_SUFFIXES, WORD_TIMES_SUFFIXES) if suffix in kind), (suffix,))
    chosen = next((other for other in folder.of_same_stem(audio[0], same_kind) if other in used), None)
    if chosen is None and suffix == ".lab":
        return "because they contain times and labels, not a transcript; word times are read from .TextGrid and .ctm"
    if chosen is None:
        return "because the .json of the same name names another file, or its entry failed"
    return f"because there is a {os.path.splitext(chosen)[1]} of the same name"


def _ambiguous(folder: Folder, names: list[str]) -> Failure:
    paths = [_escaped(folder.join(name)) for name in names]
    composed = {unicodedata.normalize("NFC", name) for name in names}
    show, common = (ascii, "in Unicode's composed form") if len(composed) < len(names) else (repr, "but for the suffix")
    return Failure(
        paths[0],
        Reason.MANIFEST,
        f"{', '.join(map(show, paths))} have the same name {common}, so a transcript or word"
        " times would belong to each; keep one of them, or move the others out of the folder",
        paths[0],
    )


def _read(folder: Folder, several: bool, name: str) -> tuple[Utterance | Failure, list[str], Unused]:
    """The utterance of an audio file, the files that it is made of, and what was not used of these."""
    files, unused = [], Unused()
    audio = folder.join(name)
    try:
        _check_name(audio)
        entry: dict[str, Any] = {"id": audio, "source": folder.path if several else audio}
        for transcript in folder.of_same_stem(name, _TRANSCRIPT_SUFFIXES):
            text = _content(folder, transcript)
            if not _is_labels(transcript, text):
                files.append(transcript)
                entry["text"] = " ".join(text.split())
                break
        for description in folder.of_same_stem(name, (".json",))[:1]:
            files.append(description)
            entry |= _described(folder, description, entry, unused)
        if "words" not in entry and "word_times" not in entry:
            word_times = folder.word_times(name)
            if word_times is not None:
                files.append(word_times)
                entry["word_times"] = folder.join(word_times)
        return utterance_of({**entry, "audio": audio}, folder.root, unused, _escaped(audio)), files, unused
    except EntryError as error:
        return Failure(_escaped(audio), error.reason, error.detail, _escaped(audio)), files, unused


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise EntryError(
            Reason.MANIFEST,
            f"its name is not UTF-8; rename it and the files that belong to it, for example with `convmv -f latin1 -t"
            f" utf8 --notest -r FOLDER` ({os.fsencode(path)!r:.100})",
        ) from None


def _described(folder: Folder, name: str, entry: dict[str, Any], unused: Unused) -> dict[str, Any]:
    """What a JSON file adds to the entry of its audio."""
    path = folder.join(name)
    try:
        described = parse_json(_content(folder, name))
    except RepeatedKeyError as error:
        raise EntryError(Reason.MANIFEST, f"{path}: {error}") from None
    except ValueError as error:
        raise EntryError(Reason.MANIFEST, f"{path} is not JSON ({error})") from None
    if is_word_times(described):
        # What a recognizer heard is worth less than a transcript.
        text = described.get("text") if isinstance(described, dict) else None
        if isinstance(text, str) and entry.get("text") not in (None, " ".join(text.split())):
            unused.add("texts in .json, because there is a .txt or .lab of the same name", path)
        added = {"text": text} if isinstance(text, str) and "text" not in entry else {}
        if folder.word_times(name) is None:
            return {"word_times": path, **added}
        unused.add("word times in .json, because there is a .TextGrid or .ctm of the same name", path)
        return added
    if not isinstance(described, dict) or "audio" in described:
        raise EntryError(
            Reason.MANIFEST, f"{path} must hold an object with keys among {', '.join(KEYS)}, but not audio"
        )
    if described.get("text") is not None and entry.get("text") not in (None, described["text"]):
        unused.add("transcripts in .txt and .lab, because the .json of the same name has a text", path)
    if isinstance(described.get("word_times"), str):
        return {**described, "word_times": folder.join(described["word_times"])}
    return described


def _is_labels(name: str, text: str) -> bool:
    """Whether a .lab file holds times and labels instead of a transcript."""
    if not name.lower().endswith(".lab"):
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    begin = lines.index("#") + 1 if "#" in lines else 0
    return len(lines) > 1 and all(_TIMED_LABEL.fullmatch(line) for line in lines[begin:])


def _content(folder: Folder, name: str) -> str:
    path = folder.join(name)
    try:
        return decode_text(read_bytes(os.path.join(folder.root, path)))
    except OSError as error:
        raise EntryError(Reason.MANIFEST, f"{path} cannot be read ({error.strerror})") from None
    except UnicodeError as error:
        raise EntryError(Reason.MANIFEST, f"{path} {error}") from None


def _escaped(path: str) -> str:
    return path.encode(errors="backslashreplace").decode()


def _recognizes(seen: Seen) -> bool:
    return seen.is_folder and any(folder.audio_files for folder in walk(seen.path))


FORMAT = Format(read_folder, _recognizes, is_folder=True)
