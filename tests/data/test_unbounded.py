"""Data sets of strangers end in a clear error, in bounded time and memory, whatever is in their files."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import random_records, write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streaming.base.compression import compress

from tolktrain.config.data import DatasetConfig
from tolktrain.config.errors import UserError
from tolktrain.data.folder import RecordFolder
from tolktrain.data.index import read_index

DEEP = '{"version": 2, "shards": ' + "[" * 200_000 + "]" * 200_000 + "}"


def read_apart(folder: Path, remote: str | None = None, timeout: float = 240.0) -> str:
    """What a process of its own says about a set; it may neither hang, nor crash, nor take much memory."""
    command = [sys.executable, str(Path(__file__).with_name("unbounded.py")), str(folder)]
    done = subprocess.run(
        [*command, *([remote] if remote else [])], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str = "index.json") -> None:
    """Change what a JSON file of a set says."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def put(folder: Path, content: bytes, kind: str, **more: Any) -> None:
    """Other content for the first shard, which the index calls its own."""
    shard = json.loads((folder / "index.json").read_text())["shards"][0]
    (folder / shard[kind]["basename"]).write_bytes(content)
    digest = {"sha1": hashlib.sha1(content).hexdigest()}

    def change(index: dict[str, Any]) -> None:
        index["shards"][0][kind].update(bytes=len(content), hashes=digest, **more)

    edit(folder, change)


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    """Whether the shards of a set are packed."""
    return bool(request.param)


@pytest.fixture
def folder(tmp_path: Path, packed: bool) -> Path:
    """A set of one shard."""
    return write_dataset(tmp_path / "set", random_records(4), packed=packed)


@pytest.fixture
def shard(folder: Path, packed: bool) -> Path:
    """The file of its shard."""
    return folder / ("shard.00000.mds.zstd" if packed else "shard.00000.mds")


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "missing"])
def test_what_is_no_file(folder: Path, shard: Path, tmp_path: Path, kind: str) -> None:
    shard.unlink()
    if kind == "fifo":
        os.mkfifo(shard)
    elif kind == "zero":
        shard.symlink_to("/dev/zero")
    elif kind == "folder":
        shard.mkdir()
    for arguments in ((folder,), (tmp_path / "cache", str(folder))):
        said = read_apart(*arguments)
        assert said.startswith("refused:") and "shard.00000.mds" in said, said


@pytest.mark.parametrize("name", ["index.json", "dataset.json"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "deep"])
def test_descriptions_without_end(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4))
    (folder / name).unlink()
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "zero":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).write_text(DEEP)
    for arguments in ((folder,), (tmp_path / "cache", str(folder))):
        said = read_apart(*arguments)
        assert said.startswith("refused:") and name in said, said


def test_a_shard_that_unpacks_to_half_a_gigabyte(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4))
    put(folder, compress("zstd", bytes(1 << 29)), "zip_data")
    for arguments in ((folder,), (tmp_path / "cache", str(folder))):
        said = read_apart(*arguments)
        assert said.startswith("refused:") and "shard.00000.mds.zstd" in said and "more than" in said, said


