"""Score files: what a scorer gave to each item of a benchmark, from which every rule is recomputed.

`scores/NAME.jsonl` has a header, and for each set a line with its measures and rules, a line per pair, and a line per
item and context. NAME is that of the benchmark for
the model, and BENCHMARK.unigram and BENCHMARK.bigram for the n-grams.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import ItemSet, Measure, Pair
from tolktrain.evaluate.rules import Context, ItemScore, Rule, SegmentScore
from tolktrain.files.reading import bounded_lines, open_regular, parse_json
from tolktrain.files.writing import replace_file

FORMAT = 2


@dataclass(frozen=True)
class SetScores:
    """The scores of an `ItemSet` by one scorer."""

    pairs: tuple[Pair, ...]
    items: Mapping[Context, Mapping[str, ItemScore]]  # by context, then by id
    measures: tuple[Measure, ...] = ()
    rules: tuple[str, ...] = ()  # that were asked for, the main one first

    def by_rule(self, rule: Rule) -> dict[str, float]:
        """The score of each item that a pair names.

        Raises:
            UserError: an item has no score, or one that the rule cannot use; or a scored item is in no pair. Names it.
        """
        scores = self.items.get(rule.context)
        if scores is None:
            raise UserError(f"there are no scores for the rule {rule.name}; evaluate again with it among the rules")
        return {name: rule.score(score) for name, score in _matched(self.pairs, scores).items()}


def _matched(pairs: Iterable[Pair], scores: Mapping[str, ItemScore]) -> Mapping[str, ItemScore]:
    wanted = {name for pair in pairs for name in (pair.correct, pair.incorrect)}
    for name in sorted(wanted - scores.keys()):
        raise UserError(f"{name} has no score; evaluate the benchmark again")
    for name in sorted(scores.keys() - wanted):
        raise UserError(f"{name} has a score but is in no pair; evaluate the benchmark again")
    return scores


def collect(
    pairs: Iterable[Pair], scores: Iterable[ItemScore], measures: Sequence[Measure] = (), rules: Sequence[str] = ()
) -> SetScores:
    """Scores of a set. Raises `UserError` naming the item that is scored twice, or whose score is not finite."""
    items: dict[Context, dict[str, ItemScore]] = {}
    for score in scores:
        score.check()
        there = items.setdefault(score.context, {})
        if score.id in there:
            raise UserError(f"{score.id} is scored twice; evaluate the benchmark again")
        there[score.id] = score
    return SetScores(tuple(pairs), items, tuple(measures), tuple(rules))


def write_scores(path: Path, header: Mapping[str, Any], sets: Mapping[str, SetScores]) -> None:
    """Write a score file, whole or not at all. Raises OSError with its name."""
    lines = [{"kind": "header", "format": FORMAT} | dict(header)]
    for name, scores in sets.items():
        measures = [_measure_line(measure) for measure in scores.measures]
        lines.append({"kind": "set", "set": name, "rules": list(scores.rules), "measures": measures})
        lines += [{"kind": "pair", "set": name} | vars(pair) for pair in scores.pairs]
        for items in scores.items.values():
            lines += [{"kind": "item", "set": name} | _item(score) for score in items.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a score file: `benchmark`, `run`, `step`, `scorer`, `tokenizers`. Raises as `read_scores`."""
    for _, line in lines_of(path):
        if line.get("kind") == "header" and line.get("format") == FORMAT:
            return line
        break
    raise UserError(f"{path} is no score file of this version of tolktrain; evaluate the benchmark again")


def read_scores(path: Path) -> dict[str, SetScores]:
    """The sets of a score file. Raises `UserError` naming the file and the line, or the item, that is wrong."""
    pairs: dict[str, list[Pair]] = {}
    scores: dict[str, list[ItemScore]] = {}
    described: dict[str, tuple[list[Measure], list[str]]] = {}
    for number, line in lines_of(path):
        try:
            if line["kind"] == "set":
                described[line["set"]] = ([_measure(entry) for entry in line["measures"]], line["rules"])
            elif line["kind"] == "pair":
                pair = {key: value for key, value in line.items() if key not in ("kind", "set")}
                pairs.setdefault(line["set"], []).append(Pair(**pair))
            elif line["kind"] == "item":
                scores.setdefault(line["set"], []).append(_score(line))
            elif line["format"] != FORMAT:
                raise UserError(
                    f"{path} has the format {line['format']!r}, and this version of tolktrain reads {FORMAT}; evaluate"
                    " the benchmark again"
                )
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is no line of a score file ({error}); evaluate again") from None
    return {name: collect(pairs[name], scores.get(name, ()), *described.get(name, ((), ()))) for name in pairs}


def lines_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line of a file of JSON objects. Raises `UserError` naming it if it cannot be read."""
    try:
        with open_regular(path) as file:
            for number, content in enumerate(bounded_lines(file), start=1):
                line = parse_json(content)
                if not isinstance(line, dict):
                    raise ValueError(f"line {number} is no JSON object")
                yield number, line
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate again") from None


def _measure_line(measure: Measure) -> dict[str, Any]:
    where = None if measure.where is None else [measure.where[0], sorted(measure.where[1])]
    return {"name": measure.name, "where": where, "by": measure.by, "choice": measure.choice}


def _measure(entry: Mapping[str, Any]) -> Measure:
    where = None if entry["where"] is None else (entry["where"][0], frozenset(entry["where"][1]))
    # Absent from files that were written before there were choices.
    return Measure(entry["name"], where, entry["by"], entry.get("choice", False))


def _item(score: ItemScore) -> dict[str, Any]:
    segments = [segment.to_dict() for segment in score.segments]
    return {"id": score.id, "context": score.context, "segments": segments, "closing_eos": score.closing_eos}


def _score(line: Mapping[str, Any]) -> ItemScore:
    segments = tuple(SegmentScore(**segment) for segment in line["segments"])
    return ItemScore(line["id"], line["context"], segments, line["closing_eos"])


def write_submission(folder: Path, found: ItemSet, scores: Mapping[str, float]) -> Path | None:
    """The file of a set for the ZeroSpeech toolbox, a line `FILENAME SCORE` per item; None if it has none."""
    if found.submission is None:
        return None
    path = folder / found.submission
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(f"{name} {scores[name]!r}\n" for name in sorted(scores)))
    return path


def needed_contexts(rules: Sequence[Rule]) -> list[Context]:
    """The contexts in which items must be scored."""
    return sorted({rule.context for rule in rules})
