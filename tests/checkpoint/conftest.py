"""A small model's tensors and a store to keep them in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tolktrain.checkpoint.store import CheckpointStore, Snapshot
from tolktrain.checkpoint.tensors import Shares

Save = Callable[[CheckpointStore, int], Path]


def _snapshot(seed: int) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (8, 4), "layer.bias": (8,), "scale": (), "frozen": (3, 5)}
    parameters, first, second = (
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(3)
    )
    del first["frozen"], second["frozen"]
    return Snapshot(parameters, first, second)


@pytest.fixture
def make_snapshot() -> Callable[[int], Snapshot]:
    """Tensors of several shapes, by seed; "frozen" was not trained and has no moments."""
    return _snapshot


@pytest.fixture
def save() -> Save:
    """Saves a checkpoint whose tensors depend on the step."""

    def save(store: CheckpointStore, step: int) -> Path:
        snapshot = _snapshot(step)
        shares = Shares.split({name: tuple(tensor.shape) for name, tensor in snapshot.parameters.items()}, 1)
        return store.save(step, snapshot, shares, {"step": step, "note": "€"})

    return save


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Folder of a run."""
    return tmp_path / "run"


@pytest.fixture
def store(run_dir: Path) -> CheckpointStore:
    """A store that keeps two checkpoints."""
    store = CheckpointStore(run_dir, keep_last=2)
    store.prepare()
    return store
