"""Compare evaluated runs, and write the result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tolktrain.compare.configuration import compare_configurations
from tolktrain.compare.inputs import EvaluatedRun, Row, read_runs
from tolktrain.compare.losses import compare_losses
from tolktrain.compare.page import render
from tolktrain.compare.scores import compare_benchmarks, compare_choices
from tolktrain.errors import UserError
from tolktrain.evaluate.rules import Rule
from tolktrain.evaluate.score_files import read_header
from tolktrain.files.writing import replace_file

FORMAT = 1
JSON_FILE, PAGE_FILE = "compare.json", "compare.html"


def compare(folders: Sequence[Path], benchmarks: Sequence[str] = (), rules: Sequence[str] = ()) -> dict[str, Any]:
    """Compare runs with the first one, item by item.

    Args:
        folders: of the runs, or of their evaluations alone.
        benchmarks: labels of those to compare; all that the runs have if empty.
        rules: by which the scores are recomputed; those of the evaluations if empty.

    Returns:
        `format`; `runs`, each with `name`, `folder` and the `steps` of its evaluations; `benchmarks` and `choices` (see
        `compare.scores`), `losses` (see `compare_losses`), `configuration` (see `compare_configurations`), `remarks`.

    Raises:
        UserError: there are fewer than two runs; an evaluation is missing, or the runs were evaluated on different
            items or by different rules.
    """
    for name in rules:
        Rule.parse(name)
    runs = read_runs(folders)
    losses, remarks = compare_losses(runs)
    lacking = [run.name for run in runs if run.config is None]
    if lacking:
        remarks.append(f"the configurations are not compared: the folder of {lacking[0]} holds no config.yaml")
    return {
        "format": FORMAT,
        "runs": [{"name": run.name, "folder": str(run.folder), "steps": _steps(run, benchmarks)} for run in runs],
        "benchmarks": compare_benchmarks(runs, benchmarks, rules),
        "choices": compare_choices(runs),
        "losses": losses,
        "configuration": compare_configurations(runs),
        "remarks": remarks,
    }


def write_comparison(result: dict[str, Any], folder: Path) -> None:
    """Write compare.json and compare.html into a folder, which is made. Raises OSError with the name of the file."""
    page = render(result)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / JSON_FILE, json.dumps(result, indent=2) + "\n")
    replace_file(folder / PAGE_FILE, page)


def _steps(run: EvaluatedRun, benchmarks: Sequence[str]) -> Row:
    """The step that each evaluation is of. Raises `UserError` if they are not all of one step."""
    steps: Row = {} if run.evaluation is None else {"held-out sets": run.evaluation.get("step", 0)}
    for label, path in run.score_files.items():
        if not benchmarks or label in benchmarks:
            steps[label] = read_header(path).get("step", 0)
    for what, step in steps.items():
        if not isinstance(step, int):
            raise UserError(f"{run}: the evaluation of {what} has the step {step!r}; `tolktrain evaluate {run}`")
    if len(set(steps.values())) > 1:
        found = ", ".join(f"{what} of step {step}" for what, step in steps.items())
        raise UserError(
            f"{run}: the evaluations are of different steps ({found}); evaluate the older ones again, or name the"
            " benchmarks to compare with --benchmarks"
        )
    return steps
