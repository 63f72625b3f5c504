"""A Slurm cluster for the tests of this folder."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `minislurm` and `long_runs`
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # for `small_runs`

from minislurm import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes."""
    # Not in pytest's own folder: paths of sockets must be short.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="minislurm-", dir="/tmp")))
    try:
        if reason := cluster.obstacle():
            pytest.skip(reason)
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
