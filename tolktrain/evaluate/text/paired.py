"""Intervals of mean accuracies of several tasks, and of their differences between two models."""

from collections.abc import Sequence

import numpy as np

from tolktrain.evaluate.intervals import CONFIDENCE
from tolktrain.evaluate.ngram import FloatArray

_SAMPLES = 2000

Strata = Sequence[FloatArray]  # the values of each task [items]


def mean_interval(strata: Strata, weights: Sequence[float] | None = None, lowest: float = 0.0) -> tuple[float, float]:
    """95 % interval of the mean of the tasks' means, by percentile bootstrap over the items of each, fixed seed.

    Values are shares, or differences of shares. If all are equal, resampling shows no spread; then each end
    is as far away as the share of other values that the exact interval (Clopper and Pearson) allows.

    Args:
        strata: the values of each task.
        weights: of the tasks; all the same if None.
        lowest: the lowest possible value, -1 for differences.
    """
    values = np.concatenate(strata)
    if (values == values[0]).all():
        spread = 1 - ((1 - CONFIDENCE) / 2) ** (1 / min(map(len, strata)))
        return max(lowest, float(values[0]) - spread), min(1.0, float(values[0]) + spread)
    rng = np.random.default_rng(0)
    drawn = np.average([_means(part, rng) for part in strata], axis=0, weights=weights)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _means(values: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Means of bootstrap samples: [samples]. How often each distinct value is drawn is multinomial."""
    distinct, counts = np.unique(values, return_counts=True)
    means: FloatArray = rng.multinomial(len(values), counts / len(values), size=_SAMPLES) @ distinct / len(values)
    return means
