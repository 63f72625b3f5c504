"""A small model's tensors and a store to keep them in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.checkpoint.slices import Slice, Snapshot
from tolktrain.checkpoint.store import CheckpointStore, step_name

Save = Callable[[CheckpointStore, int], Path]


def _snapshot(seed: int) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (8, 4), "layer.bias": (8,), "scale": (), "frozen": (3, 5)}
    parameters, first, second = (
        {name: Slice.whole(torch.randn(shape, generator=generator)) for name, shape in shapes.items()} for _ in range(3)
    )
    del first["frozen"], second["frozen"]
    return Snapshot(parameters, first, second)


@pytest.fixture
def make_snapshot() -> Callable[[int], Snapshot]:
    """Tensors of several shapes, by seed; "frozen" was not trained and has no moments."""
    return _snapshot


@pytest.fixture
def save() -> Save:
    """Saves a checkpoint whose tensors depend on the step; two are kept."""

    def save(store: CheckpointStore, step: int) -> Path:
        CheckpointSaver(store, Retention(last=2)).save(step, _snapshot(step), {"step": step, "note": "€"})
        return store.folder / step_name(step)

    return save


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Folder of a run."""
    return tmp_path / "run"


@pytest.fixture
def store(run_dir: Path) -> CheckpointStore:
    """A store ready for use."""
    store = CheckpointStore(run_dir / "checkpoints")
    store.prepare()
    return store
