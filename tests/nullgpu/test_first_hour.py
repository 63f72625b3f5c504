"""The first hour on a null GPU: all of its machinery, on a device that computes nothing."""

import sys
from pathlib import Path

import pytest
from null_jobs import NullJobs

from tolktrain.benchmark.first_hour.results import Results

SMALL = ["model.backbone.num_layers=1", "train.micro_batch_size=1"]
OPTIONS = ["--minutes", "60", "--scale", "20", "--only", "numerics-loss,step-150m"]  # this machine may be slow


@pytest.mark.slow
def test_a_device_that_computes_nothing_is_found_and_does_not_end_the_hour(null_jobs: NullJobs, tmp_path: Path) -> None:
    module = [sys.executable, "-m", "tolktrain.benchmark.first_hour"]
    outcome = null_jobs.run(*module, *OPTIONS, "--out", str(tmp_path), *SMALL)
    assert outcome.codes == [1], outcome
    assert not outcome.faults
    records = Results(tmp_path).read()
    assert {r["piece"]: r["status"] for r in records if r["kind"] == "outcome"} == {
        "machine": "failed",
        "numerics-loss": "failed",
        "step-150m": "done",
    }, outcome
    numbers = [record for record in records if record["kind"] == "numeric"]
    assert numbers
    assert not any(record["is_within"] for record in numbers)
    [step] = [record for record in records if record["kind"] == "step"]
    assert step["kernels"].startswith("triton")
    assert 0 < step["peak_memory_gib"] <= step["peak_reserved_gib"]
    assert step["tokens_per_second"] > 0
    page = (tmp_path / "summary.md").read_text()
    assert "relative error 1, WRONG" in page
    assert "the GPU computes wrong values" in page
    assert "| 150m | ours | 1 x 1 |" in page
    assert f"{len(numbers)} of {len(numbers)} errors are above their tolerance" in page
