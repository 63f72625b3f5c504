"""The cells of tables between tabs, and whether a table is quoted as CSV is.

A program that writes CSV puts a cell into quotes if it holds a quote, a tab or a line end, and doubles the quotes
inside; others write every cell as it is. Both are called TSV, and one line alone does not show which it is: the cell
"Good-bye." may be a word in quotes or a quoted word. The file as a whole does.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tolktrain.errors import UserError

Lines = Callable[[], Iterable[tuple[int, bytes]]]  # numbers, from 1 on, and the lines that are not empty

_QUOTE = b'"'
_BACKSLASH_QUOTE = b'\\"'
_CELL = re.compile(rb'(?:"((?:[^"]|"")*)"|([^"\t]*))(\t|\Z)')
_LONGEST_RECORD = 1 << 24  # bytes; one that an unclosed quote makes longer is none


def quoted_cells(record: bytes) -> list[bytes] | None:
    """The cells of a quoted record, without their quotes; None if it is not quoted by the rules of CSV."""
    cells, place = [], 0
    while True:
        found = _CELL.match(record, place)
        if found is None:
            return None
        cells.append(found[2] if found[1] is None else found[1].replace(b'""', _QUOTE))
        place = found.end()
        if not found[3]:
            return cells


def records_of(lines: Iterable[tuple[int, bytes]], quoted: bool) -> Iterator[tuple[int, list[bytes] | None]]:
    """Number of the first line, and cells of each record; None if these are not quoted by the rules.

    A record of a quoted table ends where its quotes are even in number, which may be lines later.
    """
    if not quoted:
        yield from ((number, line.split(b"\t")) for number, line in lines)
        return
    parts: list[bytes] = []
    begin, size, open_quote = 0, 0, False
    for number, line in lines:
        if not parts:
            begin = number
        parts.append(line)
        size += len(line)
        open_quote ^= line.count(_QUOTE) % 2 == 1
        if not open_quote or size > _LONGEST_RECORD:
            yield begin, None if open_quote else quoted_cells(b"\n".join(parts))
            parts, size, open_quote = [], 0, False
    if parts:
        yield begin, None


@dataclass
class _Seen:
    """What the lines of a table look like, each for itself."""

    header_is_quoted: bool = False
    is_even: bool = True  # each line has as many cells as the first
    bare: int | None = None  # line of the first cell that holds quotes which are not CSV's
    escaped: int | None = None  # of the first one in quotes that holds a doubled quote
    filled: dict[int, int] = field(default_factory=dict)  # cells that are not empty, by column
    enclosed: dict[int, int] = field(default_factory=dict)  # those in quotes without need, by column


def is_quoted(path: str, lines: Lines) -> bool:
    """Whether the table is quoted as CSV is.

    Raises `UserError` if some of it is and some is not, or quotes have backslashes, as R, Spark and databases write
    them: nothing but a convention says what else a backslash means in such a file.
    """
    if not any(_QUOTE in line for _, line in lines()):
        return False
    escaped = next((number for number, line in lines() if _BACKSLASH_QUOTE in line), None)
    if escaped is not None:
        raise UserError(
            f"{path}: line {escaped} has quotes after a backslash, which tables between tabs do not have; double the"
            " quotes inside of cells as CSV does (pandas: no escapechar; R: qmethod='double'; Spark: escape='\"'), or"
            " write JSON lines"
        )
    seen = _look(lines())
    if seen.header_is_quoted:
        return True
    if seen.bare is None:
        # A column of which every cell is in quotes was quoted; sentences are not all in quotes.
        whole = any(count == seen.filled[place] > 1 for place, count in seen.enclosed.items())
        return seen.escaped is not None or whole
    # Lines with the right number of cells are records: quotes that join them are part of the text.
    if not seen.is_even and _is_csv(lines()):
        return True
    if seen.escaped is not None:
        raise UserError(
            f"{path}: line {seen.escaped} has a cell that is quoted as in CSV, with doubled quotes, and line"
            f" {seen.bare} has quotes that are not; write all cells by one rule, csv.QUOTE_MINIMAL or csv.QUOTE_NONE"
        )
    return False


def _look(lines: Iterable[tuple[int, bytes]]) -> _Seen:
    seen, width = _Seen(), 0
    for number, line in lines:
        cells = line.split(b"\t")
        if not width:
            width = len(cells)
            seen.header_is_quoted = all(map(_is_enclosed, filter(None, cells))) and any(cells)
            continue
        seen.is_even &= len(cells) == width
        for place, cell in enumerate(cells):
            if cell:
                seen.filled[place] = seen.filled.get(place, 0) + 1
            if _QUOTE not in cell:
                continue
            if not _is_enclosed(cell):
                seen.bare = seen.bare or number
            elif _QUOTE in cell[1:-1]:
                seen.escaped = seen.escaped or number
            else:
                seen.enclosed[place] = seen.enclosed.get(place, 0) + 1
    return seen


def _is_enclosed(cell: bytes) -> bool:
    """Whether a cell is in quotes by the rules of CSV."""
    return cell.startswith(_QUOTE) and len(cell) > 1 and quoted_cells(cell) is not None


def _is_csv(lines: Iterable[tuple[int, bytes]]) -> bool:
    """Whether the whole is CSV with the same number of cells in each record."""
    width = 0
    for _, cells in records_of(lines, quoted=True):
        if cells is None or len(cells) != (width or len(cells)):
            return False
        width = len(cells)
    return True
