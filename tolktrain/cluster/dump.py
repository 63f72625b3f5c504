"""Stacks of all threads and the last collectives of a rank, written to its log when a job fails."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from tolktrain.libraries.torch_compat import ranks_of_groups, recorded_collectives

RECORDED_COLLECTIVES = "400"  # kept by torch's flight recorder; more only take longer to write when the job fails
_COLLECTIVES_SHOWN = 3  # of each process group
_RANKS_SHOWN = 16


def record_collectives() -> None:
    """Let torch record the last collectives. Must be called before the first process group is created."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED_COLLECTIVES)


class DumpFile:
    """A rank's log file, for output that cannot go through `logging`.

    A stuck main thread may hold the lock of a logging handler. If it is stuck in C code, it may hold the interpreter
    lock, and no Python code runs; for this case `arm_timeout` uses a thread that needs no lock.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file for appending.

        From now on, a crash in C code (a segmentation fault, a bus error, an abort) writes all stacks to the file.

        Raises:
            OSError: the file cannot be opened.
        """
        self._lock = threading.Lock()
        self._armed = False
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._had_faulthandler = faulthandler.is_enabled()
        if not self._had_faulthandler:
            faulthandler.enable(self._file)

    def write(self, text: str) -> None:
        """Append a text. If the disk is full, the text is lost without an error."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text.encode("utf-8", "backslashreplace"))

    def arm_timeout(self, seconds: float, or_exit: bool = False) -> None:
        """Write the stacks unless this is called again within `seconds`. Needs no interpreter lock.

        Args:
            seconds: time to the next call.
            or_exit: then also end the process, with exit code 1. Use it only when the job is ending: time in which
                the process is suspended counts too.
        """
        with self._lock:
            if not self._file.closed:
                self._armed = True
                faulthandler.dump_traceback_later(seconds, exit=or_exit, file=self._file)

    def close(self) -> None:
        """Disarm the timeout and close the file. An armed timeout would write to whatever file reuses the number."""
        with self._lock:
            if self._armed:
                faulthandler.cancel_dump_traceback_later()
            if not self._had_faulthandler:
                faulthandler.disable()
            self._file.close()


def describe_process(doing: str, stacks: bool = True) -> str:
    """What this process is doing: `doing`, the last collectives that it entered, and the stacks of all threads, the
    main thread first."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    head = f"process {os.getpid()} at {now}: {doing}\n"
    return f"{head}{_collectives()}{_stacks() if stacks else ''}"


def _stacks() -> str:
    frames, names = sys._current_frames(), {thread.ident: thread.name for thread in threading.enumerate()}
    main, own = threading.main_thread().ident, threading.get_ident()
    ordered = sorted((ident for ident in frames if ident != own), key=lambda ident: ident != main)
    return "".join(f"thread {names.get(ident, ident)!r}:\n{_stack(frames[ident])}" for ident in ordered)


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame))


def _collectives() -> str:
    recorded = recorded_collectives()
    if not recorded:
        return "no collective is recorded\n"
    last: dict[str, list[Mapping[str, Any]]] = {}
    for entry in recorded:
        last.setdefault(str(entry.get("process_group", ["?"])[0]), []).append(entry)
    ranks = {group: _listed(numbers) for group, numbers in ranks_of_groups().items()}
    lines = ["last collectives of each process group, the latest first:"]
    for group, entries in last.items():
        lines.append(f"  group {group} ({ranks.get(group, 'ranks unknown')}):")
        lines += [f"    {_collective(entry)}" for entry in reversed(entries[-_COLLECTIVES_SHOWN:])]
    return "\n".join(lines) + "\n"


def _collective(entry: Mapping[str, Any]) -> str:
    number = entry.get("p2p_seq_id") if entry.get("is_p2p") else entry.get("collective_seq_id")
    shapes = [
        f"{kind}{list(shape)}"
        for kind, shape in zip(entry.get("input_dtypes", []), entry.get("input_sizes", []), strict=False)
    ]
    age = time.time() - entry.get("time_created_ns", 0) / 1e9
    left = entry.get("retired") or entry.get("state") == "completed"
    state = "left" if left else f"NOT left ({entry.get('state', 'state unknown')})"
    return f"{entry.get('profiling_name')} number {number} of {', '.join(shapes)}, entered {age:.1f} s ago, {state}"


def _listed(ranks: list[int]) -> str:
    more = f", ... {len(ranks)} in all" if len(ranks) > _RANKS_SHOWN else ""
    return f"ranks {', '.join(map(str, ranks[:_RANKS_SHOWN]))}{more}"
