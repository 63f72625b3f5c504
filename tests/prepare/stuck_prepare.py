"""`tolktrain prepare` that comes to a place and stays there: PLACE HOW MARKER prepare CONFIG [GRACE_SECONDS].

Its processes import this file too, and are as stuck.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any

from worker_tasks import never_return

from tolktrain.cli import main
from tolktrain.cluster.signals import StopRequest
from tolktrain.prepare.job import pipeline
from tolktrain.prepare.recordings.manifest import jsonl
from tolktrain.units.logmel import LogMelTokenizer

PLACES: Mapping[str, tuple[Any, str]] = {
    "manifest": (jsonl, "utterance_of"),
    "fit": (LogMelTokenizer, "fit_from"),
    "part": (pipeline, "do_part"),
    "last step": (pipeline, "_write_tokenizers"),
}


def busy() -> None:
    """Python that never ends."""
    while True:
        pass


def waiting() -> None:
    """A system call that never ends."""
    while True:
        time.sleep(1_000)


def swallowing() -> None:
    """A library that takes every exception for one of its own."""
    while True:
        try:
            waiting()
        except BaseException:  # noqa: BLE001, S112 - that is the point
            continue


WAYS: Mapping[str, Callable[[], None]] = {
    "busy": busy,
    "waiting": waiting,
    "swallowing": swallowing,
    "in C": never_return,
}


def _stuck(*_: object, **__: object) -> None:
    Path(sys.argv[3]).touch()
    WAYS[sys.argv[2]]()


setattr(*PLACES[sys.argv[1]], _stuck)
if len(sys.argv) > 6:
    StopRequest.raised = partialmethod(StopRequest.raised, float(sys.argv[6]))  # type: ignore[assignment]
if __name__ == "__main__":
    sys.exit(main(sys.argv[4:6]))
