"""A data set folder on disk: its index, its shards, and its records by number, without shared memory or processes."""

import contextlib
import logging
import os
import re
import shutil
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
from filelock import FileLock

from tolktrain.config.data import DatasetConfig
from tolktrain.data.index import INDEX_FILE, LARGEST_INDEX, RecordReader, ShardIndex, damaged_shard, read_index
from tolktrain.data.records import DATASET_FILE, DatasetInfo, Record
from tolktrain.data.unpacking import unpack
from tolktrain.errors import UserError
from tolktrain.files.address import has_scheme
from tolktrain.files.bounded import DamagedError
from tolktrain.files.reading import DESCRIPTION_BYTES, open_regular, parse_json, read_bytes
from tolktrain.libraries.streaming import FileInfo, Stream, World, get_hash
from tolktrain.storage.base import Source
from tolktrain.storage.errors import StorageError
from tolktrain.storage.folder import TEMPORARY_PREFIX, explained
from tolktrain.storage.open import open_source, open_storage
from tolktrain.storage.retries import RetryPolicy

logger = logging.getLogger(__name__)

_SHARD_NAME = re.compile(r"shard\.[\d-]+\.mds")
_ABANDONED_SECONDS = 3600.0
_QUICK_HASHES = ("xxh3_64", "xxh64", "xxh128", "xxh3_128")


def fetch_descriptions(config: DatasetConfig, policy: RetryPolicy | None = None, *, compare: bool = False) -> None:
    """Fetch `index.json` and `dataset.json` of a remote set into its cache folder, unless they exist there.

    Any number of processes may call this at once.

    Args:
        config: The data set.
        policy: How often and how long to ask the storage.
        compare: Fetch them in any case. If they differ from those in the cache, the data set was rebuilt: they are
            replaced if no shard is cached yet, and refused otherwise.

    Raises:
        UserError: the address cannot be read, has no description, or is not the source of the cache.
    """
    if config.remote is None:
        return
    folder = Path(config.path)
    source = open_source(config.remote, policy)
    with explained(config.path, "written"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (INDEX_FILE, DATASET_FILE):
        path = folder / name
        if path.exists() and not compare:
            continue
        limit = LARGEST_INDEX if name == INDEX_FILE else DESCRIPTION_BYTES
        content = source.fetch(name, _json_object, limit)
        cached = None
        if path.exists():
            with explained(str(path), "read"):
                cached = read_bytes(path, limit)
        if cached == content:
            continue
        if cached is not None and _is_json_object(cached) and _has_shards(folder):
            raise UserError(
                f"{path} differs from {source.path_of(name)}: the data set was rebuilt since the cache folder {folder}"
                f" was filled; remove {folder}, so that it is filled again"
            )
        open_storage(config.path).write(name, content)


def _json_object(content: bytes) -> bytes:
    if not _is_json_object(content):
        raise DamagedError("it is not a JSON object")
    return content


def _is_json_object(content: bytes) -> bool:
    # Parsed without keeping its content: an index of 100,000 shards would take 400 MB.
    found = object()
    try:
        return parse_json(content, object_hook=lambda _: found) is found
    except ValueError:
        return False


def _has_shards(folder: Path) -> bool:
    return any(_SHARD_NAME.match(name) for _, _, names in os.walk(folder) for name in names)


class RecordStream(Stream):
    """One data set of a mixture. Several processes and jobs may fetch and unpack its shards at the same time."""

    def __init__(
        self,
        config: DatasetConfig,
        policy: RetryPolicy | None = None,
        choose: int | None = None,
        index: ShardIndex | None = None,
    ) -> None:
        # The library looks for a scheme in the address, also in a folder's name such as `a:b`; it downloads nothing.
        remote = config.remote if config.remote is None or has_scheme(config.remote) else os.path.abspath(config.remote)
        super().__init__(remote=remote, local=config.path, choose=choose, keep_zip=False)
        self.index = index or read_index(config.path)
        self._source = None if config.remote is None else open_source(config.remote, policy)
        if self._source is not None:
            self._source.import_client()  # once here; otherwise each loader process would need a second for it

    def get_shards(self, world: World, allow_unsafe_types: bool) -> ShardIndex:
        """The shards that the index lists."""
        return self.index

    def set_up_local(self, shards: list[RecordReader], cache_usage_per_shard: np.typing.NDArray[np.int64]) -> None:
        """Find the cached shards. Removes incomplete shards, and temporary files of killed processes."""
        if self.remote is not None:
            for shard in shards:
                _remove_if_broken(shard)
            for entry in os.scandir(self.local):
                if entry.name.startswith(TEMPORARY_PREFIX):
                    _remove_if_abandoned(Path(entry.path))
        super().set_up_local(shards, cache_usage_per_shard)

    def prepare_shard(self, shard: RecordReader) -> int:
        """Fetch and unpack a shard; returns the growth of the cache in bytes.

        Raises `UserError` naming the shard, the address and the cause.
        """
        # The library's method would leave a damaged shard in the cache, where every later attempt would find it.
        if shard.path.exists():
            return 0
        if self._source is None:
            content, growth = unpack_shard(shard), shard.raw_data.bytes
        else:
            content, growth = self._bring(self._source, shard)
        try:
            open_storage(shard.dirname).write(shard.raw_data.basename, content)
        except StorageError as error:
            if self.remote is not None:
                raise
            raise UserError(
                f"{error}; to read packed shards from a folder without write access, set data.sets.*.remote to"
                f" {self.local} and data.sets.*.path to a folder for unpacked shards",
                by_machine=error.by_machine,
            ) from None
        if self.remote is not None and shard.zip_data is not None:
            (Path(shard.dirname) / shard.zip_data.basename).unlink(missing_ok=True)
        return int(growth)

    def _bring(self, source: Source, shard: RecordReader) -> tuple[bytes, int]:
        """Content of a shard of a remote set, and the resulting growth of the cache in bytes."""
        file = shard.zip_data or shard.raw_data
        cached = Path(shard.dirname) / file.basename
        growth = shard.raw_data.bytes
        if shard.zip_data is not None and cached.exists():
            growth -= file.bytes
            with contextlib.suppress(DamagedError, OSError):
                return shard_content(shard, _stored(cached, file)), growth
        return source.fetch(file.basename, partial(shard_content, shard), file.bytes), growth


def _remove_if_broken(shard: RecordReader) -> None:
    for file in (shard.raw_data, shard.zip_data):
        if file is not None:
            path = Path(shard.dirname) / file.basename
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode) or status.st_size != file.bytes:
                    logger.warning("%s is not whole and will be fetched again", path)
                    with explained(str(path), "deleted"):
                        path.unlink()


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        # A running fetch writes more often; newer files may belong to another job.
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def shard_content(shard: RecordReader, data: bytes) -> bytes:
    """Content of a shard from its stored file. Raises `DamagedError` unless it matches the index."""
    file = shard.zip_data or shard.raw_data
    if len(data) != file.bytes:
        raise DamagedError(f"it has {len(data)} bytes, index.json says {file.bytes}")
    algorithm = next((name for name in (*_QUICK_HASHES, *file.hashes) if name in file.hashes), None)
    if algorithm is not None and get_hash(algorithm, data) != file.hashes[algorithm]:
        raise DamagedError(f"its {algorithm} differs from the one in index.json")
    content = data
    if shard.compression is not None:
        try:
            content = unpack(shard.compression, data, shard.raw_data.bytes)
        except Exception as error:  # each compression library raises its own type
            raise DamagedError(f"it cannot be unpacked: {error}") from error
    problem = shard.problem_of(content)
    if problem is not None:
        raise DamagedError(problem)
    return content


