"""The watchdog of a run of one process: ends the process if it makes no progress. It opens no port."""

import os
import sys
import threading
from functools import partial
from typing import NoReturn

from tolktrain.cluster.dump import describe_process
from tolktrain.cluster.progress import Progress, Whereabouts
from tolktrain.cluster.threads import failed_watchdog, guarded
from tolktrain.cluster.watch.failures import EXIT_FAILED, RankState, no_progress
from tolktrain.cluster.watch.hub import Limits, RunningClock, briefly
from tolktrain.cluster.watch.watchdog import END_TIMEOUTS, EndTimeouts
from tolktrain.files.printable import printable
from tolktrain.files.shared import leave_temporary_folder


class LoneWatch:
    """A thread that observes the main thread, which reports its state through `progress`."""

    def __init__(self, timeouts: EndTimeouts = END_TIMEOUTS) -> None:
        self.progress = Progress()
        self._limits = Limits(world_size=1)
        self._timeouts = timeouts
        self._finished = threading.Event()
        self._thread = guarded("watch", self._run, lambda error: self._end(failed_watchdog(error)))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def limit(self, hang_seconds: float) -> None:
        """Set the configured timeout."""
        self._limits.hang_seconds = hang_seconds

    def finish(self) -> None:
        """End the thread: from now on, the process is not observed."""
        self._finished.set()
        self._thread.join()

    def _run(self) -> None:
        clock = RunningClock()
        seen, since = self.progress.mark, 0.0
        while not self._finished.wait(self._limits.beat_seconds):
            now = clock.tick()
            if self.progress.mark is not seen:
                seen, since = self.progress.mark, now
            if now - since >= self._limits.hang_seconds:
                self._end(self._describe_hang(str(seen), now - since))
            log = self.progress.log
            if log is not None:
                # If another thread is stuck with the interpreter lock, this one cannot run. Then at least the stacks
                # are written.
                log.arm_timeout(self._limits.hang_seconds)

    def _describe_hang(self, at: str, idle_seconds: float) -> str:
        state = RankState(
            0, at=at, idle_seconds=idle_seconds, line=Whereabouts.of_main_thread().line, hint=self.progress.hint()
        )
        return (
            f"{no_progress(state, self._limits.hang_seconds)}; if this takes so long without a fault, raise"
            " parallel.hang_timeout_seconds"
        )

    def _end(self, text: str) -> NoReturn:
        """End the process. Each part in its own thread, because a disk may hang."""
        briefly("watch-print", lambda: print(f"error: {printable(text)}", file=sys.stderr, flush=True))
        log, seconds = self.progress.log, self._timeouts.dump_seconds
        if log is not None:
            log.arm_timeout(self._timeouts.forced_seconds, or_exit=True)
            dump = f"the run ends: {text}\n{describe_process(str(self.progress.mark))}"
            briefly("watch-dump", partial(log.write, dump), seconds)
        briefly("watch-on-end", lambda: self.progress.on_end(text, EXIT_FAILED), seconds)
        briefly("temporary-folder-end", leave_temporary_folder)
        os._exit(EXIT_FAILED)
