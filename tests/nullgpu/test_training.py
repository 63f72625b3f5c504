"""A whole training run on a null GPU."""

from pathlib import Path

import pytest
from null_jobs import NullJobs


@pytest.mark.slow
def test_a_run_is_interrupted_and_continues(null_jobs: NullJobs, tmp_path: Path) -> None:
    """Three stages, the kernels of a GPU, checkpoints, validation, the health check; the GPU finds no fault."""
    (found,) = null_jobs.run("training.py", str(tmp_path)).results
    first, second = found["checkpoints"]
    assert first[-1] == "step-00000006" and second[-1] == "step-00000012"
    assert set(first) < set(second)
    assert found["steps"] == list(range(1, 13))
