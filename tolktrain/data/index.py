"""index.json of a data set, and the shards that it lists.

The file is not trusted: names must stay inside the folder, and all numbers are validated.
"""

import hashlib
import json
import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy import typing as npt
from typing_extensions import Buffer

from tolktrain.data.records import DATASET_FILE
from tolktrain.errors import UserError
from tolktrain.files.names import all_inside, check_name
from tolktrain.files.printable import printable
from tolktrain.files.reading import is_count, parse_json, read_text
from tolktrain.libraries.streaming import FileInfo, MDSReader, NDArray, Str, get_hashes, is_compression

INDEX_FILE = "index.json"
LARGEST_INDEX = 1 << 28
"""Bytes. 100,000 shards take 75 MB; what JSON unpacks to in memory can be 25 times as much."""

_INDEX_VERSION = 2
_LARGEST_SHARD = (1 << 32) - 1  # the format counts bytes in 32 bits
_MOST_RECORDS = 1 << 32  # of a set; the order of an epoch needs 8 bytes for each
_HEADER_BYTES = 4  # the number of records; their offsets follow
_KEYS = frozenset(
    ("column_encodings", "column_names", "column_sizes", "compression", "format", "hashes", "raw_data", "samples")
) | {"size_limit", "version", "zip_data"}
_FILE_KEYS = frozenset(("basename", "bytes", "hashes"))
_HASHES = frozenset(get_hashes())

TABLE_TYPE = np.dtype(
    [("samples", "u4"), ("raw_bytes", "u4"), ("zip_bytes", "u4"), ("kind", "u4"), ("end", "i8")]  # of the texts
)
"""Of the table of a `ShardIndex`."""


class _Kind(NamedTuple):
    """Properties that most shards of a set have in common."""

    column_names: tuple[str, ...]
    column_encodings: tuple[str, ...]
    compression: str | None
    raw_hashes: tuple[str, ...]  # algorithms
    zip_hashes: tuple[str, ...]


