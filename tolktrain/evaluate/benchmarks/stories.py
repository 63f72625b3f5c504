"""The layouts of spoken StoryCloze: whole stories, prompts and endings apart, and the SmolTolk authors' token files."""

import re
from collections.abc import Mapping
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import (
    AudioFile,
    Found,
    ItemSet,
    Measure,
    Modality,
    Pair,
    Problems,
    Role,
    Segment,
    Source,
    list_folder,
)
from tolktrain.evaluate.benchmarks.released import MANIFEST, read_released
from tolktrain.files.reading import decode_text, read_bytes

DIRECTIONS: tuple[tuple[Modality, Modality], ...] = (
    ("text", "text"),
    ("text", "speech"),
    ("speech", "text"),
    ("speech", "speech"),
)
WHOLE_RULES = ("whole_mean", "whole_mean_closing_eos")
PARTS_RULES = ("continuation_mean_no_context", "whole_mean_closing_eos")
MEASURES = (Measure("accuracy"),)

_WHOLE = re.compile(r"(\d+)_(.+)_(correct|incorrect)\.wav")
_PART = re.compile(r"(.+)_(mutual|correct|incorrect)\.(wav|txt)")
_SIDES = ("correct", "incorrect")
_LARGEST_TEXT = 1 << 16  # bytes


def read_stories(folder: Path, archive: str) -> Found:
    """StoryCloze in whichever layout a folder has; subfolders are speakers.

    Raises:
        UserError: the layout is not recognized, or files cannot be read.
    """
    if (folder / MANIFEST).is_file():
        return read_released(folder, MEASURES)
    names = list_folder(folder)
    speakers = ["", *(name for name in names if (folder / name).is_dir())]
    files = {speaker: list_folder(folder / speaker) if speaker else names for speaker in speakers}
    if any(_PART.fullmatch(name) and "_mutual." in name for there in files.values() for name in there):
        return _read_parts(folder, files)
    if any(_WHOLE.fullmatch(name) for there in files.values() for name in there):
        return _read_whole(folder, files)
    raise UserError(
        f"{folder} holds neither whole stories (1_ID_correct.wav), nor parts (ID_mutual.wav, ID_correct.wav,"
        f" ID_incorrect.wav, the same as .txt), nor {MANIFEST}; name the folder of {archive}"
    )


def _read_whole(folder: Path, files: Mapping[str, list[str]]) -> Found:
    """Whole stories, paired by the id in their names; the number before it is not used."""
    items: dict[str, tuple[Segment, ...]] = {}
    pairs, missing, doubled, extra = [], [], [], []
    for speaker, names in files.items():
        stories: dict[str, dict[str, str]] = {}
        for name in names:
            match = _WHOLE.fullmatch(name)
            place = f"{speaker}/{name}".lstrip("/")
            if match is None:
                extra += [place] if name.endswith(".wav") else []
            elif match[3] in stories.setdefault(match[2], {}):
                doubled.append(place)
            else:
                stories[match[2]][match[3]] = place
        for story, sides in stories.items():
            absent = [side for side in _SIDES if side not in sides]
            missing += [f"{speaker}/*_{story}_{side}.wav".lstrip("/") for side in absent]
            if not absent:
                pairs.append(Pair(story, sides["correct"], sides["incorrect"], speaker))
                items |= {n: (Segment("whole", "speech", AudioFile(folder / n)),) for n in sides.values()}
    found = ItemSet("whole stories", items, tuple(pairs), MEASURES, WHOLE_RULES)
    return Found((found,), Problems(tuple(missing), tuple(doubled), tuple(extra)))


def _read_parts(folder: Path, files: Mapping[str, list[str]]) -> Found:
    """Prompts and endings in files of their own, as audio and as text: one set per direction that has files."""
    present: dict[tuple[str, str], set[tuple[str, str]]] = {}  # (speaker, story): (part, suffix)
    extra = []
    for speaker, names in files.items():
        for name in names:
            match = _PART.fullmatch(name)
            if match is not None:
                present.setdefault((speaker, match[1]), set()).add((match[2], match[3]))
            elif name.endswith((".wav", ".txt")):
                extra.append(f"{speaker}/{name}".lstrip("/"))
    suffixes = {suffix for there in present.values() for _, suffix in there}
    missing = [
        f"{speaker}/{story}_{part}.{suffix}".lstrip("/")
        for (speaker, story), there in present.items()
        for suffix in sorted(suffixes)
        for part in ("mutual", *_SIDES)
        if (part, suffix) not in there
    ]
    texts = _Texts(folder)
    sets = []
    for source, target in DIRECTIONS:
        wanted = {"text": "txt", "speech": "wav"}
        needs = {("mutual", wanted[source]), *((side, wanted[target]) for side in _SIDES)}
        if not {suffix for _, suffix in needs} <= suffixes:
            continue
        items: dict[str, tuple[Segment, ...]] = {}
        pairs = []
        for (speaker, story), there in present.items():
            if not needs <= there:
                continue
            ids = [f"{speaker}/{story}_{side}".lstrip("/") for side in _SIDES]
            prompt = texts.segment("prompt", source, speaker, f"{story}_mutual")
            for item, side in zip(ids, _SIDES, strict=True):
                items[item] = (prompt, texts.segment("continuation", target, speaker, f"{story}_{side}"))
            pairs.append(Pair(story, ids[0], ids[1], speaker))
        sets.append(ItemSet(f"{source} to {target}", items, tuple(pairs), MEASURES, PARTS_RULES))
    return Found(tuple(sets), Problems(missing=tuple(missing), extra=tuple(extra)))


class _Texts:
    """Makes segments; each text file is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, str] = {}

    def segment(self, role: Role, modality: Modality, speaker: str, name: str) -> Segment:
        """The segment of a file without its suffix. Raises UserError for an unreadable text."""
        source: Source
        if modality == "speech":
            source = AudioFile(self._folder / speaker / f"{name}.wav")
        else:
            source = self._text(self._folder / speaker / f"{name}.txt")
        return Segment(role, modality, source)

    def _text(self, path: Path) -> str:
        if path not in self._read:
            try:
                self._read[path] = decode_text(read_bytes(path, _LARGEST_TEXT)).strip()
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}); get it from its source again") from None
            if not self._read[path]:
                raise UserError(f"{path} holds no text; get it from its source again")
        return self._read[path]
