"""Means over seeds and items with intervals that hold for other seeds and other items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from tolktrain.benchmark.ablations.items import Items

FloatArray = npt.NDArray[np.float64]

_LEVEL = 0.975


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with half the width of its 95 % interval."""

    value: float
    half: float
    seed_half: float | None  # the part of `half` that seeds cause; None with a single seed, whose part is unknown
    item_half: float
    by_seed: tuple[float, ...]


def estimate(runs: Sequence[Items], minus: Sequence[Items] | None = None) -> Estimate:
    """The measure of a variant, or its difference from that of another one on the same seeds and items.

    Per seed, the measure is r_k = sum(values) / sum(weights). The interval of their mean adds two parts in quadrature:
    t s / sqrt(S) for other seeds, with the standard deviation s of r_k over S seeds and Student's t of S - 1 degrees of
    freedom; and 1.96 times the standard error for other items (a ratio's, with items of one text as a cluster), from
    the values averaged over the seeds: e_g = sum over the group of (value - r weight), and
    sqrt(G / (G - 1) sum(e_g^2)) / sum(weights) for G groups.

    Args:
        runs: the items of one measure, a run per seed.
        minus: the same of the other variant, in the same order of seeds.
    """
    first = runs[0]
    for other in (*runs, *(minus or ())):
        assert (other.keys, other.weights) == (first.keys, first.weights), "runs of a sweep have the same items"
    weights = np.array(first.weights)
    values = np.array([run.values for run in runs])  # [seeds, items]
    if minus is not None:
        values = values - np.array([run.values for run in minus])
    ratios = values.sum(axis=1) / weights.sum()
    mean = float(ratios.mean())
    seed_half = _of_seeds(ratios)
    item_half = float(stats.norm.ppf(_LEVEL)) * _item_error(values.mean(axis=0), weights, first.groups, mean)
    half = float(np.hypot(seed_half or 0.0, item_half))
    return Estimate(mean, half, seed_half, item_half, tuple(ratios.tolist()))


def estimate_of_seeds(values: Sequence[float]) -> Estimate:
    """A mean of numbers of whole runs, which have no items: the part of the seeds alone."""
    half = _of_seeds(np.array(values))
    return Estimate(float(np.mean(values)), half or 0.0, half, 0.0, tuple(values))


def _of_seeds(ratios: FloatArray) -> float | None:
    count = len(ratios)
    if count < 2:
        return None
    return float(stats.t.ppf(_LEVEL, count - 1) * ratios.std(ddof=1) / np.sqrt(count))


def _item_error(values: FloatArray, weights: FloatArray, groups: Sequence[str], mean: float) -> float:
    places = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    residuals = np.bincount([places[name] for name in groups], values - mean * weights)
    count = len(residuals)
    if count < 2:
        return 0.0
    return float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / weights.sum())
