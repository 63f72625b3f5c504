"""Manifests that are tables: a line of names, then a line for each utterance."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest.cells import is_quoted, records_of
from tolktrain.prepare.recordings.manifest.entry import KEYS, failure_of, mistaken_key, utterance_of
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.lines import read_lines, text_of
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

_NUMBERS = ("offset", "duration", "channel")
_MISSING = frozenset({"nan", "NaN", "<NA>", r"\N", "#N/A"})  # as pandas, databases and spreadsheets write it
# These are words too, so they are taken for missing values only where nobody has such a name.
_MISSING_NAMES = _MISSING | {"None", "NULL", "null", "N/A", "NaT"}
_OF_NAMES = frozenset({"id", "speaker", "source", "client_id", "word_times"})


def read_tsv(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """Cells between tabs; the first line names the columns.

    Cells are taken literally, unless the file as a whole is quoted as CSV is (`manifest/cells.py`). An empty cell is
    absent, and so is one that means a missing value, such as nan of pandas. Raises `UserError` if the first line names
    no columns, or the file is quoted in part.
    """
    lines = partial(read_lines, manifest.path)
    quoted = is_quoted(manifest.path, lines)
    columns: list[str] = []
    for number, cells in records_of(lines(), quoted):
        if not columns:
            columns = _columns(manifest.path, cells)
            continue
        entry: dict[str, Any] | None = None
        place = f"line {number}"
        try:
            entry = _entry(columns, cells, manifest.unused, place)
            yield utterance_of(entry, manifest.root, manifest.unused, place)
        except EntryError as error:
            yield failure_of(error, entry, place)


def _entry(columns: list[str], cells: list[bytes] | None, unused: Unused, place: str) -> dict[str, Any]:
    if cells is None:
        raise EntryError(Reason.MANIFEST, "its quotes are not those of CSV, as in the rest of the file")
    if len(cells) != len(columns):
        raise EntryError(Reason.MANIFEST, f"it has {len(cells)} cells; the first line names {len(columns)}")
    texts = [text_of(cell).strip() for cell in cells]
    entry: dict[str, Any] = {name: text for name, text in zip(columns, texts, strict=True) if text}
    for name in [name for name, text in entry.items() if text in (_MISSING_NAMES if name in _OF_NAMES else _MISSING)]:
        if name in _NUMBERS:
            continue
        unused.add(f"cells {entry.pop(name)} in the column {name!r:.80}, taken for empty", place)
    return entry | {name: _number(name, entry[name]) for name in _NUMBERS if name in entry}


def _columns(path: str, cells: list[bytes] | None) -> list[str]:
    names = [name.decode(errors="replace").strip() for name in cells or ()]
    found = f"its first line has {', '.join(map(repr, names))}"[:300]
    for name in names:
        meant = mistaken_key(name)
        if name not in KEYS and meant is not None and meant not in names:
            raise UserError(f"{path}: the column {name!r} is not known; did you mean {meant}?")
    if "audio" not in names:
        separated = "; columns are separated by tabs" if len(names) == 1 else ""
        raise UserError(f"{path}: no column is named audio; {found}; known are {', '.join(KEYS)}{separated}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have the same name; {found}")
    if "words" in names:
        raise UserError(f"{path}: a table cannot hold words; name files of word times in the column word_times")
    return names


def _number(name: str, cell: str) -> int | float:
    try:
        if not cell.isascii() or "_" in cell:
            raise ValueError
        return int(cell) if name == "channel" else float(cell)
    except ValueError:
        raise EntryError(Reason.MANIFEST, f"{name} must be a number, got {cell!r:.80}") from None


def _recognizes(seen: Seen) -> bool:
    names = [name.strip().strip(b'"') for name in seen.lines[0].split(b"\t")] if seen.lines else []
    return seen.is_file and (seen.ends_with(".tsv") or b"audio" in names)


FORMAT = Format(read_tsv, _recognizes)