class ShardIndex(Sequence["RecordReader"]):
    """The shards of a data set, in order.

    Stored in two blocks of memory, which processes can share: 24 bytes and the texts for each shard. Readers are
    created on access.
    """

    def __init__(self, folder: str, kinds: tuple[_Kind, ...], table: npt.NDArray[np.void], texts: Buffer) -> None:
        """`table` is an array of `TABLE_TYPE`."""
        self.folder = folder
        self.kinds = kinds
        self.table = table
        self.texts = memoryview(texts)
        self.samples: npt.NDArray[np.uint32] = table["samples"]
        self.raw_bytes: npt.NDArray[np.uint32] = table["raw_bytes"]
        self.zip_bytes: npt.NDArray[np.uint32] = table["zip_bytes"]  # 0 for shards that are not packed
        self._kind_of: npt.NDArray[np.uint32] = table["kind"]
        self._ends: npt.NDArray[np.int64] = table["end"]

    @property
    def num_records(self) -> int:
        """Records of all shards."""
        return int(self.samples.sum(dtype=np.int64))

    def kind_of(self, number: int) -> _Kind:
        """Columns, compression and hashes of a shard."""
        return self.kinds[self._kind_of[number]]

    def one_of_each_kind(self) -> list[tuple[int, _Kind]]:
        """The first shard of each kind."""
        kinds, firsts = np.unique(self._kind_of, return_index=True)
        return [(number, self.kinds[kind]) for kind, number in zip(kinds.tolist(), firsts.tolist(), strict=True)]

    def texts_of(self, number: int) -> list[str]:
        """The name of a shard's file and its digests, and the same of its packed file if there is one."""
        begin = int(self._ends[number - 1]) if number else 0
        return bytes(self.texts[begin : int(self._ends[number])]).decode("utf-8", "surrogatepass").split("\0")

    def content_sha256(self) -> str:
        """Identifies the records and their order, whatever the folder, the names of the files and the compression.

        A digest of the numbers of records, the sizes and the hashes of the unpacked shards. For a shard of which the
        index has no such hash, that of the packed file takes its place, or else the name.
        """
        digest = hashlib.sha256()
        for number in range(len(self)):
            kind, (name, *hashes) = self.kind_of(number), self.texts_of(number)
            of_raw, of_zip = hashes[: len(kind.raw_hashes)], hashes[len(kind.raw_hashes) + 1 :]
            identity = sorted(zip(kind.raw_hashes, of_raw, strict=True))
            identity = identity or sorted(zip(kind.zip_hashes, of_zip, strict=True)) or [("name", name)]
            entry = int(self.samples[number]), int(self.raw_bytes[number]), identity
            digest.update(f"{json.dumps(entry)}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, number: int) -> "RecordReader": ...

    @overload
    def __getitem__(self, number: slice) -> list["RecordReader"]: ...

    def __getitem__(self, number: int | slice) -> "RecordReader | list[RecordReader]":
        if isinstance(number, slice):
            return [RecordReader(self, i) for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        return RecordReader(self, int(number) % len(self))


class JoinedShards(Sequence["RecordReader"]):
    """The shards of several sets, one set after the other."""

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self._indexes = indexes
        self._ends = list(accumulate(map(len, indexes)))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, number: int) -> "RecordReader": ...

    @overload
    def __getitem__(self, number: slice) -> list["RecordReader"]: ...

    def __getitem__(self, number: int | slice) -> "RecordReader | list[RecordReader]":
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        part = bisect_right(self._ends, number)
        return self._indexes[part][number - (self._ends[part - 1] if part else 0)]


class RecordReader(MDSReader):
    """A shard of records. Its decoders are created once, in the library for each column of each record.

    Values that the library stores in attributes are looked up in the index.
    """

    split = ""
    size_limit = None

    def __init__(self, index: ShardIndex, number: int) -> None:
        self._index = index
        self._number = number

    @property
    def dirname(self) -> str:
        """Folder of the data set."""
        return self._index.folder

    @property
    def samples(self) -> int:
        """Number of records."""
        return int(self._index.samples[self._number])

    @property
    def compression(self) -> str | None:
        """Compression of the stored file."""
        return self._index.kind_of(self._number).compression

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in their order."""
        return list(self._index.kind_of(self._number).column_names)

    @property
    def column_encodings(self) -> list[str]:
        """Encodings of the columns, in the same order."""
        return list(self._index.kind_of(self._number).column_encodings)

    @property
    def column_sizes(self) -> list[int | None]:
        """All columns of a record vary in size."""
        return [None] * len(self._index.kind_of(self._number).column_names)

    @property
    def raw_data(self) -> FileInfo:
        """The unpacked file of the shard."""
        name, *digests = self._index.texts_of(self._number)
        hashes = dict(zip(self._index.kind_of(self._number).raw_hashes, digests, strict=False))
        return FileInfo(name, self.get_raw_size(), hashes)

    @property
    def zip_data(self) -> FileInfo | None:
        """The packed file, if there is one."""
        kind = self._index.kind_of(self._number)
        if kind.compression is None:
            return None
        name, *digests = self._index.texts_of(self._number)[1 + len(kind.raw_hashes) :]
        hashes = dict(zip(kind.zip_hashes, digests, strict=True))
        return FileInfo(name, int(self._index.zip_bytes[self._number]), hashes)

    @property
    def file_pairs(self) -> list[tuple[FileInfo, FileInfo | None]]:
        """The shard's files, as the library asks for them."""
        return [(self.raw_data, self.zip_data)]

    def get_raw_size(self) -> int:
        """Bytes of the unpacked shard."""
        return int(self._index.raw_bytes[self._number])

    def get_zip_size(self) -> int | None:
        """Bytes of the packed file, None if there is none."""
        return None if self.compression is None else int(self._index.zip_bytes[self._number])

    @property
    def path(self) -> Path:
        """The path of the unpacked shard."""
        return Path(self.dirname) / self._index.texts_of(self._number)[0]

    @property
    def _decoders(self) -> tuple[Any, ...]:
        return _decoders(self._index.kind_of(self._number).column_encodings)

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """Columns by name. All columns of a record vary in size, so the sizes precede the data.

        Raises `UserError` with the name of the shard if the bytes are not a record.
        """
        try:
            sizes = np.frombuffer(data, "<u4", len(self._decoders))
            ends = (np.cumsum(sizes, dtype=np.int64) + sizes.nbytes).tolist()
            if ends[-1] != len(data):
                raise ValueError(f"its columns take {ends[-1]} bytes")
            begins = [sizes.nbytes, *ends[:-1]]
            sample = {}
            for name, decoder, begin, end in zip(self.column_names, self._decoders, begins, ends, strict=True):
                sample[name] = _decoded(name, decoder, data[begin:end])
        except ValueError as error:
            raise self.damaged(f"a record of {len(data)} bytes cannot be read: {error}") from None
        return sample

    def get_sample_data(self, idx: int) -> bytes:
        """The bytes of a record in the shard on disk.

        Raises:
            FileNotFoundError: the shard does not exist.
            UserError: it is not the file in the index, or its offsets are outside of the file.
        """
        # O_NONBLOCK: opening a FIFO without a writer would block.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self.raw_data.bytes:
                raise self.damaged(f"it is not a file of {self.raw_data.bytes} bytes, as {INDEX_FILE} says")
            table = np.frombuffer(os.pread(descriptor, 8, _HEADER_BYTES + 4 * idx), "<u4")
            begin, end = table.tolist()
            if not self._first_byte <= begin < end <= self.raw_data.bytes:
                raise self.damaged(f"record {idx} would go from byte {begin} to byte {end}")
            return os.pread(descriptor, end - begin, begin)
        finally:
            os.close(descriptor)

    def sample_in(self, content: bytes, idx: int) -> dict[str, Any]:
        """A record in the content of the shard, which `problem_of` has validated."""
        begin, end = np.frombuffer(content, "<u4", 2, _HEADER_BYTES + 4 * idx).tolist()
        return self.decode_sample(content[begin:end])

    def problem_of(self, content: bytes) -> str | None:
        """The first difference of the shard's content from the index; None if there is none."""
        if len(content) != self.raw_data.bytes:
            return f"it unpacks to {len(content)} bytes, {INDEX_FILE} says {self.raw_data.bytes}"
        count = int.from_bytes(content[:_HEADER_BYTES], "little")
        if count != self.samples:
            return f"it says that it has {count} records, {INDEX_FILE} says {self.samples}"
        offsets = np.frombuffer(content, "<u4", self.samples + 1, _HEADER_BYTES)
        if offsets[0] < self._first_byte or offsets[-1] > len(content) or bool((offsets[1:] <= offsets[:-1]).any()):
            return "the offsets of its records lead out of the file or overlap"
        return None

    def damaged(self, problem: str) -> UserError:
        """The error that names the shard."""
        return damaged_shard(self.path, problem)

    @property
    def _first_byte(self) -> int:
        return _HEADER_BYTES + 4 * (self.samples + 1)


def damaged_shard(path: Path, problem: object) -> UserError:
    """The error for a damaged file of a shard."""
    return UserError(f"the shard {path} is corrupted ({problem}); copy it again or rebuild the data set")


def read_index(folder: str | Path) -> ShardIndex:
    """The shards that `index.json` lists, in order. An unchanged file is read once per process.

    Raises `UserError` if the folder or the index is missing, unreadable, empty or not MDS, if it names files outside of
    the folder, or if its numbers are invalid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the data set folder {folder} does not exist; correct the path, or copy the data set there")
    path = folder / INDEX_FILE
    if not any(folder.iterdir()):
        raise UserError(f"the data set folder {folder} is empty; copy the data set again, or correct the path")
    identity = identity_of(path)
    if identity is None:
        raise UserError(f"{path} does not exist; a data set folder needs it next to its shards")
    return _read(folder, identity)


def identity_of(path: Path) -> tuple[int, ...] | None:
    """An identity of a file and its version, the same on all nodes that see it; None if the file does not exist.

    Copies differ in ctime, which programs cannot set.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=64)
