"""Durations of units against plain medians."""

import numpy as np

from tolktrain.data.records import Record
from tolktrain.generate.durations import PredictedDurations, fit_durations
from tolktrain.units.base import DurationPredictor


def _record(units: list[int], runs: list[int]) -> Record:
    none = np.zeros(0, np.uint32)
    rows = np.array(units, np.uint16)[:, None]
    return Record("r", "v", none, rows, np.array(runs, np.uint16), none, none, none, np.array([len(units)], np.uint32))


def test_median_of_each_unit() -> None:
    rng = np.random.default_rng(0)
    units, runs = rng.integers(0, 20, 999), rng.integers(1, 9, 999)
    table = fit_durations([_record(units[:500], runs[:500]), _record(units[500:], runs[500:])], 22, 25.0)
    for unit in range(20):
        mine = np.sort(runs[units == unit])
        assert table.frames[unit] == mine[len(mine) // 2]
        assert abs(table.frames[unit] - np.median(mine)) <= 0.5
    assert table.frames[20] == table.frames[21] == np.median(runs)


def test_lengths_and_seconds() -> None:
    table = fit_durations([_record([0, 1, 0, 1], [3, 1, 3, 1])], 3, 25.0)
    said = np.array([[0], [1], [1]])
    assert table.run_lengths(said).tolist() == [3, 1, 1]
    assert table.seconds(said) == 5 / 25
    assert table.seconds(np.zeros((0, 1), np.int64)) == 0.0


def test_no_speech_at_all() -> None:
    assert fit_durations([], 4, 25.0).frames.tolist() == [1, 1, 1, 1]


def test_predicted_seconds_of_growing_units() -> None:
    """The sum of the durations at every length; few units are predicted again."""
    predicted = []

    def predict(units: np.ndarray) -> np.ndarray:
        predicted.append(len(units))
        padded = np.pad(units[:, 0], 2)
        return (1 + np.lib.stride_tricks.sliding_window_view(padded, 5).sum(axis=1) % 7).astype(np.uint16)

    durations = PredictedDurations(DurationPredictor(predict, 2), 25.0)
    units = np.random.default_rng(0).integers(0, 500, (400, 1))
    for length in range(1, 401):
        assert durations.seconds(units[:length]) == predict(units[:length]).sum() / 25
    assert durations.seconds(units[:0]) == 0
    assert durations.run_lengths(units).tolist() == predict(units).tolist()
    del predicted[:]
    for length in range(1, 401):
        durations.seconds(units[:length])
    assert not predicted, "known from the first time"
    fresh = PredictedDurations(durations.predictor, 25.0)
    for length in range(1, 401):
        fresh.seconds(units[:length])
    assert sum(predicted) < 80 * 400 < sum(range(401))
