"""A Slurm cluster for the tests of this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `minislurm` and `long_runs`
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # for `small_runs`
sys.path.insert(0, str(Path(__file__).parents[1] / "files"))  # for `two_users`

from minislurm import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes."""
    with running_cluster() as cluster:
        yield cluster
