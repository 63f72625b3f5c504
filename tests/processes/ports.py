"""Ports for servers and groups of processes that tests start."""

import os
import random
import socket
from pathlib import Path

_FIRST = 30_000  # those below belong to jobs of Slurm (tolktrain/cluster/environment.py)
_WORKERS = 8  # test processes that never choose the same port
_ALONE = f"gw{_WORKERS - 1}"  # a session of one process, which may run at the same time as one with workers


def free_port() -> int:
    """A port of this machine that nobody uses, for a process that will listen on it a little later.

    The kernel would give one out of those for outgoing connections, any of which could take it meanwhile; this one is
    below them, and belongs to this test process alone among those of one session.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", _ALONE).removeprefix("gw")) % _WORKERS
    own = range(_FIRST + worker, end, _WORKERS)
    for port in random.SystemRandom().sample(own, len(own)):  # hypothesis seeds the usual one
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
