"""Checkpoints are complete or absent, and damage is found."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tolktrain.checkpoint import manifest as manifest_module
from tolktrain.checkpoint import saver as saver_module
from tolktrain.checkpoint import writer as writer_module
from tolktrain.checkpoint.manifest import DamagedCheckpointError, verify
from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver, Fence
from tolktrain.checkpoint.slices import Snapshot
from tolktrain.checkpoint.store import CheckpointStore, read_moments, read_parameters, read_state
from tolktrain.errors import UserError

Save = Callable[[CheckpointStore, int], Path]
MakeSnapshot = Callable[[int], Snapshot]
FILES = (
    "tensors/shard-00001-of-00001.safetensors",
    "tensors.json",
    "state.json",
    "manifest.json",
)


def flip_bit(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 4
    path.write_bytes(bytes(content))


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_is_written_is_read(store: CheckpointStore, save: Save, make_snapshot: MakeSnapshot) -> None:
    folder, written = save(store, 7), make_snapshot(7)
    first, second = read_moments(folder)
    kinds = (
        (read_parameters(folder), written.parameters),
        (first, written.first_moments),
        (second, written.second_moments),
    )
    for read, expected in kinds:
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name].tensor) for name in expected)
    assert read_state(folder) == {"step": 7, "note": "€"}
    assert store.find_latest() == folder
    assert (folder.parent / "latest").read_text() == "step-00000007\n"


def test_shards_are_plain_safetensors_with_canonical_names(store: CheckpointStore, save: Save) -> None:
    folder = save(store, 1)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(FILES)
    with safe_open(folder / FILES[0], framework="pt") as file:
        trained = {"layer.weight", "layer.bias", "scale"}
        moments = {f"{kind}_moments/{name}" for kind in ("first", "second") for name in trained}
        assert set(file.keys()) == {f"parameters/{name}" for name in (*trained, "frozen")} | moments


@pytest.mark.parametrize("position", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_its_file_named(
    store: CheckpointStore, save: Save, name: str, position: float, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(store, 1), save(store, 2)
    flip_bit(newer / name, position)
    with pytest.raises(DamagedCheckpointError, match=f"step-00000002/{name}"):
        verify(newer)
    with caplog.at_level(logging.WARNING):
        assert store.find_latest() == older
    assert f"step-00000002/{name}" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_missing_and_truncated_files_are_named(store: CheckpointStore, save: Save, name: str) -> None:
    first, second = save(store, 1), save(store, 2)
    (first / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{name}: the file is missing"):
        verify(first)
    content = (second / name).read_bytes()
    (second / name).write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError, match=name):
        verify(second)
    assert store.find_latest() is None


def test_tensors_of_something_else_are_found(store: CheckpointStore, save: Save) -> None:
    """A library that knows no manifest would read them. Other files do no harm."""
    older, newer = save(store, 1), save(store, 2)
    (newer / "tensors" / "notes.txt").write_text("mine")
    verify(newer)
    shutil.copy(older / FILES[0], newer / "tensors" / "shard-00002-of-00002.safetensors")
    with pytest.raises(DamagedCheckpointError, match="shard-00002-of-00002.safetensors: does not belong to this"):
        verify(newer)
    assert store.find_latest() == older


def test_files_of_kept_ones_are_not_asked_for_at_each_save(
    store: CheckpointStore, run_dir: Path, make_snapshot: MakeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier start's once, of one's own never; but a checkpoint that takes the place of another is asked for."""
    many = run_dir / "checkpoints" / "step-00000001"

    def fill(content: bytes) -> None:
        (many / "tensors").mkdir(parents=True, exist_ok=True)
        names = [f"tensors/{number}.safetensors" for number in range(200)]
        for name in names:
            (many / name).write_bytes(content)
        manifest_module.write_manifest(many, manifest_module.digest_files(many, names))

    asked: list[str] = []
    stat = os.stat

    def counted(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        asked.append(str(path))
        return stat(path, *arguments, **options)

    def tensor_files_asked(step: int) -> int:
        asked.clear()
        saver.save(step, make_snapshot(step), {})
        return sum(path.endswith(".safetensors") for path in asked)

    fill(b"old")
    saver = CheckpointSaver(store, Retention(last=5))
    monkeypatch.setattr(os, "stat", counted)
    assert [tensor_files_asked(step) for step in (2, 3, 4)] == [200, 0, 0]
    fill(b"newer")
    assert [tensor_files_asked(step) for step in (5, 6)] == [200, 0]


def test_one_that_the_disk_does_not_give_is_passed_over(
    store: CheckpointStore, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(store, 1), save(store, 2)
    digest = manifest_module._digest

    def read(path: Path) -> dict[str, Any]:
        if path == newer / FILES[0]:
            raise OSError(5, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(manifest_module, "_digest", read)
    assert store.find_latest() == older and f"Input/output error: '{newer / FILES[0]}'" in caplog.text


@pytest.mark.parametrize("victim", ["write_snapshot", "digest_files", "write_manifest", "sync_path", "write_synced"])
def test_nothing_is_left_of_a_save_that_fails(
    store: CheckpointStore, save: Save, run_dir: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    owner = writer_module if victim == "write_snapshot" else saver_module
    monkeypatch.setattr(owner, victim, fail)
    with pytest.raises(OSError, match="No space left"):
        save(store, 2)
    assert names(run_dir) == ["latest", "step-00000001"]
    assert (run_dir / "checkpoints" / "latest").read_text() == "step-00000001\n"
    monkeypatch.undo()
    assert save(store, 2) == store.find_latest()


def test_a_tensor_that_cannot_be_written_leaves_nothing(
    store: CheckpointStore, save: Save, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure inside torch.distributed.checkpoint, after a file has been opened."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        save(store, 1)
    assert names(run_dir) == []


def test_unfinished_saves_are_removed_at_start(store: CheckpointStore, save: Save, run_dir: Path) -> None:
    folder = save(store, 1)
    unfinished = run_dir / "checkpoints" / ".tmp-00000001-step-00000002" / "parameters"
    unfinished.mkdir(parents=True)
    (unfinished / "shard").write_bytes(b"half")
    (run_dir / "checkpoints" / ".tmp-00000001-latest").write_text("step-0000")
    assert store.find_latest() == folder
    store.prepare()
    assert names(run_dir) == ["latest", "step-00000001"]


def test_old_ones_are_removed(store: CheckpointStore, save: Save, run_dir: Path) -> None:
    for step in (3, 1, 20, 100):
        save(store, step)
    assert names(run_dir) == ["latest", "step-00000020", "step-00000100"]


def test_one_that_is_being_copied_stays_until_it_is_copied(
    store: CheckpointStore, run_dir: Path, make_snapshot: MakeSnapshot
) -> None:
    copying: list[Path | None] = [store.folder / "step-00000001"]
    saver = CheckpointSaver(store, Retention(last=1), being_copied=lambda: copying[0])
    for step in (1, 2, 3):
        saver.save(step, make_snapshot(step), {})
    assert names(run_dir) == ["latest", "step-00000001", "step-00000003"]
    copying[0] = None
    saver.save(4, make_snapshot(4), {})
    assert names(run_dir) == ["latest", "step-00000004"]


def test_an_old_one_that_cannot_be_removed_is_a_warning_and_goes_at_the_next_start(
    store: CheckpointStore, save: Save, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a network file system, while somebody has one of its files open."""

    def fail(path: Path) -> None:
        raise OSError(39, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", fail)
    for step in (1, 2, 3):
        save(store, step)
    assert names(run_dir)[1:] == ["latest", "step-00000002", "step-00000003"] and "could not be removed" in caplog.text
    store.prepare()
    monkeypatch.undo()
    store.prepare()
    assert names(run_dir) == ["latest", "step-00000002", "step-00000003"]


def test_the_best_are_those_of_state_json(store: CheckpointStore, run_dir: Path, make_snapshot: MakeSnapshot) -> None:
    saver = CheckpointSaver(store, Retention(last=1, best=1), best_metric="validation.text.held.loss")
    for step, loss in ((1, 3.0), (2, 1.5), (3, 2.0), (4, None)):
        metrics = {} if loss is None else {"validation.text.held.loss": loss}
        saver.save(step, make_snapshot(step), {"step": step, "metrics": metrics})
    assert names(run_dir) == ["latest", "step-00000002", "step-00000004"]


def test_the_only_complete_one_is_never_removed(run_dir: Path, store: CheckpointStore, save: Save) -> None:
    sound = save(store, 1)
    for step in (97, 98, 99):
        damaged = run_dir / "checkpoints" / f"step-{step:08d}"
        damaged.mkdir()
        (damaged / "manifest.json").write_text("{}")
    save(store, 2)
    assert sound.exists() and store.find_latest() == run_dir / "checkpoints" / "step-00000002"


def test_in_the_background_it_is_written_while_the_caller_goes_on(
    store: CheckpointStore, make_snapshot: MakeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, gate = writer_module.write_snapshot, threading.Event()

    def write_when_let(*arguments: Any) -> None:
        assert gate.wait(300)
        written(*arguments)

    monkeypatch.setattr(writer_module, "write_snapshot", write_when_let)
    saver = CheckpointSaver(store, Retention(last=2))
    saver.save(1, make_snapshot(1), {"step": 1}, background=True)
    assert saver.is_saving and store.latest() is None
    gate.set()
    saver.save(2, make_snapshot(2), {"step": 2}, background=True)  # waits for the first one
    assert store.latest() is not None
    saver.wait()
    assert store.find_latest() == store.folder / "step-00000002"


def test_a_failure_in_the_background_is_told_at_the_next_step(
    store: CheckpointStore, make_snapshot: MakeSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver_module, "write_synced", fail)
    saver = CheckpointSaver(store, Retention(last=2))
    saver.save(1, make_snapshot(1), {}, background=True)
    deadline = time.monotonic() + 300
    while saver.is_saving:
        assert time.monotonic() < deadline
    with pytest.raises(OSError, match="No space left"):
        saver.poll()
    saver.poll()  # raised once
    assert store.latest() is None and not list(store.folder.iterdir())


def test_a_job_that_was_overtaken_cannot_publish(
    store: CheckpointStore, save: Save, make_snapshot: MakeSnapshot, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was thought dead while it wrote; its successor tidies up, and saves."""
    save(store, 1)
    asked: list[int] = []

    def check() -> None:
        """The first time, before writing, all is well."""
        asked.append(1)
        if len(asked) > 1:
            raise UserError("taken over")

    old = CheckpointSaver(store, Retention(last=1), fence=Fence(1, check))

    def successor_comes() -> None:
        store = CheckpointStore(run_dir / "checkpoints")
        store.prepare()
        CheckpointSaver(store, Retention(last=2), fence=Fence(2)).save(3, make_snapshot(3), {})

    with pytest.raises(UserError, match="taken over"):
        old.save(2, make_snapshot(2), {}, before_publishing=successor_comes)
    assert names(run_dir) == ["latest", "step-00000001", "step-00000003"]
    assert store.find_latest() == store.folder / "step-00000003"


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_the_lease_is_checked_before_anything_changes(
    store: CheckpointStore, save: Save, make_snapshot: MakeSnapshot, run_dir: Path, asked: int
) -> None:
    """Lost at the first, second or third question: before writing, before the folder's and before latest's renaming."""
    save(store, 1)
    answers = iter([None] * (asked - 1))

    def check() -> None:
        try:
            next(answers)
        except StopIteration:
            raise UserError("taken over") from None

    with pytest.raises(UserError, match="taken over"):
        CheckpointSaver(store, Retention(last=1), fence=Fence(7, check)).save(2, make_snapshot(2), {})
    assert (store.folder / "latest").read_text() == "step-00000001\n"
    assert (store.folder / "step-00000001").exists() and (store.folder / "step-00000002").exists() == (asked == 3)


def test_damaged_ones_are_set_aside_and_can_be_written_again(store: CheckpointStore, save: Save, run_dir: Path) -> None:
    older, newer = save(store, 1), save(store, 2)
    flip_bit(newer / FILES[0])
    store.rename_newer(older)
    assert names(run_dir) == ["latest", "step-00000001", "step-00000002.damaged"]
    assert save(store, 2) == store.find_latest()
    # Damage that appears later under the name of a step that is reached again.
    flip_bit(newer / FILES[0], 0.7)
    assert save(store, 2) == store.find_latest()
