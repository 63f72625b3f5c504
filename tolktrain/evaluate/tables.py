"""From scores to the numbers of a benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def as_choices(measure: Measure, pairs: Sequence[Pair], won: FloatArray) -> tuple[Sequence[Pair], FloatArray]:
    """What a measure counts: pairs and their points [pairs]; of a choice, its first pair and 0 if another choice has a
    higher score, else 1 divided by the number of choices that share the highest one."""
    if not measure.choice:
        return pairs, won
    questions: dict[tuple[str, str], list[int]] = {}
    for place, pair in enumerate(pairs):
        questions.setdefault((pair.id, pair.voice), []).append(place)
    values = [
        0.0 if (won[own] == 0).any() else 1.0 / (1 + np.count_nonzero(won[own] < 1)) for own in questions.values()
    ]
    return [pairs[own[0]] for own in questions.values()], np.array(values)


@dataclass(frozen=True)
class IdMeans:
    """The pairs of a measure by their ids, which the bootstrap resamples."""

    num_pairs: int
    ids: tuple[str, ...]
    means: FloatArray  # of the values of an id's pairs: [ids]; each voice counts once, as in the ZeroSpeech toolbox
    strata: tuple[FloatArray, ...] | None  # the same by the label over whose values the measure averages

    @property
    def mean(self) -> float:
        """The measure."""
        parts = (self.means,) if self.strata is None else self.strata
        return float(np.mean([part.mean() for part in parts]))


def id_means(measure: Measure, pairs: Sequence[Pair], values: FloatArray) -> IdMeans | None:
    """The values [pairs] of the pairs that the measure takes, averaged for each id. None if it takes none."""
    by_id: dict[str, list[float]] = {}
    label: dict[str, str] = {}
    for pair, value in zip(pairs, values, strict=True):
        if measure.takes(pair):
            by_id.setdefault(pair.id, []).append(float(value))
            label[pair.id] = pair.labels.get(measure.by, "") if measure.by is not None else ""
    if not by_id:
        return None
    means = np.array([np.mean(own) for own in by_id.values()])
    strata = None
    if measure.by is not None:
        own_labels = np.array([label[name] for name in by_id])
        strata = tuple(means[own_labels == name] for name in sorted(set(label.values())))
    return IdMeans(sum(map(len, by_id.values())), tuple(by_id), means, strata)


def measured(measure: Measure, pairs: Sequence[Pair], won: FloatArray) -> dict[str, Any] | None:
    """A measure of pairs whose points are `won` [pairs]: `pairs` (or questions) and `ids` that count, `accuracy`, and
    `low` and `high` of its 95 % bootstrap interval over ids. None if no pair counts."""
    return measured_values(measure, *as_choices(measure, pairs, won))


def measured_values(measure: Measure, pairs: Sequence[Pair], values: FloatArray) -> dict[str, Any] | None:
    """The same of values [pairs] that need not be those of pairs of scores."""
    found = id_means(measure, pairs, values)
    if found is None:
        return None
    if found.strata is None:
        low, high = share_interval(found.means, range(len(found.means)))
    else:
        low, high = macro_interval(found.strata)
    return {"pairs": found.num_pairs, "ids": len(found.ids), "accuracy": found.mean, "low": low, "high": high}
