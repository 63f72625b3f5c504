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
from tolktrain.data.folder import RecordFolder
from tolktrain.data.index import read_index
from tolktrain.errors import UserError

DEEP = '{"version": 2, "shards": ' + "[" * 200_000 + "]" * 200_000 + "}"


def read_apart(places: dict[str, tuple[Path, str | None]]) -> dict[str, str]:
    """What a process of its own says about sets; it may neither hang, nor crash, nor take much memory."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("unbounded.py"))],
        input=json.dumps({name: (str(folder), remote) for name, (folder, remote) in places.items()}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, str] = json.loads(done.stdout)
    return said


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


SHARD_KINDS = ["fifo", "zero", "folder", "missing"]
DESCRIPTION_KINDS = ["fifo", "zero", "deep"]


def spoil(path: Path, kind: str) -> None:
    """Put something in the place of a file that is none, or has no end."""
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        path.write_text(DEEP)


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    """Each as a local set, and fetched from a folder into a cache."""
    expected: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for packed in (False, True):
        for kind in SHARD_KINDS:
            name = f"{kind} {packed}"
            folders[name] = write_dataset(tmp_path / name, random_records(4), packed=packed)
            spoil(folders[name] / ("shard.00000.mds.zstd" if packed else "shard.00000.mds"), kind)
            expected[name] = "shard.00000.mds"
    for file in ("index.json", "dataset.json"):
        for kind in DESCRIPTION_KINDS:
            name = f"{kind} {file}"
            folders[name] = write_dataset(tmp_path / name, random_records(4))
            spoil(folders[name] / file, kind)
            expected[name] = file
    folders["bomb"] = write_dataset(tmp_path / "bomb", random_records(4))
    put(folders["bomb"], compress("zstd", bytes(1 << 29)), "zip_data")
    expected["bomb"] = "more than"
    folders["good"] = write_dataset(tmp_path / "good", random_records(4))
    places: dict[str, tuple[Path, str | None]] = {name: (folder, None) for name, folder in folders.items()}
    places |= {f"{name}, fetched": (tmp_path / "caches" / name, str(folder)) for name, folder in folders.items()}
    said = read_apart(places)
    for name, problem in expected.items():
        for text in (said[name], said[f"{name}, fetched"]):
            assert text.startswith("refused:") and problem in text, (name, text)
    assert said["good"] == said["good, fetched"] == "read: ['r0000', 'r0001', 'r0002', 'r0003']"


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


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 1 << 50])
def test_what_does_not_end_on_the_way(tmp_path: Path, endless: type[_Endless], size: int) -> None:
    endless.size = size
    caches = {
        name: write_dataset(tmp_path / name, random_records(4)) for name in ("dataset.json", "shard.00000.mds.zstd")
    }
    for name, cache in caches.items():
        (cache / name).unlink()
    said = read_apart({name: (cache, "s3://bucket/set") for name, cache in caches.items()})
    for name, cache in caches.items():
        assert f"s3://bucket/set/{name} cannot be fetched" in said[name], said
        assert "bytes that are expected" in said[name], said
        assert not [path for path in cache.iterdir() if path.is_dir()]
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
    assert content.count(b"r0000") == 1
    put(folder, content.replace(b"r0000", b"\xff\xfe000"), "raw_data")
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
