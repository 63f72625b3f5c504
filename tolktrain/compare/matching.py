"""Checks that the scores of runs are of the same items, so that they can be compared pair by pair."""

from collections import Counter
from collections.abc import Collection, Sequence

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import MOST_NAMED, Pair
from tolktrain.evaluate.score_files import SetScores


def require_same(what: str, kind: str, runs: Sequence[tuple[str, Collection[str]]], advice: str) -> None:
    """Raise `UserError` unless all runs have the same names; it counts and names those of one run only.

    Args:
        what: the benchmark and the set, or another thing that the names belong to.
        kind: what the names are, in the plural.
        runs: each with its names.
        advice: how to correct it.
    """
    (first, expected), *others = runs
    for other, names in others:
        differing = [
            f"{len(only)} only in {run} ({', '.join(only[:MOST_NAMED])}{', ...' if len(only) > MOST_NAMED else ''})"
            for run, only in (
                (first, sorted(set(expected) - set(names))),
                (other, sorted(set(names) - set(expected))),
            )
            if only
        ]
        if differing:
            raise UserError(f"{what}: the {kind} differ: {'; '.join(differing)}; {advice}")


def ordered_pairs(path: object, name: str, scores: SetScores) -> list[Pair]:
    """The pairs of a set in an order that does not depend on the file. Raises `UserError` naming a doubled one."""
    keys = {pair_name(pair): pair for pair in scores.pairs}
    if len(keys) < len(scores.pairs):
        [(twice, _)] = Counter(map(pair_name, scores.pairs)).most_common(1)
        raise UserError(f"{path}: {name} has the pair {twice} twice; evaluate the benchmark again")
    return [keys[key] for key in sorted(keys)]


def pair_name(pair: Pair) -> str:
    """A pair in messages; different for all pairs of a set."""
    voice = f", {pair.voice}" if pair.voice else ""
    labels = "".join(f", {key} {value}" for key, value in sorted(pair.labels.items()))
    return f"{pair.id} ({pair.correct} / {pair.incorrect}{voice}{labels})"


def require_same_tokens(what: str, runs: Sequence[tuple[str, SetScores]], advice: str) -> None:
    """Raise `UserError` unless the items that all runs have scored have the same numbers of tokens in all."""
    counts = [(run, _token_counts(scores)) for run, scores in runs]
    shared = set.intersection(*(set(own) for _, own in counts))
    found = [(run, [f"{name} with {own[name, context]} tokens" for name, context in shared]) for run, own in counts]
    require_same(what, "recordings or texts of some items", found, advice)


def _token_counts(scores: SetScores) -> dict[tuple[str, str], str]:
    return {
        (item.id, context): " + ".join(str(segment.tokens) for segment in item.segments)
        for context, items in scores.items.items()
        for item in items.values()
    }