def _read(folder: Path, identity: tuple[int, ...]) -> ShardIndex:
    path = folder / INDEX_FILE
    shards = _Builder()
    try:
        content = parse_json(read_text(path, LARGEST_INDEX), object_hook=shards.take)
        version, listed = content["version"], content["shards"]
    except _EntryError as error:
        raise _unreadable(path, error) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable MDS index ({error!r}); rebuild the data set") from None
    if version != _INDEX_VERSION:
        raise UserError(f"{path} has the MDS version {version!r:.80}, expected {_INDEX_VERSION}; rebuild the data set")
    try:
        shards.check_taken(listed)
    except _EntryError as error:
        raise _unreadable(path, error) from None
    index = shards.build(str(folder))
    _check_names(folder, index, path)
    if not index.num_records:
        raise UserError(f"the data set {folder} is empty: {INDEX_FILE} lists no records; rebuild it")
    if index.num_records > _MOST_RECORDS:
        raise UserError(f"{path} lists {index.num_records:,} records; at most {_MOST_RECORDS:,} can be read")
    return index


def _check_names(folder: Path, index: ShardIndex, path: Path) -> None:
    names = [name for number in range(len(index)) for name in _names_of(index, number)]
    all_inside(folder, names, path)
    # Shards are removed from a cache: a shard with the name of another file would remove that file.
    different = {INDEX_FILE, DATASET_FILE}.union(name.rpartition("/")[0] for name in names)
    clash = next((name for name in names if name in different), None)
    if clash is not None:
        raise UserError(f"{path} lists {printable(clash)} as a shard, which it cannot be; rebuild the data set")


