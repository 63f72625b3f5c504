"""Benchmarks and choices of several runs, pair by pair."""

from collections.abc import Sequence

import numpy as np

from tolktrain.compare.inputs import EvaluatedRun, Row, ScoreFile, read_score_file
from tolktrain.compare.matching import ordered_pairs, pair_name, require_same, require_same_tokens
from tolktrain.compare.paired import paired_measure, paired_trials
from tolktrain.errors import UserError
from tolktrain.evaluate.choices import DIRECTIONS
from tolktrain.evaluate.intervals import share_interval
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.rules import Rule
from tolktrain.evaluate.scoring import points
from tolktrain.evaluate.tables import measured, pair_points

_SAME_FILES = "evaluate all runs on the same files"


def compare_benchmarks(runs: Sequence[EvaluatedRun], labels: Sequence[str], rules: Sequence[str]) -> list[Row]:
    """A row per benchmark, set, measure and rule: `runs` with the accuracy and interval of each, and `against_first`,
    which is `paired_measure` for all but the first.

    Args:
        runs: to compare.
        labels: of the benchmarks; all that there are if empty.
        rules: by which scores are recomputed; those of the evaluations if empty.

    Raises:
        UserError: a run lacks a benchmark, or items, sets, rules or measures differ; names them.
    """
    known = list(dict.fromkeys(label for run in runs for label in run.score_files))
    for label in labels:
        if label not in known:
            raise UserError(
                f"no run has scores of {label!r}; there are those of {', '.join(known) or 'no benchmark at all'}"
            )
    return [row for label in labels or known for row in _compare_benchmark(runs, label, rules)]


def _compare_benchmark(runs: Sequence[EvaluatedRun], label: str, asked: Sequence[str]) -> list[Row]:
    for run in runs:
        if label not in run.score_files:
            raise UserError(
                f"{run} has no scores of {label}, which other runs have; `tolktrain evaluate {run} --benchmarks"
                f" {label}=FOLDER` makes them, or name the benchmarks that all runs have with --benchmarks"
            )
    files = [read_score_file(run.score_files[label]) for run in runs]
    named = list(zip(map(str, runs), files, strict=True))
    require_same(label, "benchmarks", [(run, [str(file.header.get("benchmark"))]) for run, file in named], _SAME_FILES)
    require_same(label, "sets", [(run, file.sets) for run, file in named], _SAME_FILES)
    rows = []
    for name in sorted(files[0].sets):
        _require_same_items(f"{label}, {name}", named, name)
        rules = asked or _same_rules(f"{label}, {name}", named, name)
        rows += _rows(label, name, [run.name for run in runs], files, rules)
    return rows


def _require_same_items(what: str, named: Sequence[tuple[str, ScoreFile]], name: str) -> None:
    pairs = [
        (run, [pair_name(pair) for pair in ordered_pairs(file.path, name, file.sets[name])]) for run, file in named
    ]
    require_same(what, "pairs", pairs, _SAME_FILES)
    measures = [(run, [repr(measure) for measure in file.sets[name].measures]) for run, file in named]
    require_same(what, "measures", measures, "evaluate all runs with the same version of tolktrain")
    tokenizers = [file.header.get("tokenizers") for _, file in named]
    if all(tokenizers[0] is not None and other == tokenizers[0] for other in tokenizers):
        # The same recordings and texts have the same number of tokens then.
        require_same_tokens(what, [(run, file.sets[name]) for run, file in named], _SAME_FILES)


def _same_rules(what: str, named: Sequence[tuple[str, ScoreFile]], name: str) -> Sequence[str]:
    advice = "name the rules for the comparison with --rules, which are computed from the scores"
    require_same(what, "rules", [(run, file.sets[name].rules) for run, file in named], advice)
    return named[0][1].sets[name].rules


def _rows(label: str, name: str, runs: Sequence[str], files: Sequence[ScoreFile], rules: Sequence[str]) -> list[Row]:
    pairs = ordered_pairs(files[0].path, name, files[0].sets[name])
    rows = []
    for rule in map(Rule.parse, rules):
        won: list[FloatArray] = []
        for file in files:
            try:
                won.append(pair_points(pairs, file.sets[name].by_rule(rule)))
            except UserError as error:
                raise UserError(f"{file.path}: {error}") from None
        for measure in files[0].sets[name].measures:
            own = [measured(measure, pairs, values) for values in won]
            if own[0] is None:
                continue
            row: Row = {"benchmark": label, "set": name, "measure": measure.name, "rule": rule.name}
            row |= {key: own[0][key] for key in ("pairs", "ids")}
            row["runs"] = [
                {"run": run, **{key: found[key] for key in ("accuracy", "low", "high")}}
                | {"against_first": paired_measure(measure, pairs, won[0], values) if place else None}
                for place, (run, found, values) in enumerate(zip(runs, own, won, strict=True))
                if found is not None
            ]
            rows.append(row)
    return rows


def compare_choices(runs: Sequence[EvaluatedRun]) -> list[Row]:
    """The same for each held-out set and direction of the choice between continuations, with `paired_trials`.

    Raises:
        UserError: the runs were asked other trials; names them.
    """
    named = [(str(run), run.choices) for run in runs]
    sets = [(run, [f"{name} {direction}" for name, direction in choices]) for run, choices in named]
    advice = "evaluate all runs with the same held-out sets and the same evaluation.choices, prompt_words and"
    advice += " continuation_words"
    require_same("the choice between continuations", "sets", sets, advice)
    rows = []
    order = {direction: place for place, direction in enumerate(DIRECTIONS)}
    for key in sorted(runs[0].choices, key=lambda key: (key[0], order.get(key[1], len(order)))):
        what = f"the choice between continuations, {key[0]}, {key[1]}"
        require_same(what, "trials", [(run, choices[key]) for run, choices in named], advice)
        ids = sorted(runs[0].choices[key])
        texts = [runs[0].choices[key][name].text for name in ids]
        won = [_trial_points(run, key, ids) for run in runs]
        row: Row = {"set": key[0], "direction": key[1], "trials": len(ids), "texts": len(set(texts)), "runs": []}
        for place, (run, values) in enumerate(zip(runs, won, strict=True)):
            low, high = share_interval(values, texts)
            entry: Row = {"run": run.name, "accuracy": float(values.mean()), "low": low, "high": high}
            entry["against_first"] = paired_trials(texts, won[0], values) if place else None
            row["runs"].append(entry)
        rows.append(row)
    return rows


def _trial_points(run: EvaluatedRun, key: tuple[str, str], ids: Sequence[str]) -> FloatArray:
    trials = run.choices[key]
    for name in ids:
        if "model" not in trials[name].scores:
            raise UserError(f"{run}: the trial {name!r} has no score of the model; `tolktrain evaluate {run}`")
    scores = np.array([trials[name].scores["model"] for name in ids])
    return points(scores[:, 0], scores[:, 1])
