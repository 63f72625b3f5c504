"""Somebody else listens where the ranks are to meet: rank 0 says so, and how to choose another port.

It does before it imports torch, which takes a minute from some file systems.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path


def test_rank_zero_names_the_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TOLKTRAIN_JOB_SECRET": "0" * 64}
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "tolktrain", "train", "absent.yaml"],
            env={**os.environ, **group, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert done.returncode == 2
    assert f"rank 0 cannot open the rendezvous at localhost:{port}" in done.stderr
    assert "another process listens there; set MASTER_PORT to a free port" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "socket" in imported and "torch" not in imported
    assert not list(tmp_path.iterdir())
