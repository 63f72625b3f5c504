"""A loss or gradients that are not finite on one of two ranks: both skip the step, and nothing of it remains."""

import json
from pathlib import Path
from typing import Any

import pytest
from bad_ranks import CASES, Bad
from launched import launch
from poison import LEFT_OUT, checksums, make_config, without
from small_runs import read_metrics
from warm import Warm

from tolktrain.train.run import train

pytestmark = pytest.mark.slow

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def two_ranks(warm: Warm, tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of what `bad_ranks.py` has left."""
    folder = tmp_path_factory.mktemp("bad_ranks")
    launch(warm, "bad_ranks.py", 2, folder, sets)
    return folder


@pytest.fixture(scope="module")
def found(two_ranks: Path) -> Found:
    """What each rank has seen."""
    return [json.loads((two_ranks / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_all_ranks_skip_the_step_as_if_it_had_never_been(found: Found, bad: Bad) -> None:
    for rank in found:
        case = rank["cases"][bad.name]
        assert case["skipped"] == [False, True, False, False, False]
        assert case["updates"] == [2, 2] and case["differing"] == []


def test_two_ranks_go_back_and_one_goes_on(two_ranks: Path, found: Found, tmp_path: Path, sets: Path) -> None:
    """As a run in one process that never had the data. It is met no more: nothing spoils it here."""
    assert [rank["code"] for rank in found] == [75, 75]
    run_dir = two_ranks / "runs" / "small"
    assert read_metrics(run_dir)[-1]["step"] == 7
    assert json.loads((run_dir / "rollbacks.jsonl").read_text())["skipped_data"] == [5, 9]
    assert train(make_config(two_ranks, sets)) == 0
    config = make_config(tmp_path, sets)
    with without(checksums(config, LEFT_OUT)):
        assert train(config) == 0
    lines, expected = read_metrics(run_dir), read_metrics(tmp_path / "runs" / "small")
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-5)
