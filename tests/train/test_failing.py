"""A real run of two ranks, of which one fails: both end, and one message says which and why."""

import signal
from pathlib import Path

import pytest
from launched import launch_two
from small_runs import write_config
from warm import Warm

from tolktrain.runs.lease import Lease

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("failing_rank.py")
OVERRIDES = ["train.micro_batch_size=2", "train.validation.sets=[]"]


@pytest.mark.parametrize(
    ("failure", "codes", "message"),
    [
        (
            "defect",
            [1, 1],
            "rank 1: error: at stage 'text', step 3, after the update\nTraceback (most recent call last):",
        ),
        ("kill", [1, -signal.SIGKILL], "rank 1: error: the process ended without a report"),
        ("sleep", [1, 1], "rank 1: error: no progress for"),
    ],
)
def test_one_of_two_ranks_fails(
    warm: Warm, tmp_path: Path, sets: Path, failure: str, codes: list[int], message: str
) -> None:
    config = write_config(tmp_path, sets)
    found, (first, second) = launch_two(warm, SCRIPT, failure, str(config), *OVERRIDES, folder=tmp_path)
    assert found == codes, first + second
    assert first.startswith(message) and "error: " not in second, first + second
    assert first.count("error: ") == 1 and (first + second).count("Traceback") == (failure == "defect")
    if failure in ("kill", "sleep"):
        assert "pipeline 0, tensor 0, data 1" in first
    if failure == "sleep":  # a killed rank may have been heard of last before it came to the stage
        assert "stage 'text', step 3, after the update" in first and "in on_step: `time.sleep(10_000)`" in first
        logs = tmp_path / "runs" / "small" / "logs"
        assert all(message in (logs / f"rank-0000{rank}.log").read_text() for rank in range(2))


def test_input_that_all_ranks_refuse(warm: Warm, tmp_path: Path, sets: Path) -> None:
    """Before there is a process group, and when rank 0 refuses for all."""
    codes, errors = launch_two(warm, SCRIPT, "none", "none.yaml", folder=tmp_path)
    assert codes == [2, 2] and "".join(errors).count("\n") == 1, errors
    assert "error: none.yaml does not exist" in errors[0]
    config = write_config(tmp_path, sets)
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    with Lease.take(folder, report=print):
        codes, errors = launch_two(warm, SCRIPT, "none", str(config), *OVERRIDES, folder=tmp_path)
    assert codes == [2, 2] and "".join(errors).count("\n") == 1, errors
    assert "another training of this run is active" in errors[0]
