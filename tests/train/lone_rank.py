"""`tolktrain train` in a process of its own, whose data or memory fails.

Usage: lone_rank.py FAULT CONFIG [key=value ...]. When it has come about, the file `fault` is there; it holds the number
of the loader process, if the fault is of one.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from tolktrain import cli
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.cluster.watch.alone import LoneWatch
from tolktrain.data.loader import _MicroBatches
from tolktrain.runs.metrics import MetricsFile
from tolktrain.train import run, stage_runner

FAULT, *ARGUMENTS = sys.argv[1:]
MARK = Path("fault")
SHARED_MEMORY_MIB = 8
FAULTY_STEP = 2  # the data of the steps after it
HANG_SECONDS = 5.0  # after that step; to start may take longer


def main() -> int:
    """Train."""
    FAULTS[FAULT]()
    return cli.main(["train", *ARGUMENTS])


def _stick(*_: Any, **__: Any) -> Any:
    MARK.write_text(str(os.getpid()))
    time.sleep(10_000)


def _stick_in_data() -> None:
    real, steps = _MicroBatches.__iter__, FAULTY_STEP

    def batches(self: _MicroBatches) -> Iterator[Any]:
        worker = get_worker_info()
        each = 2 * steps // (1 if worker is None else worker.num_workers)  # of two micro batches a step
        for number, batch in enumerate(real(self)):
            if number == each and (worker is None or worker.id == 0):
                _stick()
            yield batch

    _MicroBatches.__iter__ = batches  # type: ignore[method-assign]


def _hang_in_data() -> None:
    _stick_in_data()
    start, write, watches = LoneWatch.start, MetricsFile.write, list[LoneWatch]()

    def started(self: LoneWatch) -> None:
        watches.append(self)
        start(self)

    def limiting(self: MetricsFile, line: dict[str, Any]) -> None:
        write(self, line)
        if line["step"] == FAULTY_STEP:
            watches[0].limit(HANG_SECONDS)

    LoneWatch.start = started  # type: ignore[method-assign]
    MetricsFile.write = limiting  # type: ignore[method-assign]


def _stick_in_check() -> None:
    run.check_data = _stick


def _stick_in_loader() -> None:
    stage_runner.StageLoader = _stick  # type: ignore[misc,assignment]


def _stick_in_validation() -> None:
    stage_runner.validation_batches = _stick


def _late_checkpoint() -> None:
    save = CheckpointSaver.save

    def late(self: CheckpointSaver, step: int, *arguments: Any, **options: Any) -> None:
        if not MARK.exists():
            MARK.touch()
            while os.path.exists(MARK):
                time.sleep(0.01)
        save(self, step, *arguments, **options)

    CheckpointSaver.save = late  # type: ignore[method-assign]


def _fill_shared_memory() -> None:
    """In a small file system that only this process and its children see."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x20000, 0x44000
    options = f"size={SHARED_MEMORY_MIB}m".encode()
    if (
        libc.unshare(new_mounts)
        or libc.mount(None, b"/", None, private, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options)
    ):
        MARK.write_text(f"no mount: {os.strerror(ctypes.get_errno())}")
        sys.exit()
    write = MetricsFile.write

    def filling(self: MetricsFile, line: dict[str, Any]) -> None:
        write(self, line)
        if line["step"] == FAULTY_STEP and not MARK.exists():
            MARK.touch()
            with open("/dev/shm/ballast", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass

    MetricsFile.write = filling  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    "data": _stick_in_data,
    "data for long": _hang_in_data,
    "check": _stick_in_check,
    "loader": _stick_in_loader,
    "validation": _stick_in_validation,
    "late checkpoint": _late_checkpoint,
    "full shared memory": _fill_shared_memory,
}


if __name__ == "__main__":
    sys.exit(main())
