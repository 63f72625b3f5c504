"""A run to analyse, and its analysis."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `small_task`
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))  # for `tiny_run`
sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))  # for `small_backbone`

from tiny_run import tiny_tree, write_run

from tolktrain.analyze.run import Options, analyze


@pytest.fixture(scope="session")
def analyzed_run(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of a run with a random model, and the result of its analysis."""
    folder = tmp_path_factory.mktemp("analyzed")
    run_dir = write_run(folder, tiny_tree(folder, repository))
    return run_dir, analyze(run_dir, Options(words=300, spans=40, dimensions=4))
