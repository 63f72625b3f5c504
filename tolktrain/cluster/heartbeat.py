r"""heartbeat.json: the state of a run, for external monitoring.

A thread of rank 0 replaces the file every few seconds, also while the main thread computes or saves. So `time` shows
that the process is alive, and `last_step_time` that it makes progress. An alarm for cron, if the file was not replaced
for two minutes, or no step was finished for half an hour:

    f=runs/NAME/heartbeat.json
    age() { echo $(($(date +%s) - $(date -d "$(sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" $f)" +%s))); }
    grep -qE '"state": "(stopped|done)"' $f || [ $(age time) -lt 120 -a $(age last_step_time) -lt 1800 ] ||
        echo "alarm: $f"
"""

import contextlib
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from tolktrain.cluster.progress import Progress
from tolktrain.cluster.threads import guarded

State = Literal["starting", "training", "saving", "stopped", "done", "failed"]

_CLOSING_SECONDS = 5.0  # for a disk that hangs
_LONGEST_REASON = 2000  # characters

logger = logging.getLogger(__name__)


class Heartbeat:
    """Writes heartbeat.json during one start of a run. Failures to write are logged once and do not affect training.

    Fields: `time` of writing, `state`, `doing` and its begin (`doing_since`), `step` and `stage` of the last finished
    step, when that was finished (`last_step_time`; before the first one, when this start began), `loss`,
    `tokens_per_second`, and constants: `pid`, `host`, `slurm_job_id`, `slurm_restart_count`, `world_size`, `layout`,
    `started`. Times are ISO 8601 in UTC, to the second. After the end also `reason`. `note` adds further fields.
    """

    def __init__(
        self,
        path: Path,
        progress: Progress,
        seconds: float,
        facts: Mapping[str, Any],
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """Writes the file `path` every `seconds` while `may_write()` is true; `facts` are further constant fields."""
        self._may_write = may_write
        self._path = path
        self._progress = progress
        self._seconds = seconds
        self._facts = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "slurm_restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "started": _iso(time.time()),
            **facts,
        }
        self._notes: dict[str, Any] = {"step": 0, "stage": "", "last_step_time": self._facts["started"]}
        self._final: State | None = None
        self._complained = False
        self._closed = threading.Event()
        self._thread = guarded("heartbeat", self._run)

    def start(self) -> None:
        """Start the thread, which writes the file at once and then regularly."""
        self._thread.start()

    def note(self, **fields: Any) -> None:
        """Set fields that the file contains from the next time on."""
        self._notes = {**self._notes, **fields}

    def note_step(self, step: int, stage: str, **fields: Any) -> None:
        """Record that a step has just finished."""
        self.note(step=step, stage=stage, last_step_time=_iso(time.time()), **fields)

    def end(self, state: State, reason: str = "") -> None:
        """Write the file for the last time. Only the first call has an effect."""
        if self._final is None:
            self._final = state
            self.note(reason=reason[:_LONGEST_REASON])
            self._closed.set()
            if self._thread.is_alive():
                self._thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        while True:
            # Read before writing: if `end` is called during the write, the file is written once more.
            is_last = self._closed.is_set()
            self._write()
            if is_last:
                return
            self._closed.wait(self._seconds)

    def _write(self) -> None:
        if not self._may_write():
            return
        aside = self._path.with_name(f".tmp-{self._path.name}")
        try:
            aside.write_text(json.dumps(self._content(), indent=2) + "\n", encoding="utf-8")
            os.replace(aside, self._path)
            self._complained = False
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            if not self._complained:
                self._complained = True
                logger.warning("%s cannot be written and becomes stale: %s; training continues", self._path, error)

    def _content(self) -> dict[str, Any]:
        mark = self._progress.mark
        content = {
            "time": _iso(time.time()),
            "state": self._final or _state(mark.doing, mark.step),
            "doing": "" if self._final in ("done", "stopped") else str(mark),
            "doing_since": _iso(mark.time),
            **self._notes,
            **self._facts,
        }
        return {key: _finite(value) for key, value in content.items()}


def _state(doing: str, step: int) -> State:
    if doing.startswith("saving"):
        return "saving"
    return "training" if step else "starting"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
