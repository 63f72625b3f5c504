"""The content of a run directory, read for the report. Parts that do not exist yet are None.

A run directory may come from a stranger: text for the terminal and the page is made printable here.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.document import read_document
from tolktrain.data.strategies import STRATEGIES
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.files.reading import bounded_lines, open_regular, parse_json, read_json
from tolktrain.runs.changes import read_changes
from tolktrain.runs.paths import RunPaths

Row = dict[str, Any]

SWEEP_FILE = "sweep.json"  # settings of a sweep of ablations, in its folder

_LARGEST_PRODUCT = 1 << 26  # bytes of a file that a verb has written

DIRECTIONS = {
    "text_to_text": "text → text",
    "text_to_speech": "text → speech",
    "speech_to_text": "speech → text",
    "speech_to_speech": "speech → speech",
}

# Strategies that score one modality only: their loss is that modality's.
_SCORES = {str(name): strategy.scores for name, strategy in STRATEGIES.items()}


@dataclass(frozen=True)
class Validation:
    """One validation of one strategy on one data set; losses in nats per scored token, None where nothing is scored."""

    step: int
    stage: str
    strategy: str
    dataset: str
    loss: float | None
    text_loss: float | None
    speech_loss: float | None
    accuracy: float | None = None  # of preferences


@dataclass(frozen=True)
class Stage:
    """The steps of a stage that were run: first and last, and what they took."""

    name: str
    first_step: int
    last_step: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class RunData:
    """A run directory.

    Attributes:
        directory: the folder.
        config: the resolved configuration, as plain dictionaries.
        steps: the training lines of metrics.jsonl, in order.
        validations: the validation figures of metrics.jsonl, in order.
        evaluation: evaluation.json, or None.
        benchmarks: benchmarks.json, or None.
        samples: samples/samples.json, or None.
        changes: changes.jsonl, in order.
        analysis: analysis/analysis.json, or None.
        generation: generation.json, or None.
        text_tasks: text_tasks.json, or None.
        comparison: comparison/compare.json, or None.
        sweep: table.json of the ablations that the run is one of, or None.
        answers: answers/answers.json, or None.
    """

    directory: Path
    config: Row
    steps: list[Row]
    validations: list[Validation]
    evaluation: Row | None
    benchmarks: Row | None
    samples: Row | None
    changes: list[Row]
    analysis: Row | None
    generation: Row | None = None
    text_tasks: Row | None = None
    comparison: Row | None = None
    sweep: Row | None = None
    answers: Row | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return printable(self.config.get("run", {}).get("name", self.directory.name))

    @property
    def stages(self) -> list[Stage]:
        """Stages in the order they were run."""
        names = list(dict.fromkeys(str(row["stage"]) for row in self.steps))
        found: list[Stage] = []
        tokens_before = 0
        for name in names:
            rows = [row for row in self.steps if str(row["stage"]) == name]
            tokens = int(rows[-1].get("tokens", 0))
            seconds = sum(float(row.get("seconds_per_step") or 0.0) for row in rows)
            found.append(Stage(name, int(rows[0]["step"]), int(rows[-1]["step"]), tokens - tokens_before, seconds))
            tokens_before = tokens
        return found

    @property
    def gpu_memory(self) -> tuple[float, float] | None:
        """Most GiB of the first rank's GPU that were allocated and reserved; None if the run had no GPU."""
        rows = [row for row in self.steps if row.get("memory_reserved_gib") is not None]
        if not rows:
            return None
        return max(float(row["memory_gib"]) for row in rows), max(float(row["memory_reserved_gib"]) for row in rows)

    @property
    def primary_set(self) -> str | None:
        """The held-out set that curves show: the first of the evaluation, or of the validation."""
        configured = self.config.get("evaluation", {}).get("heldout_sets") or []
        validated = self.config.get("train", {}).get("validation", {}).get("sets") or []
        seen = [row["set"] for row in (self.evaluation or {}).get("losses", [])] or [
            v.dataset for v in self.validations
        ]
        for name in [*configured, *validated, *seen]:
            if name in seen:
                return str(name)
        return None

    def last_validations(self) -> list[Validation]:
        """The last validation of each stage, strategy and data set."""
        last = {(v.stage, v.strategy, v.dataset): v for v in self.validations}
        return list(last.values())

    def evaluated(self, dataset: str | None, strategy: str, modality: str) -> Row | None:
        """Loss and baseline of one modality in the evaluation, or None."""
        for row in (self.evaluation or {}).get("losses", []):
            if row["set"] == dataset and row["strategy"] == strategy:
                figures = row.get(modality)
                return figures if isinstance(figures, dict) else None
        return None


