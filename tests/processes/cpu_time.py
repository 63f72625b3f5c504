"""CPU time of the tests' process and all that it has started, for the summary of the most expensive files."""

import contextlib
import os
from pathlib import Path


def cpu_seconds() -> float:
    """User and system time so far, in seconds, of this process and its descendants.

    Of a descendant that has ended, it counts if its parent has waited for it and is a descendant too.
    """
    ticks, processes = 0, [os.getpid()]
    while processes:
        process = Path("/proc") / str(processes.pop())
        with contextlib.suppress(OSError):  # it has ended
            for children in process.glob("task/*/children"):
                processes += map(int, children.read_text().split())
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")
