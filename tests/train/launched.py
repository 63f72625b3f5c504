"""Scripts of this folder as several processes."""

import os
import subprocess
import sys
from pathlib import Path

from warm import Warm, wait_for_all

TIMEOUT_SECONDS = 1200  # a hang ends the test, not the day


def launch(warm: Warm, script: str, num_processes: int, *arguments: Path) -> str:
    """Run a script as ranks forked from a warm process; returns what they printed. Fails if one does."""
    ranks = warm.start_ranks(num_processes, Path(__file__).with_name(script), *arguments)
    codes = wait_for_all(ranks, TIMEOUT_SECONDS)
    printed = "".join(rank.output for rank in ranks)
    assert not any(codes), (codes, printed, *(rank.errors for rank in ranks))
    return printed


def launch_by_torchrun(script: str, num_processes: int, *arguments: Path) -> str:
    """The same under torchrun, with imports of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    done = subprocess.run(
        [*launcher, str(Path(__file__).with_name(script)), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launch_two(warm: Warm, script: Path, *arguments: str, folder: Path | None = None) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of a script as two ranks, started as srun does."""
    ranks = warm.start_ranks(2, script, *arguments, folder=folder)
    try:
        codes = [rank.wait(240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return codes, [rank.errors for rank in ranks]
