"""What counts as a divergence: verdicts on series of losses."""

import json
import math
import random
import statistics
from collections.abc import Iterable
from typing import Any

import pytest

from tolktrain.config.training import GuardConfig
from tolktrain.train.rollback.divergence import DivergenceDetector, Incident

WINDOW, SPIKE_STEPS, MOST_SKIPPED = 40, 3, 4


def detector(**options: Any) -> DivergenceDetector:
    settings = {"spike_window": WINDOW, "spike_patience": SPIKE_STEPS, "max_skipped_in_a_row": MOST_SKIPPED, **options}
    return DivergenceDetector(GuardConfig(**settings))


def lines(losses: Iterable[float | None], first: int = 1) -> list[dict[str, Any]]:
    """Lines of metrics; a loss of None or infinity is that of a skipped step, as the file or the run has it."""
    return [
        {"step": step, "loss": loss, "skipped": int(loss is None or not math.isfinite(loss))}
        for step, loss in enumerate(losses, start=first)
    ]


def first_incident(detector: DivergenceDetector, series: Iterable[dict[str, Any]]) -> Incident | None:
    return next((incident for line in series if (incident := detector.after(line)) is not None), None)


def healthy(count: int, seed: int = 0, level: float = 3.0, noise: float = 0.1) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(level, noise) for _ in range(count)]


def test_skipped_steps_in_a_row() -> None:
    bad: list[float | None] = [None, math.nan, math.inf]
    assert first_incident(detector(), lines([3.0, *bad, 3.0, *bad, 3.0])) is None
    found = first_incident(detector(), lines([3.0, 3.0, *bad, None, 3.0]))
    assert found is not None and (found.first_step, found.last_step) == (3, 6)
    assert "the last 4 steps were not finite" in found.reason


def test_a_spike_is_several_losses_in_a_row() -> None:
    base = healthy(60)
    assert first_incident(detector(), lines([*base, 9.0, 9.0, 3.0, 9.0, 9.0, 3.0, 1e6])) is None
    found = first_incident(detector(), lines([*base, 9.0, 8.0, 7.5]))
    assert found is not None and (found.first_step, found.last_step) == (61, 63)
    median = statistics.median(base[-WINDOW:])
    assert f"the last 7.5; the median of the {WINDOW} before is {median:.4g}" in found.reason


def test_the_threshold_is_that_of_median_and_deviation() -> None:
    base = [3.0, 3.1, 2.9, 3.3] * (WINDOW // 4)  # median 3.05, median absolute deviation 0.1
    threshold = 3.05 + 8 * 1.4826 * 0.1
    assert first_incident(detector(), lines([*base, *[threshold - 1e-6] * 10])) is None
    assert first_incident(detector(), lines([*base, *[threshold + 1e-6] * SPIKE_STEPS])) is not None
    assert first_incident(detector(spike_sigma=9.0), lines([*base, *[threshold + 1e-6] * SPIKE_STEPS])) is None


def test_not_downwards_not_before_the_window_is_full_and_not_when_switched_off() -> None:
    assert first_incident(detector(), lines([*healthy(60), *[0.1] * 10])) is None
    assert first_incident(detector(), lines([*healthy(WINDOW - 10), *[50.0] * 10])) is None
    assert first_incident(detector(), lines([*healthy(WINDOW), *[50.0] * 10])) is not None
    assert first_incident(detector(spike_sigma=None), lines([*healthy(60), *[50.0] * 10])) is None


def test_losses_that_hardly_differ_are_no_reason_to_call_the_next_a_spike() -> None:
    assert first_incident(detector(), lines([3.0] * WINDOW + [3.0 * 1.007] * 10)) is None
    assert first_incident(detector(), lines([3.0] * WINDOW + [3.0 * 1.009] * SPIKE_STEPS)) is not None


def test_skipped_and_spiking_steps_belong_to_one_row() -> None:
    found = first_incident(detector(), lines([*healthy(60), 9.0, None, 9.0, None, 9.0]))
    assert found is not None and (found.first_step, found.last_step) == (61, 65) and "were above" in found.reason
    found = first_incident(detector(), lines([*healthy(60), 9.0, *[None] * MOST_SKIPPED]))
    assert found is not None and (found.first_step, found.last_step) == (61, 65) and "not finite" in found.reason


def test_outliers_do_not_move_the_threshold_but_a_change_of_level_is_not_learned_either() -> None:
    """A loss that stays up must be found even when spike_patience is longer than half the window."""
    series = lines([*healthy(60), *[9.0] * 100])
    found = first_incident(detector(spike_patience=WINDOW * 2), series)
    assert found is not None and found.last_step == 60 + WINDOW * 2


@pytest.mark.parametrize("seed", range(5))
def test_the_defaults_let_noisy_and_falling_losses_pass(seed: int) -> None:
    rng = random.Random(seed)
    falling = [2.0 + 5.0 * math.exp(-step / 300) + rng.gauss(0, 0.15) for step in range(5000)]
    heavy = [loss * (1.5 if rng.random() < 0.05 else 1.0) for loss in falling]  # one batch in twenty is much harder
    assert first_incident(DivergenceDetector(GuardConfig()), lines(heavy)) is None


@pytest.mark.parametrize("cut", [1, 39, 40, 61, 62, 64])
def test_a_judge_that_reads_the_lines_again_decides_the_same(cut: int) -> None:
    series = lines([*healthy(60), 9.0, None, 9.0, 3.0, 9.0, 9.0, None, None, 9.0])
    expected = first_incident(detector(), series)
    assert expected is not None and expected.first_step == 65
    again = detector()
    written = [{**line, "loss": None if line["loss"] is None else line["loss"]} for line in series[:cut]]
    assert first_incident(again, json.loads(json.dumps(written))) is None
    assert first_incident(again, series[cut:]) == expected
