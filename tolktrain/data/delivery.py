"""How batches get from the loader processes to the training process, and messages if they do not."""

import os
import re
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tolktrain.data.batch import Batch
from tolktrain.data.shared_memory import shared_memory_folder
from tolktrain.errors import UserError

_STATES = {"D": "waits for a disk or network file system", "T": "is stopped", "R": "computes", "Z": "has ended"}
_ENLARGE = "enlarge it (docker run --shm-size, or mount -o remount,size=...) or free some of it"


def share_batch(batch: Batch) -> None:
    """Move a batch to shared memory. In a loader process, before torch does that in a thread whose errors it drops, so
    that the training process would wait for the batch forever.

    Raises UserError if there is no space, or if no more files can be opened.
    """
    try:
        batch.share_memory()
    except RuntimeError as error:
        reason = re.sub(r"\s+", " ", str(error).splitlines()[0])
        raise UserError(
            f"a loader process cannot put a batch into shared memory ({reason}); {_shared_memory()}; {_ENLARGE}, or"
            " lower data.num_workers (0 needs no shared memory for batches)",
            by_machine=True,
        ) from None


def ended_process(number: int, workers: Sequence[BaseProcess]) -> str:
    """The message about loader process `number`, which has ended although it is still needed."""
    process = workers[number]
    code = process.exitcode or 0
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    causes: dict[int, str] = {
        signal.SIGKILL: "; probably the machine, the container or the job has run out of memory",
        signal.SIGBUS: f"; probably shared memory is full: {_ENLARGE}",
    }
    return (
        f"loader process {number + 1} of {len(workers)} (process {process.pid}) {how}{causes.get(-code, '')};"
        f" {_shared_memory()}; each of the data.num_workers={len(workers)} processes of a rank needs memory: lower"
        " data.num_workers if there is not enough, and run the same command again"
    )


def awaited_process(number: int, workers: Sequence[BaseProcess]) -> str:
    """What is known about loader process `number`, from which the training process expects a batch."""
    process = workers[number]
    return (
        f"it waits for a batch from loader process {number + 1} of {len(workers)} (process {process.pid}, which"
        f" {_doing(process)}); {_shared_memory()}; with data.num_workers=0, the data is read without loader processes"
    )


def _doing(process: BaseProcess) -> str:
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return "has ended"
    # The name in parentheses may itself contain blanks and parentheses.
    return _STATES.get(text.rpartition(")")[2].split()[0].upper(), "waits")


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _shared_memory() -> str:
    folder = shared_memory_folder()
    if folder is None:
        return "the size of shared memory is unknown"
    space = os.statvfs(folder)
    size, free = (blocks * space.f_frsize / 2**20 for blocks in (space.f_blocks, space.f_bavail))
    return f"{folder} has {size:,.0f} MiB, of which {free:,.1f} are free"
