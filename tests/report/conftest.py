"""A synthetic run directory with everything a finished run has."""

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # for `synthetic_run` and `parsed_page`
from synthetic_run import SETS, evaluation, write_metrics, write_samples  # noqa: E402


@pytest.fixture
def bare_run(tmp_path: Path) -> Path:
    """A run that was trained and no more."""
    folder = tmp_path / "synthetic"
    folder.mkdir()
    config = {
        "run": {"name": "synthetic", "dir": str(tmp_path), "seed": 0},
        "train": {"validation": {"sets": list(SETS)}},
        "evaluation": {"heldout_sets": list(SETS)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_metrics(folder)
    return folder


@pytest.fixture
def full_run(bare_run: Path) -> Path:
    """A run that was evaluated and has samples."""
    (bare_run / "evaluation.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    write_samples(bare_run)
    return bare_run
