"""What runs have been evaluated on, read from their folders.

A folder may come from a stranger, and may hold the evaluations alone: `evaluation.json`, `choices.jsonl` and `scores/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tolktrain.config.document import read_document
from tolktrain.errors import UserError
from tolktrain.evaluate.choice_file import Choices, read_choices
from tolktrain.evaluate.score_files import SetScores, read_header, read_scores
from tolktrain.files.printable import printable
from tolktrain.report.rundata import read_product
from tolktrain.runs.paths import RunPaths

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluatedRun:
    """The evaluations of one run; of the score files, the paths only."""

    folder: Path
    name: str
    config: Row | None  # None if the folder holds no configuration
    evaluation: Row | None  # evaluation.json
    choices: Choices
    tokenizers: Row | None  # by modality: the digests with which evaluation.json was made
    score_files: Mapping[str, Path]  # by label of the benchmark

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class ScoreFile:
    """A benchmark as one run has scored it."""

    path: Path
    header: Row
    sets: Mapping[str, SetScores]


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """The evaluations in the folders.

    Raises:
        UserError: a folder holds none, holds less than another one, or cannot be read; says which command makes what is
            missing.
    """
    if len(folders) < 2:
        raise UserError("a comparison needs two runs or more; name another one")
    resolved = [folder.resolve() for folder in folders]
    twice = next((folder for folder, own in zip(folders, resolved, strict=True) if resolved.count(own) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name each run once")
    runs = [_read(folder) for folder in folders]
    lacking = [run for run in runs if run.evaluation is None]
    if lacking and len(lacking) < len(runs):
        raise UserError(
            f"{lacking[0]} has no evaluation.json, which other runs have; `tolktrain evaluate {lacking[0]}` writes it"
        )
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=printable(run.folder)) for run in runs]


def read_score_file(path: Path) -> ScoreFile:
    """A score file. Raises `UserError` with its name."""
    header = read_header(path)
    try:
        return ScoreFile(path, header, read_scores(path))
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None


def _read(folder: Path) -> EvaluatedRun:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of an evaluated run")
    paths = RunPaths(folder)
    evaluation = read_product(paths.evaluation)
    # The part before the first dot is the label of the benchmark; NAME.unigram and NAME.bigram belong to n-grams.
    files = {path.stem: path for path in sorted(paths.scores.glob("*.jsonl")) if "." not in path.stem}
    if evaluation is None and not files:
        raise UserError(
            f"{folder} holds no evaluation; `tolktrain evaluate {folder}` measures it on its held-out sets, and"
            f" `tolktrain evaluate {folder} --benchmarks NAME=FOLDER` on a benchmark"
        )
    header, choices = _choices(folder, evaluation)
    config = read_document(paths.config).plain() if paths.config.is_file() else None
    own = config.get("run") if isinstance(config, dict) else None
    name = printable(own.get("name") if isinstance(own, dict) else folder.resolve().name)
    return EvaluatedRun(folder, name, config, evaluation, choices, header.get("tokenizers"), files)


def _choices(folder: Path, evaluation: Row | None) -> tuple[Row, Choices]:
    if evaluation is None:
        return {}, {}
    path = RunPaths(folder).choices
    if not path.exists():
        raise UserError(f"{path}, the scores of single trials, is missing; `tolktrain evaluate {folder}` writes it")
    header, choices = read_choices(path)
    if header.get("step") != evaluation.get("step"):
        raise UserError(
            f"{path} is of step {header.get('step')}, but evaluation.json next to it of step {evaluation.get('step')};"
            f" `tolktrain evaluate {folder}` writes both"
        )
    return header, choices
