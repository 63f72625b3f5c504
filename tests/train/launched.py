"""Scripts of this folder as several processes."""

import os
import socket
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


def launch_two(script: Path, *arguments: str, folder: Path | None = None) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of a script as two ranks, started as srun does."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], errors
