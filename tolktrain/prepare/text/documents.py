"""Documents of text in files: JSON lines, plain or compressed, and Parquet."""

import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

from tolktrain.config.prepare import TextConfig
from tolktrain.errors import UserError
from tolktrain.files.reading import RepeatedKeyError, bounded_lines, open_regular, parse_json
from tolktrain.prepare.utterances import EntryError, Failure, Reason

Format = Literal["lines", "gzip", "zstd", "parquet"]

_LINES = (".jsonl", ".ndjson", ".json")
_COMPRESSED: tuple[tuple[str, Format], ...] = ((".gz", "gzip"), (".zst", "zstd"))
_PARQUET = (".parquet", ".pq")
_BUFFER = 1 << 20
_SAMPLE = 1 << 18  # bytes by which the number of documents in a file is estimated
_ROWS = 16  # of Parquet at a time: all may repeat one large text, which takes no room in the file


@dataclass(frozen=True)
class FileRange:
    """A part of a file: bytes from `begin` to `end` for lines, row groups for Parquet, all bytes if compressed.

    A line belongs to the range that it begins in.
    """

    path: str
    name: str  # the path from the folder that all files share
    format: Format
    begin: int
    end: int


@dataclass(frozen=True)
class Document:
    """One text."""

    place: str  # unique: name of the file and the byte, of Parquet the row, that it begins at
    id: str  # as the file names it; its place otherwise
    text: str