class _Endless(http.server.BaseHTTPRequestHandler):
    """A bucket whose objects never end; HEAD says what the object should have, or a size beyond measure."""

    protocol_version = "HTTP/1.1"
    size = 1000
    sent = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self.size))
        self.send_header("ETag", '"e"')
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("ETag", '"e"')
        self.end_headers()
        chunk = bytes(1 << 16)
        try:
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                type(self).sent += len(chunk)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Endless]]:
    """A storage without end behind s3://bucket."""
    handler = type("Handler", (_Endless,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (
        ("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("size", [1000, 1 << 50])
def test_a_shard_that_does_not_end_on_the_way(tmp_path: Path, endless: type[_Endless], size: int) -> None:
    endless.size = size
    cache = write_dataset(tmp_path / "cache", random_records(4))
    (cache / "shard.00000.mds.zstd").unlink()
    said = read_apart(cache, "s3://bucket/set")
    assert "s3://bucket/set/shard.00000.mds.zstd cannot be fetched" in said and "bytes that are expected" in said, said
    assert endless.sent < 1 << 26
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_description_that_does_not_end_on_the_way(tmp_path: Path, endless: type[_Endless]) -> None:
    cache = write_dataset(tmp_path / "cache", random_records(4))
    (cache / "dataset.json").unlink()
    said = read_apart(cache, "s3://bucket/set")
    assert "s3://bucket/set/dataset.json cannot be fetched" in said and "bytes that are expected" in said, said
    assert endless.sent < 1 << 27


def test_offsets_that_lead_anywhere(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4), packed=False)
    good = (folder / "shard.00000.mds").read_bytes()
    for place, value in ((2, 1 << 31), (2, 0), (3, 0), (1, 0), (5, 1 << 30), (0, 3), (0, 1 << 31)):
        put(folder, good[: 4 * place] + value.to_bytes(4, "little") + good[4 * place + 4 :], "raw_data")
        edit(folder, lambda index: index["shards"][0]["raw_data"].update(hashes={}))
        with pytest.raises(UserError, match=r"shard\.00000\.mds is corrupted"):
            RecordFolder(DatasetConfig(path=str(folder)))[:]
        (reader,) = read_index(folder)
        for number in range(reader.samples if place in (2, 3) else 0):
            try:
                reader[number]
            except UserError as error:
                assert "shard.00000.mds is corrupted" in str(error)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_of_a_record_without_hashes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("set") / "a"
    write_dataset(folder, random_records(2, words=12), packed=False)
    content = bytearray((folder / "shard.00000.mds").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    put(folder, bytes(content), "raw_data")
    edit(folder, lambda index: index["shards"][0]["raw_data"].update(hashes={}))
    try:
        RecordFolder(DatasetConfig(path=str(folder)))[:]
    except UserError as error:
        assert "shard.00000.mds is corrupted" in str(error)
    (reader,) = read_index(folder)
    for number in range(reader.samples):
        try:
            reader[number]
        except UserError as error:
            assert "shard.00000.mds is corrupted" in str(error)


def test_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", random_records(2), packed=False)
    content = (folder / "shard.00000.mds").read_bytes()
    assert content.count(b"r0") == 1
    put(folder, content.replace(b"r0", b"\xff\xfe"), "raw_data")
    with pytest.raises(UserError, match=r"shard\.00000\.mds is corrupted .*the column id is not UTF-8"):
        RecordFolder(DatasetConfig(path=str(folder)))[0]


NUMBERS = [-1, -(10**30), 1 << 32, 10**300, 1.0, 1e400, "7", None, True, [], {}, [1]]
ENTRIES: list[tuple[tuple[Any, ...], list[Any]]] = [
    (("samples",), [*NUMBERS, 1 << 31, 10**9]),
    (("raw_data", "bytes"), [*NUMBERS, 0]),
    (("zip_data", "bytes"), NUMBERS),
    (("raw_data", "hashes"), [None, [], {"md6": "0"}, {"sha1": 7}, {"sha1": [[]]}]),
    (("raw_data",), [None, [], 7, {}]),
    (("zip_data",), [None, [], 7, {}]),
    (("compression",), [None, "lzma", 7, [], {}, "zstd:99"]),
    (("format",), ["csv", None, []]),
    (("version",), [1, None, []]),
    (("column_names",), [None, [], "id", ["id"], [[]], [None] * 9]),
    (
        ("column_encodings",),
        [None, [], ["pkl"] * 9, ["str"], [[]] * 9, ["ndarray:object"] * 9, ["ndarray:uint16:9"] * 9],
    ),
    (("column_sizes",), [None, [], [4] * 9, [-1] * 9]),
    (("more",), ["x"]),
]


@pytest.mark.parametrize(("place", "values"), ENTRIES, ids=[".".join(place) for place, _ in ENTRIES])
def test_entries_that_no_shard_can_have(tmp_path: Path, place: tuple[str, ...], values: list[Any]) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4))
    good = (folder / "index.json").read_text()
    for value in values:
        index = json.loads(good)
        target = index["shards"][0]
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        (folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"set/index\.json lists a shard that cannot be read \(number 0: "):
            read_index(folder)


@pytest.mark.parametrize("shards", [None, 7, "x", {}, {"a": 1}, [None], [7], [[]], [{}]])
def test_shards_that_are_none(tmp_path: Path, shards: Any) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4))
    edit(folder, lambda index: index.update(shards=shards))
    with pytest.raises(UserError, match=r"set/index\.json lists a shard that cannot be read"):
        read_index(folder)


def test_more_records_than_anybody_can_order(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4))

    def change(index: dict[str, Any]) -> None:
        shard = index["shards"][0]
        shard["samples"], shard["raw_data"]["bytes"] = 10**8, (1 << 32) - 1
        index["shards"] = [shard] * 50

    edit(folder, change)
    with pytest.raises(UserError, match=r"lists 5,000,000,000 records; at most"):
        read_index(folder)


@pytest.mark.parametrize("name", ["index.json", "dataset.json"])
def test_a_shard_is_nothing_else_of_the_set(tmp_path: Path, name: str) -> None:
    folder = write_dataset(tmp_path / "set", random_records(4))
    for kind in ("raw_data", "zip_data"):
        good = (folder / "index.json").read_text()
        edit(folder, lambda index, kind=kind: index["shards"][0][kind].update(basename=name))
        with pytest.raises(UserError, match=f"lists {name} as a shard"):
            read_index(folder)
        (folder / "index.json").write_text(good)
