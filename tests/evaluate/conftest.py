"""A run to evaluate."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `tiny_run`

from replicas import Replicas, speak_replicas
from tiny_run import tiny_tree, write_run


@pytest.fixture
def tiny_run(tmp_path: Path, repository: Path) -> Path:
    """Folder of a run with a random model, not evaluated yet."""
    return write_run(tmp_path, tiny_tree(tmp_path, repository))


@pytest.fixture(scope="session")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Replicas:
    """Small benchmarks in the layouts in which the real ones are distributed, spoken by espeak-ng."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    return speak_replicas(tmp_path_factory.mktemp("replicas"))
