"""Measures the time of this rank's own work, without waiting for other ranks and without synchronizing with the GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ForwardClock:
    """Time inside the forward passes of training: by events on a GPU, otherwise by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # used again and again
        self._used = 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """A context around a forward pass. A failed pass does not count."""
        if not self._on_gpu:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        if self._used == len(self._events):
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        start, end = self._events[self._used]
        start.record()
        yield
        end.record()
        self._used += 1

    def take(self) -> float:
        """Seconds since the last call. Call it after the step's results were read: then the forward passes are
        complete, and it does not block."""
        seconds, self._seconds = self._seconds, 0.0
        seconds += sum(start.elapsed_time(end) for start, end in self._events[: self._used]) / 1000
        self._used = 0
        return seconds