def _names_of(index: ShardIndex, number: int) -> list[str]:
    kind = index.kind_of(number)
    return index.texts_of(number)[:: 1 + len(kind.raw_hashes)][: 1 if kind.compression is None else 2]


def check_entries(shards: object, source: str) -> None:
    """Raise `UserError` unless `shards` is a valid value of that key in an index.json; `source` is its file."""
    taken = _Builder()
    try:
        taken.check_taken([taken.take(shard) for shard in shards] if isinstance(shards, list) else shards)
    except _EntryError as error:
        raise _unreadable(source, error) from None
    index = taken.build("")
    for number in range(len(index)):
        for name in _names_of(index, number):
            check_name(name, source)


class _EntryError(ValueError):
    """An invalid entry of `shards`, with its number."""

    def __init__(self, number: int, problem: object) -> None:
        super().__init__(f"number {number}: {printable(problem)[:400]}")


def _unreadable(source: str | Path, error: _EntryError) -> UserError:
    return UserError(f"{source} lists a shard that cannot be read ({error}); rebuild the data set")


class _Taken(int):
    """The number of a shard, which replaces its entry in the parsed file."""


class _Builder:
    """Collects the entries of shards during parsing, so that at most one of them exists as Python objects."""

    def __init__(self) -> None:
        self.count = 0
        self._columns = [array(code) for code in "IIIIq"]  # those of TABLE_TYPE
        self._texts = bytearray()
        self._kinds: dict[_Kind, int] = {}

    def take(self, entry: object) -> object:
        """Replace the entry of a shard by its number; return other objects unchanged. Raises `_EntryError`."""
        if not isinstance(entry, dict) or entry.keys() != _KEYS:
            return entry
        try:
            self._add(entry)
        except (ValueError, TypeError) as error:
            raise _EntryError(self.count, error) from None
        self.count += 1
        return _Taken(self.count - 1)

    def check_taken(self, listed: object) -> None:
        """Raise `_EntryError` unless the parsed list consists of all collected shards."""
        if not isinstance(listed, list):
            raise _EntryError(0, f"shards is a {type(listed).__name__}, expected a list")
        for number, entry in enumerate(listed):
            if type(entry) is not _Taken or entry != number:
                raise _EntryError(number, f"expected an object with the keys {', '.join(sorted(_KEYS))}")

    def build(self, folder: str) -> ShardIndex:
        """The index of the collected shards."""
        table = np.empty(self.count, TABLE_TYPE)
        for name, column in zip(TABLE_TYPE.names or (), self._columns, strict=True):
            table[name] = column
        return ShardIndex(folder, tuple(self._kinds), table, bytes(self._texts))

    def _add(self, shard: dict[str, Any]) -> None:
        if shard["format"] != "mds" or shard["version"] != _INDEX_VERSION:
            raise ValueError(f"expected the format mds of version {_INDEX_VERSION}")
        names, encodings = _columns(shard)
        compression = shard["compression"]
        if compression is not None and not (isinstance(compression, str) and is_compression(compression)):
            raise ValueError(f"the compression {compression!r:.80} is not known")
        if (shard["zip_data"] is None) != (compression is None):
            raise ValueError("zip_data must be given if and only if compression is")
        raw, samples = _file(shard["raw_data"]), _count(shard["samples"], "samples")
        packed = None if compression is None else _file(shard["zip_data"])
        if packed is not None and packed.basename == raw.basename:
            raise ValueError("raw_data and zip_data are the same file")
        # Each record has an entry in the table of offsets, and the sizes of its columns.
        least = _HEADER_BYTES + 4 + samples * 4 * (1 + len(names))
        if raw.bytes < least:
            raise ValueError(f"{samples} records do not fit in {raw.bytes} bytes")
        texts = [raw.basename, *raw.hashes.values()]
        texts += [] if packed is None else [packed.basename, *packed.hashes.values()]
        together = "\0".join(texts)
        if together.count("\0") != len(texts) - 1:
            raise ValueError("a name or a hash holds a NUL")
        kind = _Kind(names, encodings, compression, tuple(raw.hashes), () if packed is None else tuple(packed.hashes))
        self._texts += together.encode("utf-8", "surrogatepass")
        number = self._kinds.setdefault(kind, len(self._kinds))
        row = samples, raw.bytes, 0 if packed is None else packed.bytes, number, len(self._texts)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)


