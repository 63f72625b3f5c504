"""Detects divergence of training from the lines of metrics.jsonl, one after the other."""

import math
import statistics
from collections import deque
from dataclasses import dataclass

from tolktrain.config.training import GuardConfig
from tolktrain.runs.metrics import Line

_DEVIATION_OF_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
_LEAST_DEVIATION = 1e-3  # of the median, so that small changes do not count as spikes when losses hardly differ


@dataclass(frozen=True)
class Incident:
    """Bad steps after which the run is rolled back. Steps are counted over the whole run, from 1."""

    first_step: int  # the first of the consecutive bad steps
    last_step: int
    reason: str  # for messages


class DivergenceDetector:
    """Processes the metrics of a stage step by step.

    A step is bad if it was skipped or its loss spikes above the recent ones. A good step ends a row of bad ones; their
    losses then count as recent losses, because they were outliers of the data.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._recent: deque[float] = deque(maxlen=config.spike_window)
        self._spiking: list[float] = []  # of the present row of bad steps
        self._skipped_in_a_row = 0
        self._first_bad: int | None = None

    @property
    def first_bad(self) -> int | None:
        """The first step of the current row of bad steps, None if the last step was good."""
        return self._first_bad

    def after(self, line: Line) -> Incident | None:
        """Process the line of the next step; returns an incident if the row of bad steps has reached its limit."""
        loss = line["loss"]
        skipped = bool(line["skipped"]) or loss is None or not math.isfinite(loss)
        threshold = self._threshold()
        if not skipped and loss <= threshold:
            self._recent.extend([*self._spiking, loss])
            self._spiking, self._skipped_in_a_row, self._first_bad = [], 0, None
            return None
        step = int(line["step"])
        self._first_bad = step if self._first_bad is None else self._first_bad
        if skipped:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self._config.max_skipped_in_a_row:
                what = f"the losses or gradients of the last {self._skipped_in_a_row} steps were not finite"
                return Incident(self._first_bad, step, what)
            return None
        self._skipped_in_a_row = 0
        self._spiking.append(loss)
        if len(self._spiking) >= self._config.spike_patience:
            median = statistics.median(self._recent)
            what = (
                f"the losses of {len(self._spiking)} steps were above {threshold:.4g}, the last {loss:.4g}; the median"
                f" of the {len(self._recent)} before is {median:.4g}"
            )
            return Incident(self._first_bad, step, what)
        return None

    def _threshold(self) -> float:
        sigmas = self._config.spike_sigma
        if sigmas is None or len(self._recent) < self._config.spike_window:
            return math.inf
        median = statistics.median(self._recent)
        deviation = _DEVIATION_OF_NORMAL * statistics.median(abs(loss - median) for loss in self._recent)
        return median + sigmas * max(deviation, _LEAST_DEVIATION * abs(median))
