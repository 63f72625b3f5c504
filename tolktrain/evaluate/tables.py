"""From scores to the numbers of a benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tolktrain.evaluate.benchmarks.base import Measure, Pair
from tolktrain.evaluate.intervals import macro_interval, share_interval
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.scoring import points


def pair_points(pairs: Sequence[Pair], scores: Mapping[str, float]) -> FloatArray:
    """1, 0.5 or 0 for each pair: float64 [pairs]. Raises KeyError for an item without a score."""
    right = np.array([scores[pair.correct] for pair in pairs])
    wrong = np.array([scores[pair.incorrect] for pair in pairs])
    return points(right, wrong)


def measured(measure: Measure, pairs: Sequence[Pair], won: FloatArray) -> dict[str, Any] | None:
    """A measure of pairs whose points are `won` [pairs]: `pairs` and `ids` that count, `accuracy`, and `low` and `high`
    of its 95 % bootstrap interval over ids. None if no pair counts."""
    kept = [place for place, pair in enumerate(pairs) if measure.takes(pair)]
    if not kept:
        return None
    chosen = [pairs[place] for place in kept]
    ids, means = _means(chosen, won[kept])
    if measure.by is None:
        accuracy = float(means.mean())
        low, high = share_interval(means, range(len(means)))
    else:
        label = {pair.id: pair.labels.get(measure.by, "") for pair in chosen}
        strata: dict[str, list[float]] = {}
        for name, mean in zip(ids, means, strict=True):
            strata.setdefault(label[name], []).append(float(mean))
        groups = [np.array(values) for _, values in sorted(strata.items())]
        accuracy = float(np.mean([values.mean() for values in groups]))
        low, high = macro_interval(groups)
    return {"pairs": len(kept), "ids": len(ids), "accuracy": accuracy, "low": low, "high": high}


def _means(pairs: Sequence[Pair], won: FloatArray) -> tuple[list[str], FloatArray]:
    """The ids, and the mean over the voices of each: [ids]. Each voice counts once, as in the ZeroSpeech toolbox."""
    by_id: dict[str, list[float]] = {}
    for pair, value in zip(pairs, won, strict=True):
        by_id.setdefault(pair.id, []).append(float(value))
    return list(by_id), np.array([np.mean(values) for values in by_id.values()])
