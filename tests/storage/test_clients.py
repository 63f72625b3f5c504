"""The same files through the clients of Amazon, Google and Azure, and through the downloaders of mosaicml-streaming."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials
from other_servers import PAGE, running_azure_server, running_google_server
from s3_server import S3Server

from tolktrain.errors import UserError
from tolktrain.storage import azure
from tolktrain.storage.base import Storage
from tolktrain.storage.errors import StorageError
from tolktrain.storage.open import open_source, open_storage
from tolktrain.storage.retries import RetryPolicy

BRIEF = RetryPolicy(retries=0, timeout_seconds=5.0)
# What a URL or a form would take for something else.
NAMES = (
    "plain",
    "a folder/with spaces.bin",
    "hash#mark",
    "question?mark=1&more;x",
    "percent%20sign%",
    "plus+sign",
    "ünïcödé/語.mds",
    "quotes'\"<&>",
    "semi:colon@at",
    "tilde~[brackets]{}|^`$,!*()",
)


@pytest.fixture(params=["folder", "s3", "gs", "azure"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an empty folder or bucket. The name `missing` in the place of its bucket is that of no bucket."""
    if request.param == "folder":
        yield str(tmp_path / "folder")
    elif request.param == "s3":
        yield request.getfixturevalue("bucket")
    elif request.param == "gs":
        with running_google_server("bucket") as (url, _):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            monkeypatch.setattr(google.auth, "default", lambda: (AnonymousCredentials(), "project"))
            yield "gs://bucket"
    else:
        with running_azure_server("bucket") as (url, _):
            monkeypatch.setattr(azure, "account_url", lambda address: f"{url}/{address.host.partition('.')[0]}")
            monkeypatch.setenv("AZURE_ACCOUNT_ACCESS_KEY", "a2V5")
            yield "azure://account.blob.core.windows.net/bucket"


@pytest.fixture(params=["", "/some/folder", "/odd #1/f?o=1%20ö+"])
def storage(request: pytest.FixtureRequest, place: str) -> Storage:
    """An empty storage in each of them."""
    return open_storage(place + request.param, BRIEF)


def test_keys_are_used_as_they_are(storage: Storage, tmp_path: Path) -> None:
    contents = {name: f"content of {name}".encode() for name in NAMES}
    (tmp_path / "local #?%").write_bytes(b"")
    for number, (name, content) in enumerate(contents.items()):
        if number % 2:
            storage.write(name, content)
        else:
            (tmp_path / "local #?%").write_bytes(content)
            storage.upload(tmp_path / "local #?%", name)
    assert len(NAMES) > 2 * PAGE and storage.names() == sorted(NAMES)
    assert storage.names("ünïcödé/") == ["ünïcödé/語.mds"] and storage.names("percent%2") == ["percent%20sign%"]
    for name, content in contents.items():
        assert storage.read(name) == content
        storage.download(name, tmp_path / "fetched", 100)
        assert (tmp_path / "fetched").read_bytes() == content
        assert storage.path_of(name) == f"{storage.address}/{name}"
    storage.write("hash#mark", b"")
    assert storage.read("hash#mark") == b"" and storage.read("hash") is None
    for name in NAMES:
        storage.delete(name)
    storage.delete("plain")
    assert storage.names() == []


def test_large_files_are_refused(place: str, tmp_path: Path) -> None:
    storage = open_storage(f"{place}/set", BRIEF)
    content = os.urandom(300_000)
    storage.write("file", content)
    assert open_source(f"{place}/set", BRIEF).fetch("file", len, len(content)) == len(content)
    (tmp_path / "fetched").write_bytes(b"before")
    for act in (
        lambda: storage.download("file", tmp_path / "fetched", len(content) - 1),
        lambda: storage.fetch("file", len, len(content) - 1),
    ):
        with pytest.raises(StorageError, match="has more than the 299999 bytes that are expected") as caught:
            act()
        assert caught.value.kind == "damaged"
    assert (tmp_path / "fetched").read_bytes() == b"before", "half a file took its place"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tolktrain-")]


@pytest.mark.parametrize("place", ["s3", "gs", "azure"], indirect=True)
def test_a_missing_bucket_is_named(place: str, tmp_path: Path) -> None:
    missing = open_storage(place.rpartition("/")[0] + "/missing/folder", BRIEF)
    (tmp_path / "file").write_bytes(b"content")
    for act in (
        missing.names,
        lambda: missing.read("a"),
        lambda: missing.write("a", b"content"),
        lambda: missing.upload(tmp_path / "file", "a"),
        lambda: missing.delete("a"),
    ):
        with pytest.raises(StorageError, match=rf"^{missing.address} cannot be opened: the bucket does not exist"):
            act()


def test_google_by_its_s3_protocol(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys of Google's that are used instead of Amazon's."""
    address = s3_server.make_bucket().replace("s3://", "gs://")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GCS_KEY", "key")
    monkeypatch.setenv("GCS_SECRET", "secret")
    monkeypatch.setattr("tolktrain.storage.s3.GOOGLE_URL", s3_server.url)
    storage = open_storage(f"{address}/folder", BRIEF)
    storage.write("name#1", b"content")
    assert storage.read("name#1") == b"content" and storage.names() == ["name#1"]
    head = s3_server.client().head_object(
        Bucket=address.removeprefix("gs://"), Key="folder/name#1", ChecksumMode="ENABLED"
    )
    assert not [name for name in head if name.startswith("ChecksumCRC")], "Google's server does not take them"


def test_stores_that_are_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the downloader of the library, of whatever scheme; a stand-in for one that needs no network."""
    (tmp_path / "index.json").write_bytes(b"{}")

    def download(repo_id: str, filename: str, repo_type: str, local_dir: str) -> None:
        assert (repo_id, repo_type) == ("org/name", "dataset")
        (Path(local_dir) / "set").mkdir()
        (Path(local_dir) / filename).write_bytes((tmp_path / Path(filename).name).read_bytes())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = open_source("hf://datasets/org/name/set", BRIEF)
    assert source.fetch("index.json", bytes, 2) == b"{}"
    with pytest.raises(StorageError, match=r"^hf://datasets/org/name/set/index.json cannot be fetched: .*more than"):
        source.fetch("index.json", bytes, 1)
    with pytest.raises(StorageError) as absent:
        source.fetch("dataset.json", bytes, 2)
    assert absent.value.kind == "absent"
    with pytest.raises(UserError, match="'hf://datasets/org/name/set' is no address of a storage"):
        open_storage("hf://datasets/org/name/set")
    with pytest.raises(StorageError, match="'ftp://host/set' is no address that can be read"):
        open_source("ftp://host/set").fetch("index.json", bytes, 2)


def test_libraries_are_imported_when_they_are_needed() -> None:
    """A process without a bucket imports none of them, and one with a bucket only its own."""
    script = """
import sys
from tolktrain.storage.open import open_source, open_storage
import tolktrain.runs.paths
libraries = ["boto3", "botocore", "google.cloud.storage", "google.auth", "azure.core", "streaming", "huggingface_hub"]
sources = [open_storage("s3://b/f"), open_storage("gs://b"), open_storage("azure://a.b/c"), open_source("hf://d/o/n")]
open_storage("/tmp").read("nothing")
assert not (found := [name for name in libraries if name in sys.modules]), found
sources[0].import_client()
assert [name for name in libraries if name in sys.modules] == ["boto3", "botocore"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
