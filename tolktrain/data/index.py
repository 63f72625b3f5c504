"""index.json of a data set, and the shards that it lists.

Somebody else may have written it: names lead nowhere but into the folder, and no number is taken for granted.
"""

import os
import stat
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.compression import is_compression
from streaming.base.format.base.reader import FileInfo
from streaming.base.format.mds.encodings import NDArray, Str
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hashes

from tolktrain.config.errors import UserError
from tolktrain.data.records import DATASET_FILE
from tolktrain.files.names import NameRefusedError, all_inside, check_name
from tolktrain.files.printable import printable
from tolktrain.files.reading import read_json

INDEX_FILE = "index.json"
LARGEST_INDEX = 1 << 28
"""Bytes. 100,000 shards take 64 MB; what JSON unpacks to in memory can be 25 times as much."""

_INDEX_VERSION = 2
_LARGEST_SHARD = (1 << 32) - 1  # the format counts bytes in 32 bits
_MOST_RECORDS = 1 << 32  # of a set: the order of an epoch needs 8 bytes for each
_HEADER_BYTES = 4  # the number of records; their offsets follow
_KEYS = frozenset(
    ("column_encodings", "column_names", "column_sizes", "compression", "format", "hashes", "raw_data", "samples")
) | {"size_limit", "version", "zip_data"}
_FILE_KEYS = frozenset(("basename", "bytes", "hashes"))
_HASHES = frozenset(get_hashes())


class RecordReader(MDSReader):
    """A shard of records. Its decoders are made once; the library's are made anew for each column of each record."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._decoders = _decoders(tuple(self.column_encodings))

    @property
    def path(self) -> Path:
        """The shard as it is read."""
        return Path(self.dirname) / self.raw_data.basename

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """Columns by name. All columns of a record vary in size, so the sizes stand before the data.

        Raises `UserError` naming the shard when the bytes are not those of a record.
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
            FileNotFoundError: the shard is not there.
            UserError: it is not the file that the index lists, or its offsets lead out of it.
        """
        # O_NONBLOCK: opening a FIFO without a writer would wait for one.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self.raw_data.bytes:
                raise self.damaged(f"it is no file of {self.raw_data.bytes} bytes, as {INDEX_FILE} says")
            table = np.frombuffer(os.pread(descriptor, 8, _HEADER_BYTES + 4 * idx), "<u4")
            begin, end = table.tolist()
            if not self._first_byte <= begin < end <= self.raw_data.bytes:
                raise self.damaged(f"record {idx} would go from byte {begin} to byte {end}")
            return os.pread(descriptor, end - begin, begin)
        finally:
            os.close(descriptor)

    def sample_in(self, content: bytes, idx: int) -> dict[str, Any]:
        """A record of the shard whose content was read and passed `check_content`."""
        begin, end = np.frombuffer(content, "<u4", 2, _HEADER_BYTES + 4 * idx).tolist()
        return self.decode_sample(content[begin:end])

    def check_content(self, content: bytes) -> None:
        """Raise `UserError` unless the content has the size that the index says, and records in it one by one."""
        if len(content) != self.raw_data.bytes:
            raise self.damaged(f"it has {len(content)} bytes, {INDEX_FILE} says {self.raw_data.bytes}")
        count = int.from_bytes(content[:_HEADER_BYTES], "little")
        if count != self.samples:
            raise self.damaged(f"it says that it has {count} records, {INDEX_FILE} says {self.samples}")
        offsets = np.frombuffer(content, "<u4", self.samples + 1, _HEADER_BYTES)
        if offsets[0] < self._first_byte or offsets[-1] > len(content) or bool((offsets[1:] <= offsets[:-1]).any()):
            raise self.damaged("the places of its records lead out of it or cross")

    def damaged(self, problem: str) -> UserError:
        """The error that names the shard."""
        return UserError(f"the shard {self.path} is corrupted ({problem}); copy it again or rebuild the data set")

    @property
    def _first_byte(self) -> int:
        return _HEADER_BYTES + 4 * (self.samples + 1)


def read_index(folder: str | Path) -> list[RecordReader]:
    """The shard readers that `index.json` lists, in order.

    Raises `UserError` when the folder or the index is missing, unreadable, empty or not MDS, when it names files
    outside of the folder, or has numbers that no shard can have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the data set folder {folder} does not exist; check data.sets.*.path")
    path = folder / INDEX_FILE
    if not any(folder.iterdir()):
        raise UserError(f"the data set folder {folder} is empty; copy the data set again or check data.sets.*.path")
    if not path.exists():
        raise UserError(f"{path} does not exist; a data set folder needs it beside its shards")
    try:
        content = read_json(path, LARGEST_INDEX)
        version, shards = content["version"], content["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable MDS index ({error!r}); rebuild the data set") from None
    if version != _INDEX_VERSION:
        raise UserError(f"{path} has the MDS version {version!r:.80}, expected {_INDEX_VERSION}; rebuild the data set")
    readers = _readers(folder, shards, path)
    _check_names(folder, readers, path)
    num_records = sum(reader.samples for reader in readers)
    if not num_records:
        raise UserError(f"the data set {folder} is empty: {INDEX_FILE} lists no records; rebuild it")
    if num_records > _MOST_RECORDS:
        raise UserError(f"{path} lists {num_records:,} records; at most {_MOST_RECORDS:,} can be read")
    return readers


