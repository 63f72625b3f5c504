"""The first hour on a null GPU: all of its machinery, on a device that computes nothing."""

from pathlib import Path

import pytest
from null_jobs import ROOT, NullJobs

from tolktrain.benchmark.first_hour.pieces import GPU_PIECES, MACHINE
from tolktrain.benchmark.first_hour.results import Results

SCRIPT = ["bash", str(ROOT / "launch/benchmark.sh")]
SMALL = ["model.backbone.num_layers=1", "train.micro_batch_size=1"]
OPTIONS = ["--minutes", "60", "--scale", "20", "--only", "numerics-loss,step-150m"]  # this machine may be slow


@pytest.mark.slow
def test_a_device_that_computes_nothing_is_found_and_does_not_end_the_hour(null_jobs: NullJobs, tmp_path: Path) -> None:
    outcome = null_jobs.run(*SCRIPT, *OPTIONS, "--out", str(tmp_path), *SMALL)
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


@pytest.mark.slow
def test_a_short_time_ends_by_itself_with_what_was_measured(null_jobs: NullJobs, tmp_path: Path) -> None:
    """All pieces, far too many for the time: the essential ones are first, and each has an outcome."""
    outcome = null_jobs.run(*SCRIPT, "--minutes", "0.6", "--scale", "0.3", "--out", str(tmp_path), *SMALL)
    assert outcome.codes == [1], outcome
    assert "results: " in outcome.outputs[0], "it was ended from outside"
    records = Results(tmp_path).read()
    names = [piece.name for piece in (MACHINE, *GPU_PIECES)]
    outcomes = {record["piece"]: record["status"] for record in records if record["kind"] == "outcome"}
    assert sorted(outcomes) == sorted(names)
    assert outcomes["tune"] == "not run"
    started = [record["piece"] for record in records if record["kind"] == "start"]
    essential = [piece.name for piece in (MACHINE, *GPU_PIECES) if piece.essential]
    assert started[0] == "machine"
    assert [name for name in started if name in essential] == essential[: sum(name in essential for name in started)]
    page = (tmp_path / "summary.md").read_text()
    assert all(f"| {name} | {status} |" in page for name, status in outcomes.items())