def read_run(directory: str | Path) -> RunData:
    """Read a run directory. Raises `UserError` if it is no run directory, or a file in it is damaged."""
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run directory; `tolktrain train CONFIG` makes one")
    paths = RunPaths(folder)
    config = _read_config(paths.config)
    lines = list(_read_lines(paths.metrics))
    steps = [line for line in lines if line.get("loss") is not None]
    if not steps:
        raise UserError(f"{paths.metrics} holds no training step yet; let `tolktrain train CONFIG` run first")
    return RunData(
        directory=folder,
        config=config,
        steps=steps,
        validations=[v for line in lines for v in _validations(line)],
        evaluation=read_product(paths.evaluation),
        benchmarks=read_product(paths.benchmarks),
        samples=read_product(paths.sample_index),
        changes=[printable_tree(asdict(change)) for change in read_changes(folder)],
        analysis=read_product(paths.analysis),
        generation=read_product(paths.generation),
        text_tasks=read_product(paths.text_tasks),
        comparison=read_product(paths.comparison),
        answers=read_product(paths.answers),
        sweep=read_product(paths.sweep) if (paths.sweep.parent / SWEEP_FILE).is_file() else None,
    )


def _read_config(path: Path) -> Row:
    if not path.exists():
        raise UserError(f"{path} is missing, so {path.parent} is not a run directory; give the folder of a run")
    try:
        content: Row = read_document(path).plain()
    except UserError as error:
        raise UserError(f"{error}; restore the file or train again") from None
    return content


def _read_lines(path: Path) -> Iterator[Row]:
    try:
        with open_regular(path) as file:
            broken = None
            for number, line in enumerate(bounded_lines(file), start=1):
                # A run that is being written, or was killed while it wrote, may end inside a line.
                if broken is not None:
                    raise UserError(f"{path}, line {broken} is not JSON; restore the file or train again")
                row = _row(line)
                if row is None:
                    broken = number
                else:
                    yield row
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `tolktrain train CONFIG` writes it") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); restore the file or train again") from None


def _row(line: bytes) -> Row | None:
    """A line of metrics, or None if it is no JSON object."""
    try:
        row = printable_tree(parse_json(line))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_product(path: Path) -> Row | None:
    """A JSON object that a verb has written, its text made printable; None if there is no file.

    Raises `UserError` if it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = printable_tree(read_json(path, _LARGEST_PRODUCT))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); delete it and make it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; delete it and make it again")
    return content


def printable_tree(value: Any) -> Any:
    """The plain value with all its text as `printable` shows it."""
    if isinstance(value, dict):
        return {printable_tree(key): printable_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable_tree(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _validations(line: Row) -> Iterator[Validation]:
    groups: dict[tuple[str, str], dict[str, float | None]] = {}
    for key, value in line.items():
        if key.startswith("validation."):
            head, metric = key.rsplit(".", 1)
            _, strategy, dataset = head.split(".", 2)
            groups.setdefault((strategy, dataset), {})[metric] = value
    for (strategy, dataset), figures in groups.items():
        loss = figures.get("loss")
        yield Validation(
            step=int(line["step"]),
            stage=str(line["stage"]),
            strategy=strategy,
            dataset=dataset,
            loss=loss,
            text_loss=figures.get("text_loss", loss if _SCORES.get(strategy) == ("text",) else None),
            speech_loss=figures.get("speech_loss", loss if _SCORES.get(strategy) == ("speech",) else None),
            accuracy=figures.get("accuracy"),
        )
