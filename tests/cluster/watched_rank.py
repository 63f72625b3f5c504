"""A rank that trains nothing, watched over as `tolktrain train` is: it adds numbers with the others, step by step.

Usage: watched_rank.py FAILURE RANK HANG_SECONDS. FAILURE is what happens to rank RANK in step 3; the rank writes
its process id to pid-RANK in the working folder before.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.watch import Watch, collective_timeout
from tolktrain.config.errors import UserError

NUM_STEPS = 5


def work(watch: Watch, environment: ProcessEnvironment, failure: str, hang_seconds: float) -> None:
    """Steps, of which the third goes wrong."""
    fails = environment.rank == int(sys.argv[2])
    if failure == "early" and fails:
        raise UserError("bad from the start")
    if failure == "all-early":
        raise UserError("bad for all")
    environment.export()
    watch.progress.at("joining")
    dist.init_process_group("gloo", timeout=collective_timeout(hang_seconds))
    for step in range(1, NUM_STEPS + 1):
        watch.progress.at_step("second", step, "adding")
        if step == 3 and failure == "all":
            raise UserError("all refuse")
        if step == 3 and fails:
            if failure == "refuse":
                raise UserError("of no use")
            if failure == "defect":
                raise ZeroDivisionError("a defect")
            Path(f"pid-{environment.rank}").write_text(str(os.getpid()))
            if failure in ("sleep", "signal"):
                time.sleep(10_000)
        dist.all_reduce(torch.ones(1))
        watch.progress.at("after adding")
    dist.destroy_process_group()


def main() -> int:
    """Work and report."""
    failure, hang_seconds = sys.argv[1], float(sys.argv[3])
    environment = ProcessEnvironment.detect()
    watch = Watch.start(environment)
    watch.limit(hang_seconds)
    try:
        work(watch, environment, failure, hang_seconds)
    except Exception as error:
        watch.fail(error, f"{type(error).__name__}: {error}", 2 if isinstance(error, UserError) else 1)
    return watch.finish(0)


if __name__ == "__main__":
    sys.exit(main())