def unpack_shard(shard: RecordReader) -> bytes:
    """Content of a shard on disk, unpacked in memory. Raises `UserError` if it is missing or damaged."""
    file = shard.zip_data or shard.raw_data
    path = Path(shard.dirname) / file.basename
    with _refusing(path):
        return shard_content(shard, _stored(path, file))


def _stored(path: Path, expected: FileInfo) -> bytes:
    """Content of a file that must have the size in the index. Raises OSError and DamagedError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            raise DamagedError(f"it has {size} bytes, index.json says {expected.bytes}")
        return file.read(expected.bytes)


def _unpacked(shard: RecordReader) -> bytes:
    """Content of an unpacked shard on disk. Raises `UserError` unless it matches the index."""
    with _refusing(shard.path):
        content = _stored(shard.path, shard.raw_data)
        problem = shard.problem_of(content)
        if problem is not None:
            raise DamagedError(problem)
        return content


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn errors of reading the file of a shard into `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({error}); copy it again or rebuild the data set") from None
    except DamagedError as error:
        raise damaged_shard(path, error) from None


class RecordFolder(Sequence[Record]):
    """Records of one set by number. Shards of a remote set are fetched on first use; local folders are only read."""

    def __init__(
        self,
        config: DatasetConfig,
        cached_shards: int = 4,
        policy: RetryPolicy | None = None,
        index: ShardIndex | None = None,
    ) -> None:
        """`index` is the index of the set if it has been read already."""
        fetch_descriptions(config, policy)
        self.info = DatasetInfo.read(config.path)
        self._shards = index or read_index(config.path)
        self._ends = np.cumsum(self._shards.samples, dtype=np.int64)
        self._stream = None if config.remote is None else RecordStream(config, policy, index=self._shards)
        self._cached_shards = cached_shards
        self._contents: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._record(index % len(self))

    def _record(self, index: int) -> Record:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        content = self._content(number)
        local = index - (int(self._ends[number]) - shard.samples)
        return Record.from_sample(shard.sample_in(content, local))

    def _content(self, number: int) -> bytes:
        if number in self._contents:
            self._contents.move_to_end(number)
            return self._contents[number]
        content = self._contents[number] = self._read(self._shards[number])
        if len(self._contents) > self._cached_shards:
            self._contents.popitem(last=False)
        return content

    def _read(self, shard: RecordReader) -> bytes:
        raw = shard.path
        if self._stream is not None:
            with explained(str(raw.parent), "written"):
                raw.parent.mkdir(parents=True, exist_ok=True)  # shards of a merged set may be in subfolders
            with FileLock(f"{raw}.lock"):
                _remove_if_broken(shard)
                self._stream.prepare_shard(shard)
                return _unpacked(shard)
        return _unpacked(shard) if raw.exists() else unpack_shard(shard)


def open_records(config: DatasetConfig, policy: RetryPolicy | None = None) -> RecordFolder:
    """Records of a data set by number, for evaluation."""
    return RecordFolder(config, policy=policy)
