"""A whole training run on a null GPU."""

from pathlib import Path

import pytest
from null_jobs import NullJobs


@pytest.mark.slow
def test_a_run_is_interrupted_and_continues(null_jobs: NullJobs, tmp_path: Path) -> None:
    """Three stages, the kernels of a GPU, checkpoints, validation; the GPU finds no fault. With the health check, the
    run does not start, because the GPU computes nothing."""
    (found,) = null_jobs.run("training.py", str(tmp_path)).results
    assert "(GPU 0" in found["refusal"] and "computes wrongly" in found["refusal"]
    first, second = found["checkpoints"]
    assert first[-1] == "step-00000006" and second[-1] == "step-00000012"
    assert set(first) < set(second)
    assert found["steps"] == list(range(1, 13))
