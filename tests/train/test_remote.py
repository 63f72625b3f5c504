"""A run continues from the copies of its checkpoints when its own disk is lost."""

import logging
import shutil
import time
from pathlib import Path

import pytest
import torch
from small_runs import NUM_STEPS, StopAfter, read_metrics, small_config

from tolktrain.checkpoint.store import read_parameters
from tolktrain.errors import UserError
from tolktrain.runs.copies import storage_of, uploads_of
from tolktrain.runs.remote_checkpoints import find_remote
from tolktrain.storage.errors import StorageError
from tolktrain.storage.folder import LocalFolder
from tolktrain.train import open_run
from tolktrain.train.run import train

pytestmark = pytest.mark.slow


def copy_newest(tmp_path: Path, sets: Path) -> list[str]:
    """Trains five steps, with checkpoints after 3, 4 and 5, and copies these; the overrides that name the copies."""
    overrides = [f"checkpoint.upload={tmp_path / 'copies'}"]
    config = small_config(tmp_path, sets, "train.max_steps=5")
    assert train(config) == 0
    uploads = uploads_of(small_config(tmp_path, sets, *overrides))
    assert uploads is not None
    for folder in sorted((tmp_path / "runs" / "small" / "checkpoints").glob("step-*")):
        uploads.submit(folder)
        assert uploads.wait(300)
    assert uploads.close(60)
    return overrides


def test_on_an_empty_disk_the_run_goes_on_the_same(
    tmp_path: Path, sets: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = copy_newest(tmp_path, sets)
    run_dir = tmp_path / "runs" / "small"
    shutil.rmtree(run_dir)
    with pytest.raises(UserError, match="another configuration(.|\n)*run.seed: 0 there, 3 here"):
        train(small_config(tmp_path, sets, *overrides, "run.seed=3"))
    shutil.rmtree(run_dir)
    assert train(small_config(tmp_path, sets, *overrides)) == 0
    assert (
        f"continuing from {run_dir}/checkpoints/step-00000005, fetched from {tmp_path}/copies/small/step-"
        in caplog.text
    )
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    ours, theirs = (read_parameters(d / f"checkpoints/step-{NUM_STEPS:08d}") for d in (run_dir, uninterrupted))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_newer_copy_is_taken_and_an_older_one_is_not(tmp_path: Path, sets: Path) -> None:
    overrides = copy_newest(tmp_path, sets)
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    inode = (checkpoints / "step-00000004").stat().st_ino
    shutil.rmtree(checkpoints / "step-00000005")
    assert train(small_config(tmp_path, sets, *overrides, "train.max_steps=5")) == 0
    assert (checkpoints / "step-00000005" / "manifest.json").exists()
    shutil.rmtree(tmp_path / "copies")
    assert train(small_config(tmp_path, sets, *overrides, "train.max_steps=5")) == 0
    assert (checkpoints / "step-00000004").stat().st_ino == inode


def test_what_was_not_copied_before_leaving_is_copied_by_the_next_start(tmp_path: Path, sets: Path) -> None:
    """Whether there is something left to train or not."""
    overrides = [f"checkpoint.upload={tmp_path / 'copies'}"]
    assert train(small_config(tmp_path, sets, "train.max_steps=4")) == 0
    config = small_config(tmp_path, sets, *overrides, "train.max_steps=4")
    assert train(config) == 0
    storage = storage_of(config)
    assert storage is not None and [remote.step for remote in find_remote(storage)] == [4]
    assert train(small_config(tmp_path, sets, *overrides, "train.max_steps=5")) == 0
    assert [remote.step for remote in find_remote(storage)] == [5, 4]


def test_the_end_waits_for_the_last_copy(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it has been asked to leave."""
    monkeypatch.setattr(open_run, "_LONGEST_LAST_COPY", 0.0)
    monkeypatch.setattr(open_run, "_COPY_POLL_SECONDS", 0.01)
    upload = LocalFolder.upload

    def slowly(self: LocalFolder, path: Path, name: str) -> None:
        time.sleep(0.1)
        upload(self, path, name)

    monkeypatch.setattr(LocalFolder, "upload", slowly)
    config = small_config(tmp_path, sets, f"checkpoint.upload={tmp_path / 'copies'}", "train.max_steps=2")
    storage = storage_of(config)
    assert storage is not None
    assert train(config, StopAfter(1)) == 75 and find_remote(storage) == []
    assert train(config) == 0 and find_remote(storage)[0].step == 2


def test_copies_that_cannot_be_reached(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a checkpoint here the run continues; without one it must not begin again without a word."""
    overrides = copy_newest(tmp_path, sets)

    def fail(*_: object) -> None:
        raise UserError("the network is down")

    monkeypatch.setattr("tolktrain.storage.folder.LocalFolder.read", fail)
    config = small_config(tmp_path, sets, *overrides, "train.max_steps=5")
    with caplog.at_level(logging.WARNING):
        assert train(config) == 0
    assert "the network is down; continuing from step 5, which is here" in caplog.text
    shutil.rmtree(tmp_path / "runs" / "small")
    with pytest.raises(UserError, match="checkpoint.upload: the network is down"):
        train(config)
    assert not (tmp_path / "runs" / "small").exists()


def test_a_run_that_starts_anew_forgets_its_copies(tmp_path: Path, sets: Path) -> None:
    overrides = copy_newest(tmp_path, sets)
    config = small_config(tmp_path, sets, *overrides, "run.restart=true", "train.max_steps=1")
    assert train(config) == 0
    storage = storage_of(config)
    assert storage is not None and [remote.step for remote in find_remote(storage)] == [1]
    assert [line["step"] for line in read_metrics(tmp_path / "runs" / "small")] == [1]


def test_an_address_that_is_none(tmp_path: Path, sets: Path) -> None:
    with pytest.raises(UserError, match="checkpoint.upload: 'ftp://host/folder' is no address"):
        train(small_config(tmp_path, sets, "checkpoint.upload=ftp://host/folder"))
    assert not (tmp_path / "runs").exists()


def test_a_disk_without_room_for_the_copy_is_no_bad_input(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = copy_newest(tmp_path, sets)
    run_dir = tmp_path / "runs" / "small"
    shutil.rmtree(run_dir)

    def refuse(storage: LocalFolder, name: str, path: Path, limit: int) -> None:
        raise StorageError(f"{path} cannot be written: the disk refuses", "disk")

    monkeypatch.setattr(LocalFolder, "download", refuse)
    with pytest.raises(UserError, match="checkpoint.upload: .* the disk refuses") as caught:
        train(small_config(tmp_path, sets, *overrides))
    assert caught.value.by_machine
