"""Intervals of shares and of their differences, by bootstrap over groups of choices that depend on each other."""

from collections.abc import Hashable, Sequence

import numpy as np

from tolktrain.evaluate.ngram import FloatArray

CONFIDENCE = 0.95
_SAMPLES = 2000


def group_sums(values: FloatArray, groups: Sequence[Hashable]) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the values of each group, in the order of their first appearance: two float64 [G]."""
    places = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    index = np.fromiter((places[name] for name in groups), np.int64, len(groups))
    sums = np.bincount(index, values, len(places)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def share_interval(values: FloatArray, groups: Sequence[Hashable]) -> tuple[float, float]:
    """95 % interval of the mean of values in [0, 1], by percentile bootstrap over whole groups with a fixed seed.

    If every value is 0, or every one 1, resampling shows no spread; then the interval is the exact one (Clopper and
    Pearson) for as many independent choices as there are groups.
    """
    sums, counts = group_sums(values, groups)
    mean = float(values.mean())
    if mean in (0.0, 1.0):
        return _exact(mean, len(sums))
    drawn = _resampled(np.stack([sums, counts], axis=1), np.random.default_rng(0))
    return _quantiles(drawn[:, 0] / drawn[:, 1])


def macro_interval(strata: Sequence[FloatArray]) -> tuple[float, float]:
    """The same of the unweighted mean of the strata's means [values each]; values are resampled within each."""
    mean = float(np.mean([values.mean() for values in strata]))
    if mean in (0.0, 1.0):
        return _exact(mean, min(len(values) for values in strata))
    rng = np.random.default_rng(0)
    means = [_resampled(values[:, None], rng)[:, 0] / len(values) for values in strata]
    return _quantiles(np.mean(means, axis=0))


def difference_interval(values: FloatArray, groups: Sequence[Hashable]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences in [-1, 1], by percentile bootstrap over whole groups.

    A difference is that of two models on the same choice, so both models are resampled together. If all groups have the
    same mean, resampling shows no spread; the interval then assumes that among as many independent groups at most the
    share u has another mean, where 1 - (1 - u)^groups = 97.5 %.
    """
    sums, counts = group_sums(values, groups)
    if np.ptp(sums / counts) == 0.0:
        return _without_spread(float(values.mean()), len(sums))
    drawn = _resampled(np.stack([sums, counts], axis=1), np.random.default_rng(0))
    return _quantiles(drawn[:, 0] / drawn[:, 1])


def macro_difference_interval(strata: Sequence[FloatArray]) -> tuple[float, float]:
    """The same of the unweighted mean of the strata's means [values each]; values are resampled within each."""
    if all(np.ptp(values) == 0.0 for values in strata):
        return _without_spread(
            float(np.mean([values.mean() for values in strata])), min(len(values) for values in strata)
        )
    rng = np.random.default_rng(0)
    means = [_resampled(values[:, None], rng)[:, 0] / len(values) for values in strata]
    return _quantiles(np.mean(means, axis=0))


def ratio_interval(parts: FloatArray, wholes: FloatArray) -> tuple[float, float]:
    """95 % interval of sum(parts) / sum(wholes), such as errors per word, by percentile bootstrap over the entries
    [n each], fixed seed. A single entry has no spread."""
    drawn = _resampled(np.stack([parts, wholes], axis=1), np.random.default_rng(0))
    kept = drawn[:, 1] > 0
    return _quantiles(drawn[kept, 0] / drawn[kept, 1])


def _without_spread(mean: float, count: int) -> tuple[float, float]:
    share = 1 - ((1 - CONFIDENCE) / 2) ** (1 / count)
    return max(-1.0, (1 - share) * mean - share), min(1.0, (1 - share) * mean + share)


def _exact(mean: float, count: int) -> tuple[float, float]:
    tail = ((1 - CONFIDENCE) / 2) ** (1 / count)
    return (tail, 1.0) if mean else (0.0, 1 - tail)


def _resampled(rows: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Sums over the rows [n, columns] of bootstrap samples: [samples, columns].

    How often each distinct row is drawn is multinomial. So the cost does not grow with the rows, and their order does
    not matter.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    drawn: FloatArray = rng.multinomial(len(rows), counts / len(rows), size=_SAMPLES) @ distinct
    return drawn


def _quantiles(values: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
