"""Scripts of this folder as several processes."""

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_SECONDS = 1200  # a hang ends the test, not the day


def launch(script: str, num_processes: int, *arguments: Path) -> str:
    """Run a script under torchrun; returns what it printed. Fails if a process does."""
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
