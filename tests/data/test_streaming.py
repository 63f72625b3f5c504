"""Training data streamed from a bucket: what a storage, a disk and a killed process may do to it."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import packed_copy, random_records, write_dataset
from fault_proxy import FaultProxy, Kind
from other_processes import run_until_killed, server
from ports import free_port
from s3_server import S3Server
from small_disk import MakeDisk
from stages import NUM_CANONICAL_NODES, global_batches, stage_loader

from tolktrain.config import Config
from tolktrain.config.data import DatasetConfig
from tolktrain.data.checks import check_data
from tolktrain.data.folder import open_records
from tolktrain.data.index import read_index
from tolktrain.errors import UserError
from tolktrain.storage.base import Storage
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy

MakeConfig = Callable[..., Config]

NUM_SHARDS = 11
USED = "data.sets.a, used by train.stages[0].mixture.text: "


@pytest.fixture(scope="module")
def expected(stories: Path, make_config: MakeConfig) -> list[list[Any]]:
    """Sixteen steps, two epochs, from the local folder."""
    assert len(read_index(stories)) == NUM_SHARDS
    return global_batches(make_config({"a": stories}, num_canonical_nodes=NUM_CANONICAL_NODES), 16)


@pytest.fixture
def make_streaming(tmp_path: Path, stored_stories: str, bucket: str, make_config: MakeConfig) -> Callable[..., Config]:
    """Makes a configuration that streams the stories, or another address, into an empty cache."""

    def make(remote: str = stored_stories, cache: Path = tmp_path / "cache", **options: Any) -> Config:
        options = {"num_canonical_nodes": NUM_CANONICAL_NODES, "download_timeout_seconds": 1.0} | options
        return make_config({"a": {"path": str(cache), "remote": remote}}, **options)

    return make


@pytest.fixture
def own_stories(stored_stories: str, bucket: str, s3_server: S3Server) -> Storage:
    """A copy of the stories in a bucket of its own, to be changed."""
    source, _, folder = stored_stories.removeprefix("s3://").partition("/")
    client = s3_server.client()
    for entry in client.list_objects_v2(Bucket=source, Prefix=folder)["Contents"]:
        name = f"stories/{entry['Key'].rpartition('/')[2]}"
        client.copy_object(Bucket=bucket.removeprefix("s3://"), Key=name, CopySource=f"{source}/{entry['Key']}")
    return open_storage(f"{bucket}/stories")


def refusal(config: Config, steps: int = 8) -> str:
    """The message with which a run ends in the check or in its first steps."""
    return str(refused(config, steps))


def refused(config: Config, steps: int = 8) -> UserError:
    """The same as the error that it is."""
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_data(config, 100)
        with stage_loader(config) as loader:
            for _ in range(steps):
                next(loader)
    assert time.monotonic() - begin < 30
    return caught.value


def test_a_merged_set_has_its_shards_in_folders_of_their_own(
    make_streaming: MakeConfig, stories: Path, expected: list[Any], tmp_path: Path
) -> None:
    remote = tmp_path / "merged"
    packed_copy(stories, remote)
    index = json.loads((remote / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        part = remote / f"part-{number % 2}"
        part.mkdir(exist_ok=True)
        for kind in ("raw_data", "zip_data"):
            name = shard[kind]["basename"]
            shard[kind]["basename"] = f"{part.name}/{name}"
        (remote / name).rename(part / name)
    (remote / "index.json").write_text(json.dumps(index))
    assert global_batches(make_streaming(str(remote)), 16) == expected
    records = open_records(DatasetConfig(path=str(tmp_path / "other"), remote=str(remote)))
    there = open_records(DatasetConfig(path=str(stories)))
    assert [record.id for record in records] == [record.id for record in there]
    assert global_batches(make_streaming(str(remote), tmp_path / "other"), 16) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_passing_faults_are_survived(
    make_streaming: MakeConfig, fault_proxy: FaultProxy, expected: list[Any], workers: int
) -> None:
    kinds: list[Kind] = ["500", "503", "reset", "stall", "stall in body", "truncate", "corrupt"]
    for number, kind in enumerate(kinds):
        fault_proxy.add(kind, f"*/shard.{number:05}.mds.zstd", seconds=1.5)
    for name in ("index.json", "dataset.json"):
        fault_proxy.add("truncate", f"*/{name}")
    config = make_streaming(num_workers=workers)
    check_data(config, 100)
    assert global_batches(config, 16) == expected
    for number, kind in enumerate(kinds):
        assert fault_proxy.requested(f"GET */shard.{number:05}.mds.zstd") == 2, kind


@pytest.mark.parametrize(
    ("kind", "workers", "cause"),
    [
        ("503", 2, "SlowDown"),
        ("stall", 2, "timeout"),
        ("truncate", 0, "IncompleteRead"),
        ("403", 0, "access is refused .*AccessDenied"),
    ],
)
def test_lasting_faults_name_the_shard(
    make_streaming: MakeConfig,
    stored_stories: str,
    fault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    workers: int,
    cause: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fault_proxy.add(kind, "*/shard.00004.mds.zstd", count=-1, seconds=1.0)
    message = refusal(make_streaming(num_workers=workers, download_retries=1, download_timeout_seconds=0.4))
    address = f"{stored_stories}/shard.00004.mds.zstd"
    assert message.startswith(f"records cannot be read: {address} cannot be fetched: "), message
    assert re.search(cause, message), message


def test_a_shard_that_is_stored_damaged(make_streaming: MakeConfig, own_stories: Storage) -> None:
    content = own_stories.read("shard.00002.mds.zstd") or b""
    own_stories.write("shard.00002.mds.zstd", content[:-1] + bytes([content[-1] ^ 1]))
    config = make_streaming(own_stories.address, num_workers=2, download_retries=1)
    assert refusal(config) == (
        f"records cannot be read: {own_stories.address}/shard.00002.mds.zstd cannot be fetched: it arrived damaged"
        " 2 times (its xxh64 differs from the one in index.json); upload it again, or remove the cache folder if the"
        " data set was rebuilt"
    )
    assert not list(Path(config.data.sets["a"].path).glob("shard.00002*")), "nothing damaged stays in the cache"
    own_stories.delete("shard.00002.mds.zstd")
    assert "shard.00002.mds.zstd cannot be fetched: it does not exist (404 Not Found)" in refusal(config)


def test_records_by_number(stories: Path, stored_stories: str, tmp_path: Path, fault_proxy: FaultProxy) -> None:
    for number, kind in enumerate(("500", "truncate", "corrupt")):
        fault_proxy.add(kind, f"*/shard.{number:05}.mds.zstd")
    streamed = open_records(DatasetConfig(path=str(tmp_path / "cache"), remote=stored_stories), RetryPolicy(1, 1.0))
    local = open_records(DatasetConfig(path=str(stories)))
    assert [record.to_sample().keys() for record in streamed] == [record.to_sample().keys() for record in local]
    assert all(a.id == b.id and a.units.tobytes() == b.units.tobytes() for a, b in zip(streamed, local, strict=True))
    shard = next((tmp_path / "cache").glob("shard.00003.mds"))
    shard.write_bytes(shard.read_bytes()[:-5])
    again = open_records(DatasetConfig(path=str(tmp_path / "cache"), remote=stored_stories), RetryPolicy(1, 1.0))
    assert [record.id for record in again] == [record.id for record in local]


def test_credentials_bucket_and_endpoint(
    make_streaming: MakeConfig, stored_stories: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = f"{USED}{stored_stories}/index.json cannot be fetched: "
    with s3_server.checked_credentials():
        assert refusal(make_streaming()).startswith(
            index + "access is refused (403 Forbidden); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    absent = (
        "s3://nobody-made-this/set/index.json cannot be fetched: it does not exist (404 Not Found); check the bucket"
    )
    assert refusal(make_streaming("s3://nobody-made-this/set")).startswith(USED + absent)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    message = refusal(make_streaming(download_retries=1))
    assert message.startswith(index + "the storage failed 2 times") and "; check S3_ENDPOINT_URL" in message
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refusal(make_streaming()).startswith(index + "there are no usable credentials")


def test_broken_descriptions(make_streaming: MakeConfig, own_stories: Storage, expected: list[Any]) -> None:
    config = make_streaming(own_stories.address, download_retries=0)
    cache = Path(config.data.sets["a"].path)
    index = own_stories.read("index.json") or b""
    own_stories.write("index.json", index[:100])
    assert refusal(config) == (
        f"{USED}{own_stories.address}/index.json cannot be fetched: it arrived damaged 1 times (it is not a JSON"
        " object); upload it again, or remove the cache folder if the data set was rebuilt"
    )
    own_stories.write("index.json", b'{"version": 2}')
    unreadable = f"{cache}/index.json is not a readable MDS index (KeyError('shards')); rebuild the data set"
    assert refusal(config) == USED + unreadable
    own_stories.write("index.json", index)
    check_data(config, 100)
    assert global_batches(config, 2) == expected[:2]
    (cache / "index.json").write_bytes(index[:100])
    check_data(config, 100)
    assert global_batches(config, 2) == expected[:2]


def test_a_rebuilt_set_is_noticed(make_streaming: MakeConfig, own_stories: Storage, tmp_path: Path) -> None:
    config = make_streaming(own_stories.address)
    check_data(config, 100)
    rebuilt = write_dataset(tmp_path / "rebuilt", random_records(90, seed=1))
    for path in rebuilt.iterdir():
        own_stories.upload(path, path.name)
    check_data(config, 100)
    with stage_loader(config) as loader:
        assert loader.steps_per_epoch == 7, "no shard was cached, so the new set is taken"
        next(loader)
    for path in write_dataset(tmp_path / "again", random_records(90, seed=2)).iterdir():
        own_stories.upload(path, path.name)
    cache = config.data.sets["a"].path
    assert refusal(config) == (
        f"{USED}{cache}/index.json differs from {own_stories.address}/index.json: the data set was rebuilt since the"
        f" cache folder {cache} was filled; remove {cache}, so that it is filled again"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_under_the_cache(make_streaming: MakeConfig, make_disk: MakeDisk, workers: int) -> None:
    error = refused(make_streaming(cache=make_disk(48).path / "cache", num_workers=workers))
    assert error.by_machine
    message = str(error)
    assert re.match(
        r"records cannot be read: \S*shard\.0000\d\.mds\S* cannot be (fetched|written): the disk refuses"
        r" \(\[Errno 28\] No space left on device.*\); free space \(or set data.cache_limit\)",
        message,
    ), message


def test_a_full_disk_under_a_local_set(stories: Path, make_config: MakeConfig, make_disk: MakeDisk) -> None:
    disk = make_disk(1024)
    folder = packed_copy(stories, disk.path / "stories")
    disk.fill(8)
    error = refused(make_config({"a": folder}))
    assert error.by_machine
    assert "No space left on device" in str(error) and "set data.sets.*.remote" in str(error)


@pytest.mark.slow
def test_cache_limit(make_streaming: MakeConfig, expected: list[Any], fault_proxy: FaultProxy) -> None:
    config = make_streaming(cache_limit="100kb", num_workers=2)
    cache = Path(config.data.sets["a"].path)
    check_data(config, 100)
    largest, stop, sizes = max(shard.get_max_size() for shard in read_index(cache)), threading.Event(), []

    def watch() -> None:
        while not stop.wait(0.005):
            sizes.append(sum(path.stat().st_size for path in cache.glob("shard.*") if path.exists()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert global_batches(config, 16) == expected
    finally:
        stop.set()
        watcher.join()
    assert fault_proxy.requested("GET */shard*") > NUM_SHARDS, "shards were evicted and fetched again"
    # Two loader processes, each with two threads that may be fetching a shard.
    assert 2 * largest < max(sizes) <= 100 * 1024 + 4 * largest


@pytest.mark.parametrize(("limit", "complaint"), [("40kb", "is too small: with its packed"), ("much", "is no size")])
def test_a_cache_limit_that_cannot_work(make_streaming: MakeConfig, limit: str, complaint: str) -> None:
    message = refusal(make_streaming(cache_limit=limit))
    assert message.startswith("data.cache_limit ") and complaint in message
    if "at least" in message:
        assert "set it to at least 1mb" in message


def test_what_a_killed_run_left_in_the_cache(
    make_streaming: MakeConfig, fault_proxy: FaultProxy, expected: list[Any]
) -> None:
    config = make_streaming()
    cache = Path(config.data.sets["a"].path)
    assert global_batches(config, 16) == expected
    fault_proxy.clear()
    for name, keep in (("shard.00001.mds", 100), ("shard.00004.mds", 0)):
        (cache / name).write_bytes((cache / name).read_bytes()[:keep])
    (cache / "shard.00005.mds").rename(cache / "shard.00005.mds.tmp")
    (cache / "shard.00005.mds.zstd").write_bytes(b"half")
    for name, age in ((".tolktrain-old", 7200), (".tolktrain-young", 60)):
        (cache / name).mkdir()
        (cache / name / "content").write_bytes(b"part")
        os.utime(cache / name, (time.time() - age,) * 2)
    assert global_batches(config, 16) == expected
    fetched = [request.rpartition("/")[2] for request in fault_proxy.requests if request.startswith("GET")]
    assert sorted(fetched) == [f"shard.0000{number}.mds.zstd" for number in (1, 4, 5)]
    assert not (cache / ".tolktrain-old").exists() and (cache / ".tolktrain-young").exists()


@pytest.mark.slow
def test_killed_and_started_again_five_times(
    make_streaming: MakeConfig, fault_proxy: FaultProxy, expected: list[Any]
) -> None:
    """Two ranks with two loader processes each, killed while they fetch, evict and wait."""
    config = make_streaming(cache_limit="100kb", num_workers=2, download_timeout_seconds=20.0)
    step = 0
    for attempt in range(6):
        fault_proxy.clear()
        fault_proxy.add("stall in body", "*/shard*", count=3, seconds=0.5)
        port, processes, ends = free_port(), [], []
        for rank in range(2):
            receiver, sender = server().Pipe(duplex=False)
            process = server().Process(
                target=run_until_killed, args=(rank, port, config, step, fault_proxy.environ, sender)
            )
            process.start()
            sender.close()
            processes.append(process)
            ends.append(receiver)
        try:
            for done in range(3 if attempt < 5 else 1):
                parts = []
                for receiver in ends:
                    assert receiver.poll(60), "no batch came"
                    parts += receiver.recv()
                assert sorted(parts) == expected[step]
                step += 1
                if done == attempt % 3:
                    break
        finally:
            for process in processes:
                assert process.pid is not None
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
    assert step == 1 + 2 + 3 + 1 + 2 + 1
