"""Health checks of real ranks, one of which is sick: exactly that one is named, with its node."""

import json
from pathlib import Path
from typing import Any

import pytest
from health_ranks import CASES
from launched import launch
from warm import Warm

pytestmark = pytest.mark.slow

Outcome = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(warm: Warm, tmp_path_factory: pytest.TempPathFactory, sets: Path) -> list[Outcome]:
    """The outcome on each rank in each case of health_ranks.py."""
    folder = tmp_path_factory.mktemp("health")
    launch(warm, "health_ranks.py", 4, folder, sets)
    return [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(4)]


def test_healthy_ranks_start_and_leave_nothing_behind(outcomes: list[Outcome]) -> None:
    for rank in outcomes:
        assert all(case["same random states"] and case["left"] == [] for case in rank.values())
        found = rank["healthy"]
        assert found["error"] == "" and found["warnings"] == []
        assert found["line"].startswith("4 ranks on 3 nodes, checked in ")
        for part in ("products at ", "all-reduce ", "between nodes ", " free"):
            assert part in found["line"]


@pytest.mark.parametrize(
    ("case", "expected", "node"),
    [
        ("computes wrongly", "n3, rank 3 (GPU 0, GPU-3) computes wrongly: 1 of 65,536 elements of a known", "n3"),
        ("fails", "n2, rank 2 (GPU 0, GPU-2) cannot multiply matrices: CUDA error: unspecified launch failure", "n2"),
        ("slow", "n1, rank 1 (GPU 0, GPU-1) multiplies matrices at ", "n1"),
        ("other version", "torch: 1.0 on n3 (rank 3), but ", "n3"),
        ("full disk", "has 0.977 KiB free (seen from n1), but two checkpoints of ", None),
        ("other folder", "on n2 is not the folder that n1 has under this name; choose a run.dir on a file", None),
        ("wrong sums", "an all-reduce of known numbers over all ranks gave wrong sums on rank 1 (6 elements)", None),
    ],
    ids=lambda value: value if value in CASES else "",
)
def test_a_sick_machine_is_refused_and_named(
    outcomes: list[Outcome], case: str, expected: str, node: str | None
) -> None:
    for rank in outcomes:
        found = rank[case]
        assert expected in found["error"] and found["line"] == "" and found["warnings"] == []
        problem, advice = found["error"].split("\n")  # one line each: nobody else is named
        assert "--skip-health-check" in advice
        assert (f"leave out {node} (sbatch --exclude={node})" in advice) == (node is not None)
    assert len({rank[case]["error"] for rank in outcomes}) == 1


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("slow CPU", "n1, rank 1 (CPU) multiplies matrices at "),
        ("clock", "the clock of n2 is 12.5 s (+-"),
        ("slow network", "n3 (rank 3) exchanges "),
    ],
    ids=lambda value: value if value in CASES else "",
)
def test_what_can_be_borne_is_warned_of_by_rank_zero(outcomes: list[Outcome], case: str, expected: str) -> None:
    assert [rank[case]["error"] for rank in outcomes] == [""] * 4
    (warning,) = outcomes[0][case]["warnings"]
    assert warning.startswith(expected)
    assert [rank[case]["warnings"] for rank in outcomes[1:]] == [[]] * 3
