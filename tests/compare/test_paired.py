"""The paired tests against references that are written from their definitions."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.stats import norm

from tolktrain.compare.paired import mcnemar, paired_measure, paired_trials
from tolktrain.evaluate.benchmarks.base import Measure, Pair


def _exact(better: int, worse: int) -> float:
    """The probability of a split at least as uneven, of so many fair coins."""
    number = better + worse
    uneven = [k for k in range(number + 1) if abs(2 * k - number) >= abs(better - worse)]
    return float(Fraction(sum(comb(number, k) for k in uneven), 2**number))


@pytest.mark.parametrize("better", [0, 1, 4, 12, 60])
@pytest.mark.parametrize("worse", [0, 1, 5, 12, 31])
def test_mcnemar_is_the_exact_binomial_test(better: int, worse: int) -> None:
    assert mcnemar(better, worse) == pytest.approx(_exact(better, worse), rel=1e-9)


def test_mcnemar_of_published_counts() -> None:
    """Ten choices that differ, one against nine: 22 / 1024."""
    assert mcnemar(1, 9) == pytest.approx(22 / 1024, rel=1e-12)


def _random(seed: int, num_ids: int = 120) -> tuple[list[Pair], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = ("agreement", "agreement", "npi")
    pairs = [
        Pair(str(n), f"{n}{v}+", f"{n}{v}-", v, {"type": kinds[n % 3]})
        for n in range(num_ids)
        for v in "ABC"[: 1 + n % 3]
    ]
    first = rng.choice([0.0, 0.5, 1.0], len(pairs), p=[0.35, 0.05, 0.6])
    other = np.where(rng.random(len(pairs)) < 0.3, rng.choice([0.0, 1.0], len(pairs), p=[0.2, 0.8]), first)
    return pairs, first, other


def _means(pairs: list[Pair], values: np.ndarray) -> dict[str, float]:
    return {name: float(np.mean([v for p, v in zip(pairs, values, strict=True) if p.id == name])) for name in
            dict.fromkeys(p.id for p in pairs)}  # fmt: skip


@pytest.mark.parametrize("by", [None, "type"])
def test_interval_is_that_of_drawing_ids_for_both_models_together(by: str | None) -> None:
    pairs, first, other = _random(1)
    found = paired_measure(Measure("m", by=by), pairs, first, other)
    mine, its = (np.array(list(_means(pairs, values).values())) for values in (first, other))
    kinds = np.array([{p.id: p.labels["type"] for p in pairs}[name] for name in _means(pairs, first)])
    strata = [np.arange(len(mine))] if by is None else [np.flatnonzero(kinds == kind) for kind in sorted(set(kinds))]
    rng = np.random.default_rng(99)
    drawn = np.empty(8000)
    for sample in range(len(drawn)):
        chosen = [rng.choice(stratum, len(stratum)) for stratum in strata]
        drawn[sample] = np.mean([its[own].mean() for own in chosen]) - np.mean([mine[own].mean() for own in chosen])
    assert found["difference"] == pytest.approx(
        np.mean([its[s].mean() for s in strata]) - np.mean([mine[s].mean() for s in strata]), rel=1e-12
    )
    expected = np.quantile(drawn, [0.025, 0.975])
    tolerance = 0.3 * drawn.std()  # five standard errors of a quantile of 2,000 samples
    assert [found["low"], found["high"]] == pytest.approx(list(expected), abs=tolerance)
    assert (found["better"], found["worse"]) == (int((its > mine).sum()), int((its < mine).sum()))
    assert found["p"] == (None if by else pytest.approx(_exact(found["better"], found["worse"]), rel=1e-9))


def test_pairing_makes_use_of_what_the_models_have_in_common() -> None:
    """Two models that differ in few choices: a twentieth of the width that independent samples would have."""
    pairs = [Pair(str(n), f"{n}+", f"{n}-") for n in range(2000)]
    first = (np.arange(2000) % 2).astype(float)
    other = first.copy()
    other[:10:2] = 1.0
    found = paired_measure(Measure("m"), pairs, first, other)
    independent = 2 * norm.ppf(0.975) * np.sqrt(2 * 0.25 / 2000)
    assert found["low"] > 0 and found["high"] - found["low"] < independent / 10
    assert (found["better"], found["worse"], found["p"]) == (5, 0, pytest.approx(2 / 32))


def test_trials_of_a_text_count_as_one() -> None:
    rng = np.random.default_rng(2)
    first, other = rng.integers(0, 2, (2, 30)).astype(float)
    once = paired_trials(list(range(30)), first, other)
    copies = paired_trials(np.repeat(np.arange(30), 20).tolist(), np.repeat(first, 20), np.repeat(other, 20))
    assert copies == pytest.approx(once)
    assert paired_trials(list(range(600)), np.repeat(first, 20), np.repeat(other, 20))["p"] < once["p"]


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0])
def test_equal_differences_still_have_an_interval(shift: float) -> None:
    """With 40 ids, a share of 1 - 0.025 ** (1 / 40) of others is never seen in one case of 40."""
    pairs = [Pair(str(n), f"{n}+", f"{n}-") for n in range(40)]
    first = np.zeros(40) if shift >= 0 else np.ones(40)
    found = paired_measure(Measure("m"), pairs, first, first + shift)
    share = 1 - 0.025 ** (1 / 40)
    expected = {0.0: (-share, share), 1.0: (1 - 2 * share, 1.0), -1.0: (-1.0, 2 * share - 1)}[shift]
    assert (found["low"], found["high"]) == pytest.approx(expected, rel=1e-12)
    assert found["difference"] == shift