def _check_names(folder: Path, readers: list[RecordReader], path: Path) -> None:
    files = chain((shard.raw_data for shard in readers), (shard.zip_data for shard in readers))
    names = [file.basename for file in files if file is not None]
    all_inside(folder, names, path)
    # Shards come and go in a cache: one that is at the same time something else would take it along.
    different = {INDEX_FILE, DATASET_FILE}.union(name.rpartition("/")[0] for name in names)
    clash = next((name for name in names if name in different), None)
    if clash is not None:
        raise UserError(f"{path} lists {printable(clash)} as a shard, which it cannot be; rebuild the data set")


def check_entries(shards: object, source: str) -> None:
    """Raise `UserError` unless `shards` can stand under that key in an index.json; `source` is where it was read."""
    for reader in _readers(Path(), shards, source):
        for file in (reader.raw_data, reader.zip_data):
            if file is not None:
                check_name(file.basename, source)


def _readers(folder: Path, shards: object, source: str | Path) -> list[RecordReader]:
    readers: list[RecordReader] = []
    try:
        if not isinstance(shards, list):
            raise ValueError(f"shards is a {type(shards).__name__}, expected a list")
        place = str(folder)
        for shard in shards:
            readers.append(_reader(place, shard))
    except NameRefusedError:
        raise
    except (ValueError, TypeError) as error:
        problem = printable(error)[:400]
        raise UserError(
            f"{source} lists a shard that cannot be read (number {len(readers)}: {problem}); rebuild the data set"
        ) from None
    return readers


def _reader(folder: str, shard: object) -> RecordReader:
    if not isinstance(shard, dict) or shard.keys() != _KEYS:
        raise ValueError(f"expected an object with the keys {', '.join(sorted(_KEYS))}")
    if shard["format"] != "mds" or shard["version"] != _INDEX_VERSION:
        raise ValueError(f"expected the format mds of version {_INDEX_VERSION}")
    names, encodings, sizes = shard["column_names"], shard["column_encodings"], shard["column_sizes"]
    if not _are_texts(names) or not _are_texts(encodings) or len(set(names)) != len(encodings) != 0:
        raise ValueError("column_names and column_encodings must be lists of texts of equal length")
    if sizes != [None] * len(names) or len(names) != len(encodings):
        raise ValueError("expected one null in column_sizes for each column: all columns of a record vary in size")
    compression = shard["compression"]
    if compression is not None and not (isinstance(compression, str) and is_compression(compression)):
        raise ValueError(f"the compression {compression!r:.80} is not known")
    if (shard["zip_data"] is None) != (compression is None):
        raise ValueError("zip_data must be given if and only if compression is")
    raw, samples = _file(shard["raw_data"]), _count(shard["samples"], "samples")
    packed = None if compression is None else _file(shard["zip_data"])
    if packed is not None and packed.basename == raw.basename:
        raise ValueError("raw_data and zip_data are the same file")
    # Each record has a place in the table, and the sizes of its columns.
    least = _HEADER_BYTES + 4 + samples * 4 * (1 + len(names))
    if raw.bytes < least:
        raise ValueError(f"{samples} records do not fit in {raw.bytes} bytes")
    return RecordReader(
        dirname=folder,
        split="",
        column_encodings=encodings,
        column_names=names,
        column_sizes=sizes,
        compression=compression,
        hashes=[],
        raw_data=raw,
        samples=samples,
        size_limit=None,
        zip_data=packed,
    )


def _file(entry: object) -> FileInfo:
    if not isinstance(entry, dict) or entry.keys() != _FILE_KEYS:
        raise ValueError(f"expected files to have the keys {', '.join(sorted(_FILE_KEYS))}")
    hashes = entry["hashes"]
    if not isinstance(hashes, dict) or not hashes.keys() <= _HASHES or not _are_texts(list(hashes.values())):
        raise ValueError("hashes must give texts for algorithms that are known")
    return FileInfo(entry["basename"], _count(entry["bytes"], "bytes"), hashes)


def _count(value: object, key: str) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST_SHARD:
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
