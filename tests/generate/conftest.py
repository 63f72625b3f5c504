"""A run that can speak."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `small_continuations`
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))  # for `tiny_run` and `tuned_run`

from tiny_run import tiny_tree, write_run


@pytest.fixture
def tiny_run(tmp_path: Path, repository: Path) -> Path:
    """Folder of a run with a random model."""
    return write_run(tmp_path, tiny_tree(tmp_path, repository))
