"""The recordings of a folder, whose beginnings are prompts, and their transcripts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.files.reading import read_text
from tolktrain.generate.inputs import PROMPTS_FILE, read_entries

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

_LONGEST_TEXT = 1 << 20  # bytes
_RIGHT, _WRONG = "_correct", "_incorrect"


@dataclass(frozen=True)
class Recording:
    """A recording, and what is said in it."""

    id: str  # the path in the folder
    path: Path
    text: str | None  # None if it has no transcript


def read_recordings(folder: Path, most: int) -> list[Recording]:
    """The first recordings of a folder and its subfolders; numbers in names are ordered by value.

    Of StoryCloze's recordings, those named `..._correct` alone are taken, as slamkit does. The transcript of NAME.wav
    is NAME.txt in its folder; else the line `NAME TEXT` of a file `*.trans.txt` there, as in LibriSpeech; else `text`
    in prompts.json there, as for `evaluation.prompts`.

    Raises:
        UserError: there is no folder or no recording, two recordings differ in their suffix alone, or a transcript is
            unreadable or doubled; names the file.
    """
    if not folder.is_dir():
        raise UserError(f"--generation: {folder} is no folder; it should hold recordings ({', '.join(SUFFIXES)})")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if any(path.stem.endswith((_RIGHT, _WRONG)) for path in paths):
        paths = [path for path in paths if path.stem.endswith(_RIGHT)]
    if not paths:
        raise UserError(f"--generation: {folder} holds no recording ({', '.join(SUFFIXES)}); name a folder with some")
    paths.sort(key=lambda path: _natural(path.relative_to(folder).as_posix()))
    _refuse_twins(paths)
    chosen = paths[:most]
    lines = {parent: _lines_of(parent) for parent in {path.parent for path in chosen}}
    return [Recording(path.relative_to(folder).as_posix(), path, _text(path, lines[path.parent])) for path in chosen]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _refuse_twins(paths: Iterable[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.with_suffix(""), path)
        if other is not path:
            raise UserError(f"{other} and {path.name} are the same recording twice; remove one of them")


def _lines_of(folder: Path) -> dict[str, str]:
    """The transcripts of prompts.json or `*.trans.txt` in a folder, by name."""
    found: dict[str, str] = {}
    if (folder / PROMPTS_FILE).is_file():
        return {Path(entry["file"]).stem: str(entry.get("text", "")) for entry in read_entries(folder)}
    for path in sorted(folder.glob("*.trans.txt")):
        for line in _read(path).splitlines():
            name, _, text = line.strip().partition(" ")
            if name in found:
                raise UserError(f"{path}: {name} has two transcripts; remove one of them")
            if name:
                found[name] = text.strip()
    return found


def _text(path: Path, lines: dict[str, str]) -> str | None:
    file = path.with_suffix(".txt")
    text = _read(file).strip() if file.is_file() else lines.get(path.stem, "")
    return text or None


def _read(path: Path) -> str:
    try:
        return read_text(path, _LONGEST_TEXT)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable UTF-8 text ({error}); restore it from its source") from None
