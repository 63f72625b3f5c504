"""`tolktrain evaluate --text-tasks`: the text skills of a run, and what it lost against its backbone."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress
from scipy import stats

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.progress import Progress as Mark
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.evaluate.text.catalog import EQUAL_PARTS, TextTask, find_tasks
from tolktrain.evaluate.text.paired import mean_interval
from tolktrain.evaluate.text.tasks import LoadedTasks, TextItem, loaded_tasks
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import replace_file
from tolktrain.parallel.layout import initialize
from tolktrain.runs.paths import RunPaths

if TYPE_CHECKING:
    from tolktrain.evaluate.text.language_model import TextLM, TextModel

FORMAT = 1
MEAN = "mean of tasks"
_METRICS = ("acc_norm", "acc")  # the first one that a task has is its number

_Answers = Mapping[str, Sequence[TextItem]]  # by task


def evaluate_text_tasks(
    run_dir: str | Path,
    names: Sequence[str],
    data_dir: str | Path,
    against: str | None = None,
    batch_tokens: int | None = None,
    mark: Mark | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate text tasks, and write text_tasks.json and scores/text/*.jsonl into the run's folder.

    Run by several processes (torchrun, srun), each scores a part; the first one writes.

    Args:
        run_dir: the run, or a folder of weights.
        names: of tasks and groups (`catalog.find_tasks`).
        data_dir: folder with the data sets (`data_files.find_files`).
        against: run, checkpoint, exported weights, Llama checkpoint or hub id of the backbone; None: no comparison.
        batch_tokens: positions that are scored at a time; the run's micro batch if None.
        mark: where this rank's progress is reported, for its watchdog.
        overrides: of the configuration of a folder of weights.

    Returns:
        The content of text_tasks.json: `format`, `run`, `against` (a name or None), `context` (positions that both
        models read), `harness` (version), `rows` (a row per task, group and mean: `task`, `metric`, `items`,
        `accuracy`, `low`, `high`; with a comparison also `against_accuracy`, `against_low`, `against_high`,
        `difference`, `difference_low`, `difference_high`, `gained` and `lost` items, and McNemar's exact `p`), `files`
        by task, `seconds`.

    Raises:
        UserError: an unknown task, missing data, a missing extra, or no model.
    """
    begin = time.monotonic()
    tasks = find_tasks(names)
    environment = ProcessEnvironment.detect()
    environment.export()
    mark = mark or Mark()
    mark.at("joining the other processes")
    initialize()
    mark.at("reading text data")
    from importlib.metadata import version

    from tolktrain.evaluate.text.models import load_other, load_own

    with loaded_tasks(tasks, Path(data_dir)) as loaded, spinner() as progress:
        progress.disable = environment.rank != 0
        mark.at("loading the models")
        own, micro_batch = load_own(Path(run_dir), overrides)
        other = None if against is None else load_other(against, own)
        context = min(own.context, other.context) if other is not None else own.context
        run = _Models(loaded, context, batch_tokens or micro_batch, environment, progress, mark)
        answers = run.answers(own)
        baseline = None if other is None else run.answers(other)
    result = {
        "format": FORMAT,
        "run": own.name,
        "against": None if other is None else other.name,
        "context": context,
        "harness": version("lm-eval"),
        "rows": table_rows(tasks, answers, baseline),
        "files": {name: [str(path) for path in paths] for name, paths in loaded.files.items()},
        "seconds": round(time.monotonic() - begin, 2),
    }
    if environment.rank == 0:
        paths = RunPaths(Path(run_dir))
        _write_scores(paths.scores / "text", result, answers, "")
        if baseline is not None:
            _write_scores(paths.scores / "text", result, baseline, ".against")
        replace_file(paths.text_tasks, json.dumps(result, indent=2) + "\n")
    return result


