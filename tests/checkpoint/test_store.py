"""Checkpoints are complete or absent, and damage is found."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tolktrain.checkpoint import store as store_module
from tolktrain.checkpoint.manifest import DamagedCheckpointError, verify
from tolktrain.checkpoint.store import (
    CheckpointStore,
    Snapshot,
    read_moments,
    read_parameters,
    read_state,
)
from tolktrain.checkpoint.tensors import Shares

Save = Callable[[CheckpointStore, int], Path]
FILES = (
    "parameters/shard-00001-model-00001-of-00001.safetensors",
    "first_moments/shard-00001-model-00001-of-00001.safetensors",
    "second_moments/shard-00001-model-00001-of-00001.safetensors",
    "state.json",
    "manifest.json",
)


def flip_bit(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 4
    path.write_bytes(bytes(content))


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_is_written_is_read(store: CheckpointStore, save: Save, make_snapshot: Callable[[int], Snapshot]) -> None:
    folder, written = save(store, 7), make_snapshot(7)
    first, second = read_moments(folder)
    kinds = (
        (read_parameters(folder), written.parameters),
        (first, written.first_moments),
        (second, written.second_moments),
    )
    for read, expected in kinds:
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name]) for name in expected)
    assert read_state(folder) == {"step": 7, "note": "€"}
    assert store.find_latest() == folder
    assert (folder.parent / "latest").read_text() == "step-00000007\n"


def test_shards_are_plain_safetensors_with_canonical_names(store: CheckpointStore, save: Save) -> None:
    folder = save(store, 1)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(FILES)
    with safe_open(folder / FILES[0], framework="pt") as file:
        assert set(file.keys()) == {"layer.weight", "layer.bias", "scale", "frozen"}


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


@pytest.mark.parametrize("victim", ["write_tensors", "digest_files", "write_manifest", "sync_path"])
def test_nothing_is_left_of_a_save_that_fails(
    store: CheckpointStore, save: Save, run_dir: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(store_module, victim, fail)
    with pytest.raises(OSError, match="No space left"):
        save(store, 2)
    assert names(run_dir) == ["latest", "step-00000001"]
    assert (run_dir / "checkpoints" / "latest").read_text() == "step-00000001\n"
    monkeypatch.undo()
    assert save(store, 2) == store.find_latest()


def test_a_tensor_that_cannot_be_written_leaves_nothing(
    store: CheckpointStore, make_snapshot: Callable[[int], Snapshot], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure inside torch.distributed.checkpoint, after a shard has been opened."""
    snapshot = make_snapshot(0)
    shares = Shares.split({name: tuple(tensor.shape) for name, tensor in snapshot.parameters.items()}, 1)

    def fail(*_: object, **__: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save", fail)
    with pytest.raises(RuntimeError, match="cannot be written.*disk full"):
        store.save(1, snapshot, shares, {})
    assert names(run_dir) == []


def test_unfinished_saves_are_removed_at_start(store: CheckpointStore, save: Save, run_dir: Path) -> None:
    folder = save(store, 1)
    unfinished = run_dir / "checkpoints" / ".tmp-step-00000002" / "parameters"
    unfinished.mkdir(parents=True)
    (unfinished / "shard").write_bytes(b"half")
    (run_dir / "checkpoints" / ".tmp-latest").write_text("step-0000")
    assert store.find_latest() == folder
    store.prepare()
    assert names(run_dir) == ["latest", "step-00000001"]


def test_only_the_newest_are_kept(store: CheckpointStore, save: Save, run_dir: Path) -> None:
    for step in (3, 1, 20, 100):
        save(store, step)
    assert names(run_dir) == ["latest", "step-00000020", "step-00000100"]


def test_the_only_complete_one_is_never_removed(
    run_dir: Path, save: Save, make_snapshot: Callable[[int], Snapshot]
) -> None:
    store = CheckpointStore(run_dir, keep_last=1)
    store.prepare()
    sound = save(store, 1)
    damaged = run_dir / "checkpoints" / "step-00000099"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    save(store, 2)
    assert sound.exists() and store.find_latest() == run_dir / "checkpoints" / "step-00000002"


def test_damaged_ones_are_set_aside_and_can_be_written_again(store: CheckpointStore, save: Save, run_dir: Path) -> None:
    older, newer = save(store, 1), save(store, 2)
    flip_bit(newer / FILES[0])
    store.set_aside_newer(older)
    assert names(run_dir) == ["latest", "step-00000001", "step-00000002.damaged"]
    assert save(store, 2) == store.find_latest()
    # Damage that appears later under the name of a step that is reached again.
    flip_bit(newer / FILES[1])
    assert save(store, 2) == store.find_latest()


def test_shares_are_even_and_cover_everything() -> None:
    shapes = {f"matrix{i}": (i + 1, 64) for i in range(40)} | {"bias": (3,), "scalar": ()}
    shares = Shares.split(shapes, 4)
    sizes = [sum(torch.Size(shapes[name]).numel() for name in shares.of(rank)) for rank in range(4)]
    assert sorted(name for rank in range(4) for name in shares.of(rank)) == sorted(shapes)
    assert max(sizes) - min(sizes) <= 64 * 2
    assert shares == Shares.split(dict(reversed(shapes.items())), 4)


def test_large_shares_are_cut_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tolktrain.checkpoint import tensors

    monkeypatch.setattr(tensors, "SHARD_BYTES", 4096)
    written = {f"matrix{i}": torch.full((16, 16), float(i)) for i in range(9)}
    shares = Shares.split({name: tuple(tensor.shape) for name, tensor in written.items()}, 1)
    tensors.write_tensors(tmp_path, written, shares)
    assert len(list(tmp_path.iterdir())) == 3
    read = tensors.read_tensors(tmp_path)
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())
