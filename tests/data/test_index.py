"""index.json as it is held in memory: what the library would read, in a fraction of the space, once for a node."""

import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import random_records, write_dataset
from other_processes import open_indexes, run_processes
from ports import free_port
from streaming.base.format.mds.reader import MDSReader

from tolktrain.data import index
from tolktrain.data.index import JoinedShards, ShardIndex, read_index
from tolktrain.data.records import columns_of
from tolktrain.data.sharing import _attach, _publish
from tolktrain.errors import UserError

FIELDS = ("dirname", "split", "compression", "samples", "size", "column_names", "column_encodings", "column_sizes")
FIELDS += ("raw_data", "zip_data", "file_pairs")


def entry(number: int, columns: dict[str, str]) -> dict[str, Any]:
    """A packed shard with two hashes, as `prepare` writes them."""
    hashes = {"sha1": f"{number:040x}", "xxh64": f"{number:016x}"}
    return {
        "column_encodings": list(columns.values()),
        "column_names": list(columns),
        "column_sizes": [None] * len(columns),
        "compression": "zstd",
        "format": "mds",
        "hashes": ["sha1", "xxh64"],
        "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": 67_000_000, "hashes": {}},
        "samples": 1000,
        "size_limit": 1 << 26,
        "version": 2,
        "zip_data": {"basename": f"shard.{number:05}.mds.zstd", "bytes": 30_000_000, "hashes": hashes},
    }