class _Models:
    """One model after the other on the same tasks."""

    def __init__(
        self,
        loaded: LoadedTasks,
        context: int,
        batch_tokens: int,
        environment: ProcessEnvironment,
        progress: Progress,
        mark: Mark,
    ) -> None:
        self._loaded = loaded
        self._context = context
        self._batch_tokens = batch_tokens
        self._environment = environment
        self._progress = progress
        self._mark = mark
        self._task = progress.add_task("starting", total=None)

    def answers(self, model: "TextModel") -> _Answers:
        self._mark.at(f"scoring texts: {model.name}")
        return self._loaded.answers(self._language_model(model))

    def _language_model(self, model: "TextModel") -> "TextLM":
        from tolktrain.evaluate.text.language_model import TextLM

        def show(done: int, total: int) -> None:
            self._mark.touch()
            self._progress.update(self._task, description=f"{model.name}: {done} of {total} texts")

        rank, world_size = self._environment.rank, self._environment.world_size
        return TextLM(model, self._context, self._batch_tokens, rank, world_size, show)


def table_rows(tasks: Sequence[TextTask], answers: _Answers, baseline: _Answers | None) -> list[dict[str, Any]]:
    """The rows of text_tasks.json: of each task, each group, and the mean over tasks and groups."""
    rows, entries = [], {}
    parts: dict[str, list[str]] = {}
    for task in tasks:
        parts.setdefault(task.group or task.name, []).append(task.name)
    for name, members in parts.items():
        metric = next(metric for metric in _METRICS if metric in answers[members[0]][0].metrics)
        own = [_points(answers[member], metric) for member in members]
        other = None if baseline is None else [_points(baseline[member], metric) for member in members]
        if members != [name]:
            for place, member in enumerate(members):
                rows.append(_row(member, metric, own[place : place + 1], other and other[place : place + 1]))
            if name not in EQUAL_PARTS:
                own, other = [np.concatenate(own)], other and [np.concatenate(other)]
        entries[name] = (own, other)
        rows.append(_row(name, metric, own, other))
    if len(entries) > 1:
        strata = [values for own, _ in entries.values() for values in own]
        others = None if baseline is None else [values for _, other in entries.values() for values in other or ()]
        weights = [1 / len(own) for own, _ in entries.values() for _ in own]
        rows.append(_row(MEAN, "", strata, others, weights))
    return rows


def _points(items: Sequence[TextItem], metric: str) -> FloatArray:
    return np.array([item.metrics[metric] for item in items])


def _row(
    name: str,
    metric: str,
    own: Sequence[FloatArray],
    other: Sequence[FloatArray] | None,
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The figures of strata; in their mean, each counts by its weight, or all the same."""
    low, high = mean_interval(own, weights)
    items = sum(map(len, own))
    row = {"task": name, "metric": metric, "items": items, "accuracy": _mean(own, weights), "low": low, "high": high}
    if other is None:
        return row
    low, high = mean_interval(other, weights)
    row |= {"against_accuracy": _mean(other, weights), "against_low": low, "against_high": high}
    differences = [ours - theirs for ours, theirs in zip(own, other, strict=True)]
    low, high = mean_interval(differences, weights, lowest=-1.0)
    row |= {"difference": _mean(differences, weights), "difference_low": low, "difference_high": high}
    changed = np.concatenate(differences)
    gained, lost = int((changed > 0).sum()), int((changed < 0).sum())
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return row | {"gained": gained, "lost": lost, "p": p}


def _mean(strata: Sequence[FloatArray], weights: Sequence[float] | None) -> float:
    return float(np.average([values.mean() for values in strata], weights=weights))


def _write_scores(folder: Path, result: Mapping[str, Any], answers: _Answers, suffix: str) -> None:
    """A file per task: a header, then a line per item."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in answers.items():
        model = result["against"] if suffix else result["run"]
        header = {"kind": "header", "format": FORMAT, "task": name, "model": model, "context": result["context"]}
        lines = [header, *({"kind": "item"} | asdict(item) for item in items)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        replace_file(folder / f"{name}{suffix}.jsonl", text)
