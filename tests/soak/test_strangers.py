"""A training of two ranks whose watchdog's port is attacked from the first moment on trains as if nobody did."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `strangers`
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # for `small_runs`

from small_runs import read_metrics, write_sets
from strangers import ATTACKS, Attacker, Training
from warm import Warm

pytestmark = pytest.mark.slow

STEPS = (15, 10, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data sets."""
    folder = tmp_path_factory.mktemp("strangers")
    write_sets(folder / "sets")
    return folder


def test_attacks_of_all_kinds_change_nothing(warm: Warm, folder: Path) -> None:
    """Rank 1 comes in while they continue; the port stays open, so that they reach rank 0 until the end."""
    quiet, attacked = Training(warm, folder / "quiet"), Training(warm, folder / "attacked")
    attackers: list[Attacker] = []
    try:
        quiet.start(STEPS, folder / "sets")
        quiet.start_rank(1)
        assert quiet.wait() == [0, 0], quiet.errors()
        attacked.start(STEPS, folder / "sets")
        attackers += [Attacker(kind, attacked.port, 600) for kind in ATTACKS]
        attacked.start_rank(1)
        assert attacked.wait() == [0, 0], attacked.errors()
    finally:
        for attacker in attackers:
            attacker.stop()
        quiet.stop()
        attacked.stop()
    assert read_metrics(attacked.run_dir) == read_metrics(quiet.run_dir)
    assert attacked.steps == sum(STEPS)
    assert "error" not in attacked.errors()