def _columns(shard: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names, encodings, sizes = shard["column_names"], shard["column_encodings"], shard["column_sizes"]
    if not _are_texts(names) or not _are_texts(encodings) or len(set(names)) != len(encodings) != 0:
        raise ValueError("column_names and column_encodings must be lists of texts of equal length")
    if sizes != [None] * len(names) or len(names) != len(encodings):
        raise ValueError("expected one null in column_sizes for each column: all columns of a record vary in size")
    _decoders(tuple(encodings))  # raises for unknown encodings
    return tuple(names), tuple(encodings)


def _file(entry: object) -> FileInfo:
    if not isinstance(entry, dict) or entry.keys() != _FILE_KEYS:
        raise ValueError(f"expected files to have the keys {', '.join(sorted(_FILE_KEYS))}")
    hashes = entry["hashes"]
    if not isinstance(hashes, dict) or not hashes.keys() <= _HASHES or not _are_texts(list(hashes.values())):
        raise ValueError("hashes must give texts for algorithms that are known")
    if not isinstance(entry["basename"], str):
        raise ValueError("basename must be a text")
    return FileInfo(entry["basename"], _count(entry["bytes"], "bytes"), hashes)


def _count(value: object, key: str) -> int:
    if not is_count(value, _LARGEST_SHARD + 1):
        raise ValueError(f"{key} is {value!r:.80}; expected a whole number from 0 to {_LARGEST_SHARD}")
    return value


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


@lru_cache(maxsize=64)
def _decoders(encodings: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(map(_decoder, encodings))


def _decoder(encoding: str) -> Any:
    if encoding == "str":
        return Str()
    kind, _, dtype = encoding.partition(":")
    if kind != "ndarray" or dtype not in ("uint16", "uint32"):
        raise ValueError(f"the column encoding {encoding!r} is not one of records")
    return NDArray(dtype)


def _decoded(name: str, decoder: Any, data: bytes) -> Any:
    try:
        value = decoder.decode(data)
    except UnicodeDecodeError:
        raise ValueError(f"the column {name} is not UTF-8 text") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the column {name} holds no array ({error})") from None
    if isinstance(value, np.ndarray) and value.ndim != (2 if name == "units" else 1):
        raise ValueError(f"the column {name} has {value.ndim} dimensions")
    return value
