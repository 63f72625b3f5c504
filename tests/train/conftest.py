"""Data sets and a finished run that the tests of this folder compare with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `small_runs`

from small_runs import small_config, write_sets

from tolktrain.train.run import train


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data sets train and held. Tests must not change it."""
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return folder


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of a run that was never interrupted. Tests must not change it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(small_config(folder, sets)) == 0
    return folder / "runs" / "small"