def write_index(folder: Path, shards: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def many(folder: Path, count: int) -> Path:
    columns = columns_of(True, True, aligned=True)
    return write_index(folder, [entry(number, columns) for number in range(count)])


@pytest.mark.parametrize("packed", [True, False])
def test_readers_are_the_librarys(tmp_path: Path, packed: bool) -> None:
    folder = write_dataset(tmp_path / "set", random_records(60), packed=packed)
    shards = json.loads((folder / "index.json").read_text())["shards"]
    theirs = [MDSReader.from_json(str(folder), "", shard) for shard in shards]
    ours = read_index(folder)
    assert len(ours) == len(theirs) > 3
    assert ours.num_records == 60
    for shard, expected in zip(ours, theirs, strict=True):
        assert {name: getattr(shard, name) for name in FIELDS} == {name: getattr(expected, name) for name in FIELDS}
        for ask in ("get_raw_size", "get_zip_size", "get_max_size"):
            assert getattr(shard, ask)() == getattr(expected, ask)()
        listing = {str(folder / name) for name in os.listdir(folder)}
        assert shard.set_up_local(listing, True) == expected.set_up_local(listing, True) > 0
    assert [shard.path for shard in ours[1:3]] == [folder / shard.raw_data.basename for shard in theirs[1:3]]
    assert ours[-1].raw_data == theirs[-1].raw_data
    with pytest.raises(IndexError):
        ours[len(ours)]


def test_shards_of_several_sets(tmp_path: Path) -> None:
    indexes = [read_index(many(tmp_path / str(count), count)) for count in (3, 1, 4)]
    joined = JoinedShards(indexes)
    expected = [(shard.dirname, shard.raw_data) for shards in indexes for shard in shards]
    assert [(shard.dirname, shard.raw_data) for shard in joined] == expected
    assert [shard.raw_data for shard in joined[2:5]] == [files for _, files in expected[2:5]]
    assert len(joined) == 8
    assert joined[np.int64(3)].dirname == str(tmp_path / "1")


def test_an_index_is_parsed_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, parse = [], index.parse_json

    def note(*arguments: Any, **options: Any) -> Any:
        parsed.append(1)
        return parse(*arguments, **options)

    monkeypatch.setattr(index, "parse_json", note)
    folder = many(tmp_path, 3)
    assert [len(read_index(path)) for path in (folder, str(folder), folder)] == [3, 3, 3]
    assert len(parsed) == 1
    status = (folder / "index.json").stat()
    changed = (folder / "index.json").read_text().replace('"samples": 1000', '"samples": 2000')
    (folder / "index.json").write_text(changed)
    os.utime(folder / "index.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (folder / "index.json").stat().st_size == status.st_size
    assert read_index(folder).num_records == 6000, "nobody can set back the time of the last change of any kind"
    many(tmp_path, 4)
    assert len(read_index(folder)) == 4
    (folder / "index.json").unlink()
    (folder / "other").touch()
    with pytest.raises(UserError, match=r"index\.json does not exist"):
        read_index(folder)


def test_only_what_stands_under_shards_is_a_shard(tmp_path: Path) -> None:
    """Whole entries are taken out while the file is parsed; numbers, or entries elsewhere, are none."""
    shard = json.dumps(entry(0, columns_of(True, True, aligned=True)))
    for content in (
        '{"version": 2, "shards": [0]}',
        f'{{"version": 2, "other": {shard}, "shards": [0]}}',
        f'{{"version": 2, "other": {shard}, "shards": [{shard}]}}',
        f'{{"version": 2, "shards": [[{shard}]]}}',
        f'{{"version": 2, "shards": {shard}}}',
    ):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(UserError, match="lists a shard that cannot be read"):
            read_index(tmp_path)
    (tmp_path / "index.json").write_text(f'{{"version": 2, "shards": [{shard}], "shards": [{shard}]}}')
    with pytest.raises(UserError, match="the key 'shards' is twice in one object"):
        read_index(tmp_path)


@pytest.mark.parametrize("visible", [True, False])
def test_a_node_parses_an_index_once(tmp_path: Path, stories: Path, visible: bool) -> None:
    """Where processes do not see each other, each parses it for itself."""
    environ, count = ({}, 1) if visible else ({"HIDE": "1"}, 2)
    port = free_port()
    arguments = [(rank, port, stories, environ, tmp_path) for rank in range(4)]
    run_processes(open_indexes, arguments)
    results = [torch.load(tmp_path / f"outcome-{rank}.pt", weights_only=False) for rank in range(4)]
    assert [parsed for parsed, _ in results] == [1, count - 1] * 2
    expected = [(shard.samples, shard.raw_data, shard.zip_data, shard.column_names) for shard in read_index(stories)]
    assert all(files == expected for _, files in results)


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_another_process_under_the_same_number_is_left_alone(tmp_path: Path, stories: Path, kind: str) -> None:
    """In a container of its own a rank sees other processes under the given numbers."""
    own: list[ShardIndex] = []
    published = _publish([str(stories)], own)
    os.close(published.descriptor)
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    ends = [os.open(tmp_path / "other", os.O_RDONLY)] if kind == "file" else list(os.pipe())
    (found,) = _attach(published._replace(descriptor=ends[0]), [str(stories)])
    assert [shard.raw_data for shard in found] == [shard.raw_data for shard in own[0]]
    for end in ends:
        os.close(end)


MANY = 25_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Indexes of 1,000 to 25,000 shards."""
    return {count: many(tmp_path_factory.mktemp("many"), count) for count in (1000, 5000, MANY)}


@pytest.mark.slow
def test_memory_of_an_index(folders: dict[int, Path], growth_exponent: Callable[[Mapping[int, float]], float]) -> None:
    """What stays are less than 250 bytes a shard; meanwhile there is the text of the file, twice at most."""
    kept, peaks = {}, {}
    for count, folder in folders.items():
        index._read.cache_clear()
        tracemalloc.start()
        shards = read_index(folder)
        current, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        kept[count], peaks[count] = current, peak
        del shards
    assert growth_exponent(kept) < 1.05
    assert growth_exponent(peaks) < 1.05
    assert kept[MANY] < 250 * MANY
    assert peaks[MANY] < 2000 * MANY, "of a node: 200 MB for 100,000 shards"


@pytest.mark.slow
def test_calls_of_reading_an_index(
    folders: dict[int, Path], growth_exponent: Callable[[Mapping[int, float]], float]
) -> None:
    counts = {count: _count_calls(folder) for count, folder in folders.items()}
    assert growth_exponent(counts) < 1.02
    assert counts[MANY] < 200 * MANY


def _count_calls(folder: Path) -> int:
    count = 0

    def note(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    index._read.cache_clear()
    sys.setprofile(note)
    try:
        read_index(folder)
    finally:
        sys.setprofile(None)
    return count
