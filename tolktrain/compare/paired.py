"""Paired tests of two models on the same choices."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from tolktrain.evaluate.benchmarks.base import Measure, Pair
from tolktrain.evaluate.intervals import difference_interval, group_sums, macro_difference_interval
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.tables import as_choices, id_means


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947): under the hypothesis that both models are equally good, each of
    the choices that differ favours either with probability 1/2."""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0


def paired_measure(measure: Measure, pairs: Sequence[Pair], first: FloatArray, other: FloatArray) -> Mapping[str, Any]:
    """The other model against the first one, by a measure that takes at least one pair.

    Args:
        measure: of the benchmark.
        pairs: of the set.
        first: points [pairs] of the first model, each 0, 0.5 or 1.
        other: those of the other model.

    Returns:
        `difference` of the accuracies, positive if the other model is better; `low` and `high` of its 95 % interval
        by paired bootstrap over ids; in how many ids the other model has more points (`better`) and fewer (`worse`);
        `p`, McNemar's of these two counts, or None for a mean over types, which weights the ids.
    """
    counted, before = as_choices(measure, pairs, first)
    found = id_means(measure, counted, as_choices(measure, pairs, other)[1] - before)
    assert found is not None
    if found.strata is None:
        low, high = difference_interval(found.means, range(len(found.means)))
    else:
        low, high = macro_difference_interval(found.strata)
    better, worse = _signs(found.means)
    p = mcnemar(better, worse) if found.strata is None else None
    return {"difference": found.mean, "low": low, "high": high, "better": better, "worse": worse, "p": p}


def paired_trials(texts: Sequence[Hashable], first: FloatArray, other: FloatArray) -> Mapping[str, Any]:
    """The same for trials whose points are [trials]; those of one text depend on each other and count as one."""
    values = other - first
    low, high = difference_interval(values, texts)
    better, worse = _signs(group_sums(values, texts)[0])
    p = mcnemar(better, worse)
    return {"difference": float(values.mean()), "low": low, "high": high, "better": better, "worse": worse, "p": p}


def _signs(values: FloatArray) -> tuple[int, int]:
    return int(np.count_nonzero(values > 0)), int(np.count_nonzero(values < 0))
