"""Times of whole steps and the memory they take."""

import contextlib
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tolktrain.benchmark.providers import Runner
from tolktrain.data.batch import Batch
from tolktrain.parallel.collectives import all_gather_objects

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Measurement:
    """Times of one provider's steps; with several processes, of the slowest and the fullest of them."""

    seconds: tuple[float, ...]  # of each step
    peak_memory_gib: float | None  # of the GPU, or of the process where there is none and the system tells
    peak_reserved_gib: float | None  # of the GPU: what PyTorch's allocator holds, pieces between tensors included
    first_loss: float  # of the first warm-up step; equal for providers that compute the same
    skipped: int  # steps whose gradients were not finite

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """Seconds per step that 20, 50 and 80 % of the steps stay below."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0], self.seconds[0]
        cuts = statistics.quantiles(self.seconds, n=5, method="inclusive")
        return cuts[0], statistics.median(self.seconds), cuts[3]


def measure(
    runner: Runner,
    steps: Sequence[Sequence[Batch]],
    num_warmup: int,
    device: torch.device,
    largest: Sequence[Sequence[Batch]] = (),
) -> Measurement:
    """Run steps and time all except the first `num_warmup`; synchronizes with the device around each step.

    The steps in `largest`, which need most memory, follow the warm-up. They count for the peak memory and are not
    timed. Collective if there are several processes.
    """
    outcomes = [runner.step(batches) for batches in steps[:num_warmup]]
    is_reset = _reset_peak(device)
    outcomes += [runner.step(batches) for batches in largest]
    seconds = []
    for batches in steps[num_warmup:]:
        _wait_for(device)
        started = time.perf_counter()
        outcomes.append(runner.step(batches))
        _wait_for(device)
        seconds.append(time.perf_counter() - started)
    skipped = sum(outcome.skipped for outcome in outcomes)
    reserved = torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None
    peak = _peak_gib(device) if is_reset else None
    mine = Measurement(tuple(seconds), peak, reserved, outcomes[0].loss, skipped)
    return of_all(all_gather_objects(mine))


def of_all(ranks: Sequence[Measurement]) -> Measurement:
    """Each step takes as long as its slowest rank; memory is that of the fullest one."""
    first = ranks[0]
    peaks = [rank.peak_memory_gib for rank in ranks if rank.peak_memory_gib is not None]
    reserved = [rank.peak_reserved_gib for rank in ranks if rank.peak_reserved_gib is not None]
    return replace(
        first,
        seconds=tuple(map(max, zip(*(rank.seconds for rank in ranks), strict=True))),
        peak_memory_gib=max(peaks, default=None),
        peak_reserved_gib=max(reserved, default=None),
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> bool:
    """Reset the peak memory; returns whether that was possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:  # another system, or one that forbids it
        return False
    return True


def _peak_gib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
        return int(found[1]) / 2**20 if found else None
    return None
