"""A data set folder on disk: its index, its shards, and its records by number, without shared memory or processes."""

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock
from streaming import Stream
from streaming.base.compression import decompress
from streaming.base.format.mds.encodings import NDArray, Str
from streaming.base.format.mds.reader import MDSReader
from streaming.base.storage import CloudDownloader
from streaming.base.world import World

from tolktrain.config.data import DatasetConfig
from tolktrain.config.errors import UserError
from tolktrain.data.records import DATASET_FILE, DatasetInfo, Record

INDEX_FILE = "index.json"
_INDEX_VERSION = 2
_FETCH_TIMEOUT_SECONDS = 60.0


def fetch_descriptions(config: DatasetConfig) -> None:
    """Bring `index.json` and `dataset.json` of a remote set into its cache folder, unless they are there.

    Any number of processes may call this at once. Raises `UserError` when the address cannot be read.
    """
    if config.remote is None:
        return
    folder = Path(config.path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (INDEX_FILE, DATASET_FILE):
        if (folder / name).exists():
            continue
        address = f"{config.remote.rstrip('/')}/{name}"
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            fetched = os.path.join(temporary, name)
            try:
                CloudDownloader.direct_download(address, fetched, _FETCH_TIMEOUT_SECONDS)
            except Exception as error:  # each storage raises its own kind
                raise UserError(
                    f"{address} cannot be fetched ({error}); check data.sets.*.remote and the credentials"
                ) from error
            os.replace(fetched, folder / name)


def read_index(folder: str | Path) -> list["RecordReader"]:
    """The shard readers that `index.json` lists, in order.

    Raises `UserError` when the folder or the index is missing, unreadable, empty or not MDS.
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
        content = json.loads(path.read_text(encoding="utf-8"))
        version, shards = content["version"], content["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable MDS index ({error!r}); rebuild the data set") from None
    if version != _INDEX_VERSION:
        raise UserError(f"{path} has the MDS version {version!r}, expected {_INDEX_VERSION}; rebuild the data set")
    try:
        readers = [RecordReader.from_json(str(folder), "", shard) for shard in shards]
        for reader in readers:
            reader.validate(allow_unsafe_types=False)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} lists a shard that cannot be read ({error!r}); rebuild the data set") from None
    if not sum(reader.samples for reader in readers):
        raise UserError(f"the data set {folder} is empty: {INDEX_FILE} lists no records; rebuild it")
    return readers


class RecordReader(MDSReader):
    """A shard of records. Its decoders are made once; the library's are made anew for each column of each record."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._decoders = [_decoder(encoding) for encoding in self.column_encodings]

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """Columns by name. All columns of a record vary in size, so the sizes stand before the data."""
        sizes = np.frombuffer(data, "<u4", len(self._decoders))
        ends = (np.cumsum(sizes) + sizes.nbytes).tolist()
        begins = [sizes.nbytes, *ends[:-1]]
        return {
            name: decoder.decode(data[begin:end])
            for name, decoder, begin, end in zip(self.column_names, self._decoders, begins, ends, strict=True)
        }


def _decoder(encoding: str) -> Any:
    if encoding == "str":
        return Str()
    kind, _, dtype = encoding.partition(":")
    if kind != "ndarray" or dtype not in ("uint16", "uint32"):
        raise ValueError(f"the column encoding {encoding!r} is not one of records")
    return NDArray(dtype)


class RecordStream(Stream):
    """One data set in a mixture, whose shards several processes and jobs may unpack at the same time."""

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[RecordReader]:
        """The shards that the index lists."""
        return read_index(self.local)

    def prepare_shard(self, shard: RecordReader) -> int:
        """Fetch and unpack a shard; returns the growth of the cache in bytes."""
        raw, packed = shard.file_pairs[0]
        target = Path(self.local) / raw.basename
        if self.remote is not None or packed is None or target.exists():
            return int(super().prepare_shard(shard))
        data = unpack_shard(shard)
        # The library writes one fixed temporary name, which two jobs on one folder would take from each other.
        try:
            with tempfile.NamedTemporaryFile(dir=self.local, prefix=f".{raw.basename}-", delete=False) as temporary:
                temporary.write(data)
            os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, target)
        except OSError as error:
            raise UserError(
                f"{target} cannot be written ({error}); to read packed shards from a folder without write access, set"
                f" data.sets.*.remote to {self.local} and data.sets.*.path to a folder for unpacked shards"
            ) from None
        return int(raw.bytes)


def unpack_shard(shard: RecordReader) -> bytes:
    """Content of a packed shard on disk, unpacked in memory. Raises `UserError` when it is missing or broken."""
    packed = shard.zip_data
    path = Path(shard.dirname) / packed.basename
    try:
        data = decompress(shard.compression, path.read_bytes())
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({error}); copy it again or rebuild the data set") from None
    except Exception as error:  # each compression raises its own kind
        raise UserError(f"the shard {path} is corrupted ({error}); copy it again or rebuild the data set") from None
    if len(data) != shard.raw_data.bytes:
        raise UserError(
            f"the shard {path} unpacks to {len(data)} bytes, expected {shard.raw_data.bytes}; copy it again"
        )
    return bytes(data)


class RecordFolder(Sequence[Record]):
    """Records of one set by number. Shards of a remote set are fetched when first used; local folders are only read."""

    def __init__(self, config: DatasetConfig, cached_shards: int = 4) -> None:
        fetch_descriptions(config)
        self.info = DatasetInfo.read(config.path)
        self._shards = read_index(config.path)
        self._ends = np.cumsum([shard.samples for shard in self._shards])
        self._stream = None
        if config.remote is not None:
            hashes = self._shards[0].hashes
            self._stream = RecordStream(
                remote=config.remote,
                local=config.path,
                download_retry=2,
                download_timeout=_FETCH_TIMEOUT_SECONDS,
                validate_hash=hashes[0] if hashes else None,
                keep_zip=False,
            )
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
        begin, end = np.frombuffer(content, "<u4", count=2, offset=4 * (1 + local))
        return Record.from_sample(shard.decode_sample(content[begin:end]))

    def _content(self, number: int) -> bytes:
        if number in self._contents:
            self._contents.move_to_end(number)
            return self._contents[number]
        content = self._contents[number] = self._read(self._shards[number])
        if len(self._contents) > self._cached_shards:
            self._contents.popitem(last=False)
        return content

    def _read(self, shard: RecordReader) -> bytes:
        raw = Path(shard.dirname) / shard.raw_data.basename
        if self._stream is not None and not raw.exists():
            with FileLock(f"{raw}.lock"):
                self._stream.prepare_shard(shard)
        if raw.exists() or shard.zip_data is None:
            return raw.read_bytes()
        return unpack_shard(shard)


def open_records(config: DatasetConfig) -> RecordFolder:
    """Records of a data set by number, for evaluation and validation."""
    return RecordFolder(config)