def find_files(patterns: Sequence[str]) -> list[tuple[str, str, Format]]:
    """Path, name and format of all files that match, each once, in the order of their paths.

    Raises `UserError` if a pattern matches nothing, or the format of a file does not follow from its name.
    """
    paths: set[str] = set()
    for pattern in patterns:
        matches = {os.path.abspath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
        if not matches:
            raise UserError(f"text.files: no file matches {pattern!r}; patterns count from {os.getcwd()}")
        paths |= matches
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    # Names become part of record ids, which are UTF-8.
    names = {path: os.path.relpath(path, common).encode("utf-8", "backslashreplace").decode() for path in paths}
    return [(path, names[path], _format_of(path)) for path in sorted(paths)]


def ranges_of(path: str, name: str, kind: Format, size: int, config: TextConfig) -> list[tuple[FileRange, int]]:
    """A file in ranges of about `size` bytes, and how many documents each is likely to hold.

    Raises `UserError` if the file cannot be read or, being Parquet, lacks a column.
    """
    if kind == "parquet":
        return _row_groups(path, name, size, config)
    length = os.path.getsize(path)
    documents_per_byte = _documents_per_byte(path, kind)
    step = size if kind == "lines" else max(length, 1)
    ranges = [FileRange(path, name, kind, begin, min(begin + step, length)) for begin in range(0, length, step)]
    return [(part, max(round((part.end - part.begin) * documents_per_byte), 1)) for part in ranges]


def read_documents(part: FileRange, config: TextConfig) -> Iterator[Document | Failure]:
    """The documents of a range, in order, and those that are unusable.

    Raises `UserError` if the file cannot be read to its end.
    """
    return _read_parquet(part, config) if part.format == "parquet" else _read_lines(part, config)


def _format_of(path: str) -> Format:
    lower = path.lower()
    if lower.endswith(_PARQUET):
        return "parquet"
    for suffix, kind in _COMPRESSED:
        if lower.endswith(tuple(lines + suffix for lines in _LINES)):
            return kind
    if lower.endswith(_LINES):
        return "lines"
    raise UserError(
        f"{path}: the format does not follow from the name; expected {', '.join(_LINES)}, also with"
        f" {' or '.join(suffix for suffix, _ in _COMPRESSED)}, or {', '.join(_PARQUET)}"
    )


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Errors of reading a file, as one that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # pyarrow's errors of files are OSErrors
        raise UserError(f"{path} cannot be read to its end ({error}); restore it from its source") from None


def _unpacked(path: str, kind: Format, raw: BinaryIO) -> io.BufferedReader:
    """The bytes of an open file, unpacked piece by piece."""
    if kind == "lines":
        return io.BufferedReader(cast("io.RawIOBase", raw), _BUFFER)
    if kind == "gzip":
        return io.BufferedReader(gzip.GzipFile(path, "rb", fileobj=raw), _BUFFER)
    pyarrow = _pyarrow(path)
    return io.BufferedReader(pyarrow.input_stream(pyarrow.PythonFile(raw, mode="r"), compression="zstd"), _BUFFER)


def _documents_per_byte(path: str, kind: Format) -> float:
    """Lines per byte of the file, by its beginning."""
    with _readable(path), open_regular(path) as raw:
        file = raw if kind == "lines" else _unpacked(path, kind, raw)
        sample = file.read(_SAMPLE)
        taken = max(raw.tell(), 1)
    return max(sample.count(b"\n"), 1) / taken


def _read_lines(part: FileRange, config: TextConfig) -> Iterator[Document | Failure]:
    numbers = _LineNumbers(part)
    with _readable(part.path), open_regular(part.path) as raw:
        file = _unpacked(part.path, part.format, raw)
        compressed = part.format != "lines"
        offset = part.begin if compressed else _first_line(file, part)
        if not compressed and offset >= part.end:
            return
        for index, line in enumerate(_lines(file, part, numbers)):
            if not compressed and offset >= part.end:
                return
            begin, offset = offset, offset + len(line)
            if not line.strip():
                continue
            place = f"{part.name}@{begin}"
            try:
                yield _parse(line, place, config)
            except EntryError as error:
                yield Failure(place, error.reason, f"{part.path}:{numbers.number(index)}: {error.detail}")


def _first_line(file: io.BufferedReader, part: FileRange) -> int:
    """Go to the first line that begins in the range; where that is. No further than the end of the range."""
    if not part.begin:
        return 0
    offset = file.seek(part.begin - 1)
    while offset < part.end and (piece := file.readline(_BUFFER)):
        offset += len(piece)
        if piece.endswith(b"\n"):
            break
    return offset


def _lines(file: io.BufferedReader, part: FileRange, numbers: "_LineNumbers") -> Iterator[bytes]:
    num_read = 0
    try:
        for line in bounded_lines(file):
            yield line
            num_read += 1
    except ValueError as error:
        place = f"{part.path}:{numbers.number(num_read)}"
        raise UserError(f"{place}: {error}; a document needs less; check that it is JSON lines") from None


class _LineNumbers:
    """Numbers of a range's lines. Those before the range are counted when the first number is asked for."""

    def __init__(self, part: FileRange) -> None:
        self._part = part
        self._before: int | None = None

    def number(self, index: int) -> int:
        """Number, from 1, of the line that is the range's `index`-th."""
        if self._before is None:
            self._before = self._count() if self._part.format == "lines" else 0
        return self._before + index + 1

    def _count(self) -> int:
        """Lines that begin before the range."""
        count, left = 0, self._part.begin
        with open_regular(self._part.path) as file:
            while left and (block := file.read(min(left, _BUFFER))):
                count += block.count(b"\n")
                left -= len(block)
                ended = block.endswith(b"\n")
        return count if not self._part.begin or ended else count + 1


def _parse(line: bytes, place: str, config: TextConfig) -> Document:
    try:
        content = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise EntryError(Reason.MANIFEST, f"not UTF-8 ({error.reason} at byte {error.start} of the line)") from None
    except RepeatedKeyError as error:
        raise EntryError(Reason.MANIFEST, str(error)) from None
    except ValueError as error:
        raise EntryError(Reason.MANIFEST, f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise EntryError(Reason.MANIFEST, "not a JSON object")
    for key in (config.column, config.id_column):
        if key is not None and key not in content:
            raise EntryError(Reason.MANIFEST, f"no key {key!r}")
    name = content[config.id_column] if config.id_column is not None else place
    return _document(place, name, content[config.column])


def _document(place: str, name: Any, text: Any) -> Document:
    """Raises `EntryError` unless name and text are usable."""
    if not isinstance(name, (str, int)):
        raise EntryError(Reason.MANIFEST, f"the document's name is {type(name).__name__}, not a string or a number")
    if not isinstance(text, str):
        raise EntryError(Reason.TEXT, f"the text is {type(text).__name__}, not a string")
    if not text.strip():
        raise EntryError(Reason.TEXT, "the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EntryError(Reason.TEXT, f"half of a surrogate pair at character {error.start} of the text") from None
    return Document(place, str(name), text)


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} needs the package pyarrow; pip install pyarrow") from None
    return pyarrow


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # for damaged descriptions the library lets all kinds escape
        raise UserError(f"{path} is no readable Parquet file ({error}); restore it from its source") from None


def _row_groups(path: str, name: str, size: int, config: TextConfig) -> list[tuple[FileRange, int]]:
    with _parquet(path) as file:
        _check_columns(path, file.schema_arrow, config)
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    ranges = []
    begin = rows = content = 0
    for index, group in enumerate(groups):
        rows += group.num_rows
        content += group.total_byte_size
        if content >= size or index + 1 == len(groups):
            ranges.append((FileRange(path, name, "parquet", begin, index + 1), rows))
            begin, rows, content = index + 1, 0, 0
    return [(part, rows) for part, rows in ranges if rows]


def _check_columns(path: str, schema: Any, config: TextConfig) -> None:
    for key in (config.column, config.id_column):
        if key is not None and schema.get_field_index(key) < 0:
            raise UserError(f"{path} has no column {key!r}, or several; it has {', '.join(schema.names)}")
    kind = str(schema.field(config.column).type)
    if kind not in ("string", "large_string", "string_view"):
        raise UserError(f"{path}: column {config.column!r} holds {kind}, not string; name the column of the text")


def _read_parquet(part: FileRange, config: TextConfig) -> Iterator[Document | Failure]:
    pyarrow = _pyarrow(part.path)
    columns = [config.column] + ([config.id_column] if config.id_column is not None else [])
    with _parquet(part.path) as file:
        row = sum(file.metadata.row_group(index).num_rows for index in range(part.begin))
        batches = file.iter_batches(_ROWS, row_groups=list(range(part.begin, part.end)), columns=columns)
        try:
            for batch in batches:
                for index in range(batch.num_rows):
                    yield _parse_row(batch, index, f"{part.name}@{row + index}", part, config)
                row += batch.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{part.path} cannot be read ({error}); restore it from its source") from None


def _parse_row(batch: Any, index: int, place: str, part: FileRange, config: TextConfig) -> Document | Failure:
    try:
        text = batch.column(config.column)[index].as_py()
        name = batch.column(config.id_column)[index].as_py() if config.id_column is not None else place
        return _document(place, name, text)
    except UnicodeDecodeError as error:
        return Failure(place, Reason.TEXT, f"{part.path}: row {place.rpartition('@')[2]}: not UTF-8 ({error.reason})")
    except EntryError as error:
        return Failure(place, error.reason, f"{part.path}: row {place.rpartition('@')[2]}: {error.detail}")
