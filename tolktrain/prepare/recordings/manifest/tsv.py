"""Manifests that are tables: a line of names, then a line for each utterance."""

from collections.abc import Iterator
from typing import Any

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest.entry import KEYS, failure_of, mistaken_key, utterance_of
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.lines import read_lines, text_of
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

_NUMBERS = ("offset", "duration", "channel")


def read_tsv(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """Cells between tabs, taken literally, without quoting; an empty one is absent. The first line names the columns.

    Raises `UserError` if the first line does not.
    """
    columns: list[str] = []
    for number, line in read_lines(manifest.path):
        if not columns:
            columns = _columns(manifest.path, line)
            continue
        entry: dict[str, Any] | None = None
        try:
            cells = text_of(line).split("\t")
            if len(cells) != len(columns):
                raise EntryError(Reason.MANIFEST, f"it has {len(cells)} cells; the first line names {len(columns)}")
            entry = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if cell.strip()}
            numbers = {name: _number(name, entry[name]) for name in _NUMBERS if name in entry}
            yield utterance_of(entry | numbers, manifest.root)
        except EntryError as error:
            yield failure_of(error, entry, f"line {number}")


def _columns(path: str, line: bytes) -> list[str]:
    names = [name.strip() for name in line.decode(errors="replace").split("\t")]
    found = f"its first line has {', '.join(map(repr, names))}"[:300]
    for name in names:
        meant = mistaken_key(name)
        if name not in KEYS and meant is not None and meant not in names:
            raise UserError(f"{path}: the column {name!r} is not known; did you mean {meant}?")
    if "audio" not in names:
        raise UserError(f"{path}: no column is named audio; {found}; known are {', '.join(KEYS)}")
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
    names = [name.strip() for name in seen.lines[0].split(b"\t")] if seen.lines else []
    return seen.is_file and (seen.ends_with(".tsv") or b"audio" in names)


FORMAT = Format(read_tsv, _recognizes)
