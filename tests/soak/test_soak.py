"""A few of the kills and full disks of `soak.py`, always the same ones."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `soak`

from soak import Soak
from warm import Warm

pytestmark = pytest.mark.slow

STEPS = (4, 4, 6)  # in each stage: a third of those of the runs that are killed by the hundred


@pytest.fixture(scope="module")
def soak(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """Runs with their processes."""
    return Soak(warm, tmp_path_factory.mktemp("soak"), seed=6, steps=STEPS)


@pytest.mark.parametrize(
    ("count", "ranks", "background"),
    [(4, 1, True), (3, 1, False), (3, 2, True)],
    ids=["background", "foreground", "two ranks"],
)
def test_killed_runs_lose_nothing(soak: Soak, count: int, ranks: int, background: bool) -> None:
    before = soak.findings.kills
    soak.kill(count, ranks, background)
    assert soak.findings.kills == before + count


def test_a_full_disk_loses_nothing(soak: Soak) -> None:
    if os.geteuid() != 0:
        pytest.skip("a disk of its own (tmpfs) needs root")
    soak.fill_disks(3)
    soak.fill_disks(1, ranks=2)
    assert soak.findings.full_disks == 4 and soak.findings.refused_by_disk >= 1
