"""Whole files in a folder and in a bucket, and what a storage may do to them."""

import os
import pickle
import re
import time
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Kind
from ports import free_port
from s3_server import S3Server
from small_disk import MakeDisk

from tolktrain.errors import UserError
from tolktrain.storage.base import Storage
from tolktrain.storage.errors import StorageError
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy

BRIEF = RetryPolicy(retries=1, timeout_seconds=2.0)


@pytest.fixture(params=["folder", "bucket", "bucket root"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> Storage:
    """An empty storage."""
    address = {"folder": str(tmp_path / "new" / "folder"), "bucket": f"{bucket}/some/folder/", "bucket root": bucket}
    return open_storage(address[request.param], BRIEF)


def test_files_come_back(storage: Storage, tmp_path: Path) -> None:
    assert storage.names() == [] and storage.read("a") is None
    content = os.urandom(100_000)
    (tmp_path / "source").write_bytes(content)
    storage.upload(tmp_path / "source", "parts/two.bin")
    assert (tmp_path / "source").read_bytes() == content
    storage.write("parts/one.bin", b"1")
    storage.write("index.json", b"{}")
    storage.write("index.json", b"")
    assert storage.names() == ["index.json", "parts/one.bin", "parts/two.bin"]
    assert storage.names("parts/t") == ["parts/two.bin"]
    assert storage.read("parts/two.bin") == content and storage.read("index.json") == b""
    storage.download("parts/two.bin", tmp_path / "fetched", len(content))
    assert (tmp_path / "fetched").read_bytes() == content
    with pytest.raises(StorageError) as absent:
        storage.download("parts/three.bin", tmp_path / "fetched", len(content))
    with pytest.raises(
        StorageError, match=r"parts/two\.bin cannot be fetched: it arrived damaged .*more than the 99999"
    ) as large:
        storage.download("parts/two.bin", tmp_path / "fetched", len(content) - 1)
    assert large.value.kind == "damaged"
    assert absent.value.kind == "absent" and storage.path_of("parts/three.bin") in str(absent.value)
    again: Storage = pickle.loads(pickle.dumps(storage))
    again.delete("parts/one.bin")
    again.delete("parts/one.bin")
    assert storage.names() == ["index.json", "parts/two.bin"]


def test_a_folder_beside_with_the_same_beginning_is_another(bucket: str) -> None:
    open_storage(f"{bucket}/set").write("a", b"a")
    open_storage(f"{bucket}/settings").write("b", b"b")
    assert open_storage(f"{bucket}/set").names() == ["a"]


def test_a_local_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("file", b"before")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "missing", "file")
    assert storage.read("file") == b"before" and os.listdir(tmp_path) == ["file"]
    mask = os.umask(0o027)
    storage.write("other", b"")
    os.umask(mask)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o640


def test_aws_endpoint_url_is_honoured(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S3_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    open_storage(bucket).write("a", b"a")
    assert open_storage(bucket).read("a") == b"a"


def test_a_second_storage_does_not_read_the_descriptions_of_services_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take a tenth of a second."""

    def fail(_: object, path: str) -> None:
        raise AssertionError(f"{path} is read again")

    open_storage(bucket).write("a", b"a")
    monkeypatch.setattr("botocore.loaders.JSONFileLoader.load_file", fail)
    assert open_storage(bucket).read("a") == b"a"


@pytest.mark.parametrize("address", ["ftp://host/folder", "s3:///folder", "azure://account/container"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UserError, match=f"'{address}' "):
        open_storage(address)


TRANSIENT: list[Kind] = ["500", "503", "reset", "truncate", "corrupt", "stall", "stall in body"]


@pytest.mark.parametrize("kind", TRANSIENT)
def test_passing_faults_of_a_download_are_survived(bucket: str, fault_proxy: FaultProxy, kind: Kind) -> None:
    content = os.urandom(200_000)
    open_storage(bucket).write("file", content)
    fault_proxy.add(kind, "*/file", seconds=2.5)
    assert open_storage(bucket, BRIEF).read("file") == content
    assert fault_proxy.requested("GET */file") == 2


@pytest.mark.parametrize("kind", ["500", "503", "reset"])
def test_passing_faults_of_an_upload_are_survived(bucket: str, fault_proxy: FaultProxy, kind: Kind) -> None:
    fault_proxy.add(kind, "*/file", method="PUT")
    content = os.urandom(200_000)
    open_storage(bucket, BRIEF).write("file", content)
    assert fault_proxy.requested("PUT */file") == 2
    assert open_storage(bucket).read("file") == content


@pytest.mark.parametrize("kind", ["500", "503", "truncate", "corrupt", "stall in body"])
def test_lasting_faults_end_in_time_and_are_named(
    bucket: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    open_storage(bucket).write("file", os.urandom(20_000))
    fault_proxy.add(kind, "*/file", count=-1, seconds=1.5)
    causes = {"500": "InternalError", "503": "SlowDown Please reduce your request rate", "truncate": "IncompleteRead"}
    causes |= {"corrupt": "checksum", "stall in body": "timeout"}
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_storage(bucket, RetryPolicy(retries=1, timeout_seconds=0.3)).read("file")
    message = str(caught.value)
    assert time.monotonic() - begin < 20
    assert re.match(rf"{bucket}/file cannot be fetched: the storage failed [12] times in \d s \(", message)
    assert causes[kind] in message and "check S3_ENDPOINT_URL" in message


def test_an_endpoint_that_nobody_serves(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("S3_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for act in (lambda storage: storage.read("a"), lambda storage: storage.write("a", b"")):
        with pytest.raises(UserError, match=rf"^{bucket}.* the storage failed 2 times .*{url}.*check S3_ENDPOINT_URL"):
            act(open_storage(bucket, RetryPolicy(retries=1, timeout_seconds=60.0)))


def test_a_missing_bucket(bucket: str) -> None:
    missing = open_storage("s3://nobody-made-this/folder", BRIEF)
    for act in (missing.names, lambda: missing.read("a"), lambda: missing.write("a", b""), lambda: missing.delete("a")):
        with pytest.raises(
            UserError, match="^s3://nobody-made-this/folder cannot be opened: the bucket does not exist"
        ):
            act()


def test_wrong_credentials(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusals() -> list[str]:
        messages = []
        for act in (lambda storage: storage.read("a"), lambda storage: storage.write("a", b"")):
            with pytest.raises(UserError) as caught:
                act(open_storage(bucket, BRIEF))
            messages.append(str(caught.value))
        return messages

    open_storage(bucket).write("a", b"a")
    with s3_server.checked_credentials() as right:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", right["AWS_ACCESS_KEY_ID"])
        for message, cause in zip(refusals(), ("403 Forbidden", "SignatureDoesNotMatch .*"), strict=True):
            assert re.search(
                rf"access is refused \({cause}\); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", message
            )
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", right["AWS_SECRET_ACCESS_KEY"])
        assert open_storage(bucket).read("a") == b"a"
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAnobody")
        for message, cause in zip(refusals(), ("403 Forbidden", "InvalidAccessKeyId .*"), strict=True):
            assert re.search(rf"access is refused \({cause}\)", message)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for message in refusals():
        assert "there are no usable credentials" in message and "; set AWS_ACCESS_KEY_ID" in message


def test_access_denied_to_one_file(bucket: str, fault_proxy: FaultProxy) -> None:
    open_storage(bucket).write("a", b"a")
    fault_proxy.add("403", "*/a", count=-1)
    with pytest.raises(UserError, match=rf"^{bucket}/a cannot be fetched: access is refused \(AccessDenied"):
        open_storage(bucket, BRIEF).read("a")
    assert fault_proxy.requested("GET */a") == 1, "nothing is gained by asking again"


def test_a_public_bucket_is_read_without_a_signature_that_it_does_not_take(
    bucket: str, fault_proxy: FaultProxy
) -> None:
    storage = open_storage(bucket, BRIEF)
    storage.write("a", b"a")
    fault_proxy.add("400", "*/a", method="HEAD")
    assert storage.read("a") == b"a" and fault_proxy.requested("HEAD */a") == 2
    assert storage.read("a") == b"a" and fault_proxy.requested("HEAD */a") == 3
    fault_proxy.add("400", "*/a", count=-1, method="HEAD")
    with pytest.raises(UserError, match=rf"^{bucket}/a cannot be fetched: access is refused \(400 "):
        open_storage(bucket, BRIEF).read("a")


def test_a_full_disk_under_a_folder(make_disk: MakeDisk, tmp_path: Path) -> None:
    disk = make_disk(128)
    storage = open_storage(str(disk.path))
    storage.write("parts/a", b"old" * 1000)
    (tmp_path / "large").write_bytes(os.urandom(50_000))
    disk.refuses(lambda: storage.write("parts/a", os.urandom(50_000)), f"{disk.path}/parts/a cannot be written", 20)
    disk.refuses(lambda: storage.upload(tmp_path / "large", "b"), f"{disk.path}/b cannot be written", 20)
    disk.fill(8)
    with pytest.raises(StorageError) as caught:
        storage.upload(tmp_path / "large", "parts/a")
    assert caught.value.kind == "disk" and caught.value.by_machine
    assert pickle.loads(pickle.dumps(caught.value)).by_machine


def test_a_bucket_needs_no_disk(
    bucket: str, make_disk: MakeDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to write, nor to upload, nor to read: nothing is staged."""
    disk = make_disk(64)
    disk.fill(0)
    monkeypatch.setattr("tempfile.tempdir", str(disk.path))
    storage, content = open_storage(f"{bucket}/folder"), os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    storage.write("written", content)
    storage.upload(tmp_path / "file", "uploaded")
    assert storage.read("written") == storage.read("uploaded") == content
    with pytest.raises(StorageError, match="cannot be fetched: the disk refuses .*No space") as caught:
        storage.download("written", disk.path / "fetched", len(content))
    assert caught.value.by_machine and "fetched" not in disk.files()
