"""`tolktrain train` of which one rank is slow, hangs, or gets a signal while it starts.

Usage: disturbed_rank.py DISTURBANCE CONFIG [key=value ...].
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tolktrain import cli
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.watch.watchdog import Describe, Watch
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.train import stage_runner
from tolktrain.train.callbacks import stopping
from tolktrain.train.loop import StageRun, timed

DISTURBANCE, *ARGUMENTS = sys.argv[1:]
SLOW_SECONDS = 0.4  # at least; on a slow machine, longer than what differs by chance
HANG_SECONDS = 5.0  # from the step that hangs on; to start may take longer
LAST_SLOW_FORWARD = 6  # rank 1's forward passes are slow until this step, rank 0's data after it

_rank = ProcessEnvironment.detect().rank
_runs: list[StageRun] = []
_watches: list[Watch] = []


def main() -> int:
    """Train."""
    if DISTURBANCE.startswith("signal at "):
        _signal_at(DISTURBANCE.removeprefix("signal at "))
    else:
        _disturb_data()
    if DISTURBANCE == "slow":
        _slow_forward()
    if DISTURBANCE == "hang":
        _keep_watch()
    if DISTURBANCE == "hang with a signal":
        stopping._UNSAVED_SECONDS = 1.0
    return cli.main(["train", *ARGUMENTS])


def _signal_at(place: str) -> None:
    at = Progress.at

    def signalled(self: Progress, doing: str) -> None:
        at(self, doing)
        if doing == place and (_rank == 1 or doing.startswith("joining")):
            os.kill(os.getpid(), signal.SIGUSR1)

    Progress.at = signalled


def _keep_watch() -> None:
    start = Watch.start

    def started(environment: ProcessEnvironment, describe: Describe) -> Watch:
        _watches.append(start(environment, describe))
        return _watches[0]

    Watch.start = started


def _disturb_data() -> None:
    def disturbed(batches: Iterable[Any], run: StageRun) -> Iterator[Any]:
        _runs.append(run)

        def late() -> Iterator[Any]:
            last = 0.0  # step, until its end on the other rank
            for batch in batches:
                if DISTURBANCE == "slow" and _rank == 0 and run.step >= LAST_SLOW_FORWARD:
                    time.sleep(max(SLOW_SECONDS, last))
                if DISTURBANCE == "hang" and run.step == 2:
                    _watches[0].limit(HANG_SECONDS)
                if DISTURBANCE.startswith("hang") and _rank == 1 and run.step == 2:
                    if DISTURBANCE == "hang with a signal":
                        os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(10_000)
                started = time.monotonic()
                yield batch
                last = time.monotonic() - started

        return timed(late(), run)

    stage_runner.timed = disturbed


def _slow_forward() -> None:
    carry = SmolTolk.carry

    def slow(self: SmolTolk, state: Any) -> Any:
        started = time.monotonic()
        carried = carry(self, state)
        if _rank == 1 and self.training and _runs[-1].step < LAST_SLOW_FORWARD:
            # In each of two micro batches, and for at least as long as forward and backward pass take.
            time.sleep(max(SLOW_SECONDS / 2, 3 * (time.monotonic() - started)))
        return carried

    SmolTolk.carry = slow


if __name__ == "__main__":
    sys.exit(main())
