"""Copies of checkpoints in a bucket are complete or do not count."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from s3_server import S3Server
from warm import Warm

from tolktrain.checkpoint.manifest import digest_files, verify, write_manifest
from tolktrain.errors import UserError
from tolktrain.runs.remote_checkpoints import complete, find_remote, forget, restore, upload_files
from tolktrain.runs.uploads import Uploads
from tolktrain.storage.base import Storage
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy

BRIEF = RetryPolicy(retries=1, timeout_seconds=2.0)
SHARDS = [f"{kind}/shard-{number}.safetensors" for kind in ("parameters", "first_moments") for number in (1, 2)]


def write(run_dir: Path, step: int, files: list[str] = SHARDS) -> Path:
    """A checkpoint of random bytes."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(10_000))
    (folder / "state.json").write_text(json.dumps({"step": step}))
    write_manifest(folder, digest_files(folder, [*files, "state.json"]))
    (run_dir / "config.yaml").write_text("run: {}\n")
    (run_dir / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    return folder


def copy(storage: Storage, folder: Path) -> None:
    uploads = Uploads(storage)
    uploads.submit(folder)
    assert uploads.close(60)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["bucket", "folder"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage."""
    if request.param == "folder":
        return open_storage(str(tmp_path / "mounted" / "copies"), BRIEF)
    return open_storage(f"{request.getfixturevalue('bucket')}/some/run", BRIEF)


@pytest.fixture
def copies(tmp_path: Path) -> Storage:
    """An empty folder as storage, where it does not matter which kind it is."""
    return open_storage(str(tmp_path / "mounted" / "copies"))


def test_what_was_copied_comes_back_on_an_empty_disk(storage: Storage, tmp_path: Path) -> None:
    written = {step: write(tmp_path / "run", step) for step in (5, 10)}
    for folder in written.values():
        copy(storage, folder)
    new = tmp_path / "new"
    new.mkdir()
    restored = restore(storage, new, 0, token=3)
    assert restored == new / "checkpoints" / "step-00000010" and content(restored) == content(written[10])
    verify(restored)
    assert (new / "checkpoints" / "latest").read_text() == "step-00000010\n"
    assert (new / "config.yaml").read_text() == "run: {}\n" and (new / "metrics.jsonl").read_text() == '{"step": 10}\n'
    assert sorted(os.listdir(new)) == ["checkpoints", "config.yaml", "metrics.jsonl"]
    assert sorted(os.listdir(new / "checkpoints")) == ["latest", "step-00000010"]
    assert restore(storage, new, 10) is None and restore(open_storage(storage.path_of("other"), BRIEF), new, 0) is None


def test_files_that_are_there_stay_and_a_damaged_checkpoint_is_set_aside(copies: Storage, tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 10)
    copy(copies, folder)
    before = content(folder)
    (folder / SHARDS[0]).write_bytes(b"damaged")
    (tmp_path / "run" / "metrics.jsonl").write_text("longer")
    assert restore(copies, tmp_path / "run", 5) == folder and content(folder) == before
    assert (folder.parent / "step-00000010.damaged").is_dir()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "longer"


@pytest.mark.slow
def test_an_upload_that_is_killed_is_no_checkpoint(
    warm: Warm, bucket: str, fault_proxy: FaultProxy, tmp_path: Path, s3_server: S3Server
) -> None:
    storage = open_storage(f"{bucket}/run", BRIEF)
    copy(storage, write(tmp_path / "run", 5))
    newer = write(tmp_path / "run", 10)
    fault_proxy.add("stall", path="*/step-00000010-*/first_moments/shard-2.safetensors", method="PUT", seconds=60)
    script = Path(__file__).with_name("bucket_uploader.py")
    process = warm.start(script, f"{bucket}/run", newer)
    try:
        deadline = time.monotonic() + 300
        while not fault_proxy.requested("PUT */first_moments/shard-2.safetensors") > 1:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert any(name.startswith("step-00000010-") for name in storage.names())
    assert [remote.step for remote in find_remote(storage)] == [5]
    restored = restore(storage, tmp_path / "new", 0)
    assert restored is not None and restored.name == "step-00000005"
    copy(storage, newer)
    assert [remote.step for remote in find_remote(storage)] == [10, 5]


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "manifest of another"])
def test_a_damaged_copy_is_named_and_refused(
    copies: Storage, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy(copies, write(tmp_path / "run", 10))
    name = find_remote(copies)[0].name
    victim = f"{name}/{SHARDS[1]}" if damage in ("changed", "missing") else f"{name}/manifest.json"
    if damage == "missing":
        copies.delete(victim)
    else:
        good = copies.read(victim) or b""
        copies.write(victim, good[:100] + b"!" + good[101:] if damage != "manifest of another" else b'{"files": {}}')
    with pytest.raises(UserError, match="no valid checkpoint to continue from") as refused:
        restore(copies, tmp_path / "new", 0)
    assert copies.path_of(victim) in str(refused.value)
    assert os.listdir(tmp_path / "new" / "checkpoints") == []
    copy(copies, write(tmp_path / "run", 5))
    restored = restore(copies, tmp_path / "new", 0)
    assert restored is not None and restored.name == "step-00000005" and copies.path_of(victim) in caplog.text


def test_damage_on_the_way_is_fetched_again(bucket: str, fault_proxy: FaultProxy, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}/run", BRIEF)
    folder = write(tmp_path / "run", 10)
    copy(storage, folder)
    fault_proxy.add("corrupt", path="*/parameters/shard-1.safetensors")
    fault_proxy.add("reset", path="*/parameters/shard-2.safetensors")
    fault_proxy.add("503", path="*/state.json")
    restored = restore(storage, tmp_path / "new", 0)
    assert restored is not None and content(restored) == content(folder)


def test_a_failed_upload_is_a_warning_and_the_next_one_is_tried(
    bucket: str, fault_proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(f"{bucket}/run", BRIEF)
    uploads = Uploads(storage)
    fault_proxy.add("403", path="*/step-00000005-*", method="PUT")
    for step in (5, 10):
        uploads.submit(write(tmp_path / "run", step))
        assert uploads.wait(300)
    gone = write(tmp_path / "run", 15)
    (gone / SHARDS[0]).unlink()  # as when it is the turn of an old one to be deleted
    uploads.submit(gone)
    assert uploads.close(60)
    assert [remote.step for remote in find_remote(storage)] == [10]
    assert f"step-00000005 was not copied to {bucket}/run: {bucket}/run/step-00000005-" in caplog.text
    assert f"step-00000015 was not copied to {bucket}/run" in caplog.text


def test_two_that_write_the_same_step_do_not_mix(copies: Storage, tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "ours", 10), write(tmp_path / "theirs", 10)
    upload_files(copies, theirs)
    copy(copies, ours)
    restored = restore(copies, tmp_path / "new", 0)
    assert restored is not None and content(restored) == content(ours)
    complete(copies, theirs, {})
    assert len(find_remote(copies)) == 2
    restored = restore(copies, tmp_path / "newer", 0)
    assert restored is not None and content(restored) == content(theirs)


def test_old_ones_are_removed_and_all_forgotten(storage: Storage, tmp_path: Path) -> None:
    uploads = Uploads(storage, keep_last=2)
    for step in (5, 10, 15):
        uploads.submit(write(tmp_path / "run", step))
        assert uploads.wait(300)
    assert uploads.close(60)
    assert {name.split("-")[1] for name in storage.names("step-")} == {"00000010", "00000015"}
    forget(storage)
    assert find_remote(storage) == [] and restore(storage, tmp_path / "new", 0) is None


def test_copies_of_steps_that_the_run_went_back_behind_do_not_count(storage: Storage, tmp_path: Path) -> None:
    """Neither for the run, nor after its disk is lost, nor as the latest ones that are kept."""
    run_dir = tmp_path / "run"
    uploads = Uploads(storage, keep_last=2)
    for step in (40, 50, 60):
        uploads.submit(write(run_dir, step))
        assert uploads.wait(300)
    record = json.dumps({"number": 1, "to_step": 50}) + "\n"
    (run_dir / "rollbacks.jsonl").write_text(record)
    assert restore(storage, run_dir, 50) is None
    restored = restore(storage, run_dir, 0)
    assert restored is not None and restored.name == "step-00000050"
    uploads.submit(write(run_dir, 55))
    assert uploads.close(60)
    assert [remote.step for remote in find_remote(storage)] == [55, 50]
    copy(storage, write(tmp_path / "as before", 60))  # as if it had not been deleted
    restored = restore(storage, tmp_path / "new", 0)
    assert restored is not None and restored.name == "step-00000055"
    assert (tmp_path / "new" / "rollbacks.jsonl").read_text() == record


def test_without_the_right_to_list_latest_names_it(
    bucket: str, fault_proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(f"{bucket}/run", BRIEF)
    copy(storage, write(tmp_path / "run", 5))
    copy(storage, write(tmp_path / "run", 10))
    fault_proxy.add("403", path=f"/{bucket.removeprefix('s3://')}", count=10)
    assert [remote.step for remote in find_remote(storage)] == [10] and "access is refused" in caplog.text


def test_a_manifest_cannot_copy_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage(str(tmp_path / "copies"))
    copy(storage, write(tmp_path / "run", 5, ["../../../escaped"]))
    assert "'../../../escaped', which climbs" in caplog.text and list(storage.names()) == []


def test_a_manifest_whose_names_exclude_each_other_is_damaged(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "copies"))
    copy(storage, write(tmp_path / "run", 4))
    folder = tmp_path / "run" / "checkpoints" / "step-00000005"
    folder.mkdir()
    (folder / "a").write_bytes(b"x")
    (digest,) = digest_files(folder, ["a"]).values()
    write_manifest(folder, {"a": digest, "a/deeper/b": digest})
    copied = f"step-00000005-{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()[:12]}"
    for file in ("a", "manifest.json"):
        storage.upload(folder / file, f"{copied}/{file}")
    restored = restore(storage, tmp_path / "new", 0)
    assert restored is not None and restored.name == "step-00000004"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path / "copies"))
    copy(storage, write(tmp_path / "run", 5))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match="needs 0.0 GB, but 0.0 GB are free"):
        restore(storage, tmp_path / "new", 0)
    assert os.listdir(tmp_path / "new" / "checkpoints") == []
