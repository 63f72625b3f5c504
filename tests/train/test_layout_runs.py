"""Whole runs under several layouts: checkpoints of one are read by another, in the middle of a stage."""

import json
from pathlib import Path

import pytest
from four_ranks import THREE_LAYERS
from launched import launch
from small_runs import NUM_STEPS, assert_close, read_metrics, small_config
from warm import Warm

from tolktrain.checkpoint.store import read_parameters
from tolktrain.train.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four_ranks(warm: Warm, tmp_path_factory: pytest.TempPathFactory, sets: Path) -> tuple[Path, str]:
    """Folder of what `four_ranks.py` has left, and what it printed."""
    folder = tmp_path_factory.mktemp("four_ranks")
    return folder, launch(warm, "four_ranks.py", 4, folder, sets)


def test_a_run_that_changes_its_layout_five_times_equals_that_of_one_process(
    four_ranks: tuple[Path, str], tmp_path: Path, sets: Path
) -> None:
    folder, _ = four_ranks
    assert train(small_config(tmp_path, sets, THREE_LAYERS)) == 0
    uninterrupted = tmp_path / "runs" / "small"
    codes = [json.loads((folder / f"codes-{rank}.json").read_text()) for rank in range(4)]
    assert codes == [[75, 75, 75, 75, 75, 0]] * 4
    # Neighbours share files as far as they have rows of the same tensors: not those of a tensor or pipeline rank alone.
    assert json.loads((folder / "files.json").read_text()) == [4, 2, 2, 2, 2, 2]
    lines, expected = read_metrics(folder / "runs" / "small"), read_metrics(uninterrupted)
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert_close(line, other, rel=1e-5)
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    parameters, others = (read_parameters(path / name) for path in (folder / "runs" / "small", uninterrupted))
    assert parameters.keys() == others.keys()
    # The mean, since Adam turns the rounding of gradients near zero into updates of any size.
    assert all((value - others[n]).abs().mean() < 1e-5 for n, value in parameters.items())


def test_the_layout_and_the_cut_are_shown(four_ranks: tuple[Path, str]) -> None:
    _, printed = four_ranks
    assert "layout: 4 processes on cpu: tensor 2 (sequence parallel), pipeline 2, data 1, fp32, ZeRO 1" in printed
    assert "layout: 4 processes on cpu: tensor 1, pipeline 2, data 2, fp32, ZeRO 1" in printed
    assert "layout: 4 processes on cpu: tensor 2, pipeline 1, data 2, fp32, ZeRO 3" in printed
    assert "  stage 0: embedding, input adapter 0, backbone 0" in printed
    assert "% of the FLOPs)" in printed
