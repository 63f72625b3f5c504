"""Durations of predicted units. The model predicts units with repeats collapsed, so it predicts no durations."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from tolktrain.data.folder import RecordFolder
from tolktrain.data.records import Record
from tolktrain.data.sequences import IntArray
from tolktrain.units.base import DurationPredictor, Vocoder
from tolktrain.units.windows import windows_with_context

_CACHED_UNITS = 64


class Durations(Protocol):
    """Durations of units."""

    @property
    def neighbours(self) -> int:
        """Units on either side of a unit on which its duration depends."""
        ...

    def run_lengths(self, units: IntArray) -> IntArray:
        """Frames of each row of units [n, K]: [n]."""
        ...

    def seconds(self, units: IntArray) -> float:
        """Duration of units [n, K]."""
        ...


@dataclass(frozen=True)
class PredictedDurations:
    """Frames that each unit lasts between its neighbours, as a vocoder predicts them."""

    predictor: DurationPredictor
    frames_per_second: float

    @property
    def neighbours(self) -> int:
        """Units on either side of a unit on which its duration depends."""
        return self.predictor.neighbours

    def run_lengths(self, units: IntArray) -> IntArray:
        """Frames of each row of units [n, K]: [n]. Raises `UserError` as the vocoder does."""
        return self.predictor.predict(units).astype(np.int64)

    def seconds(self, units: IntArray) -> float:
        """Duration of units [n, K]. Units that grow by one from call to call are not predicted again."""
        frames = 0
        for window in windows_with_context(len(units), _CACHED_UNITS, self.neighbours, self.neighbours):
            part = np.ascontiguousarray(units[window.start : window.end], np.int64)
            frames += self._frames(part.tobytes(), len(part), window.first - window.start, window.last - window.start)
        return frames / self.frames_per_second

    @cached_property
    def _frames(self) -> Callable[[bytes, int, int, int], int]:
        @lru_cache(maxsize=1024)
        def frames(content: bytes, count: int, first: int, last: int) -> int:
            units = np.frombuffer(content, np.int64).reshape(count, -1)
            return int(self.run_lengths(units)[first:last].sum())

        return frames


@dataclass(frozen=True)
class DurationTable:
    """Frames that each unit lasts: the median of its run lengths in the training records."""

    frames: IntArray  # [num_units], of the units of the first codebook
    frames_per_second: float
    neighbours = 0  # units on either side of a unit on which its duration depends

    def run_lengths(self, units: IntArray) -> IntArray:
        """Frames of each row of units [n, K]: [n]."""
        return self.frames[units[:, 0]]

    def seconds(self, units: IntArray) -> float:
        """Duration of units [n, K]."""
        return float(self.run_lengths(units).sum()) / self.frames_per_second


def fit_durations(records: Iterable[Record], num_units: int, frames_per_second: float) -> DurationTable:
    """Median run length of each unit, rounded up from the half; units that never occur get the median of all."""
    units, run_lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for record in records:
        if record.has_speech:
            units.append(record.units[:, 0].astype(np.int64))
            run_lengths.append(record.run_lengths.astype(np.int64))
    unit, run = np.concatenate(units), np.concatenate(run_lengths)
    order = np.lexsort((run, unit))
    unit, run = unit[order], run[order]
    begins = np.searchsorted(unit, np.arange(num_units))
    counts = np.bincount(unit, minlength=num_units)
    everywhere = int(np.median(run)) if len(run) else 1
    frames = np.full(num_units, everywhere, np.int64)
    seen = counts > 0
    frames[seen] = run[begins[seen] + counts[seen] // 2]
    return DurationTable(frames, frames_per_second)


def choose_durations(
    vocoder: Vocoder | None,
    open_records: Callable[[], RecordFolder],
    most_records: int,
    num_units: int,
    frames_per_second: float,
) -> Durations:
    """Durations as the vocoder predicts them, or else of the first training records, which are opened only then."""
    if vocoder is not None and vocoder.duration_predictor is not None:
        return PredictedDurations(vocoder.duration_predictor, frames_per_second)
    records = open_records()
    first = (records[index] for index in range(min(len(records), most_records)))
    return fit_durations(first, num_units, frames_per_second)
