"""`tolktrain train` of which rank 1 fails after its third step.

Usage: failing_rank.py FAILURE CONFIG [key=value ...].
"""

import os
import signal
import sys
import time

from tolktrain import cli
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.watch.watchdog import Describe, Watch
from tolktrain.train import stage_runner
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.loop import StageRun, run_stage

FAILURE, *ARGUMENTS = sys.argv[1:]
HANG_SECONDS = 5.0  # once training runs; its start may take longer on a busy machine


class Failing(NoCallback):
    """What goes wrong."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_step(self, run: StageRun) -> None:
        """After the third step."""
        if run.step == 2 and FAILURE == "sleep":
            self._watch.limit(HANG_SECONDS)
        if run.step != 3 or ProcessEnvironment.detect().rank != 1:
            return
        if FAILURE == "defect":
            raise ZeroDivisionError("a defect")
        if FAILURE == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAILURE == "sleep":
            time.sleep(10_000)


def main() -> int:
    """Train."""
    watches: list[Watch] = []
    start = Watch.start

    def started(environment: ProcessEnvironment, describe: Describe) -> Watch:
        watches.append(start(environment, describe))
        return watches[0]

    Watch.start = started
    stage_runner.run_stage = lambda run, batches, callbacks: run_stage(run, batches, [Failing(watches[0]), *callbacks])
    return cli.main(["train", *ARGUMENTS])


if __name__ == "__main__":
    sys.exit(main())
