"""Gives lm-evaluation-harness its own definitions of tasks with data of a local folder, and runs it."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.evaluate.text.catalog import TextTask, definitions_folder
from tolktrain.evaluate.text.data_files import check_fields, find_files
from tolktrain.libraries.streaming_compat import exchanged


@dataclass(frozen=True)
class TextItem:
    """What a model answered to one item of a task."""

    id: int  # its place in the data
    hash: str  # of its content
    target: Any  # index of the right choice, or the right text
    log_likelihoods: tuple[float, ...]  # of the choices in nats, or of the one continuation
    greedy: tuple[bool, ...]  # whether each is what the model would generate
    metrics: Mapping[str, float]  # such as acc and acc_norm: 1 if right, else 0


@dataclass(frozen=True, eq=False)
class LoadedTasks:
    """Tasks with their data, ready for any number of models."""

    tasks: tuple[TextTask, ...]
    files: Mapping[str, tuple[Path, ...]]  # by name of the task
    _loaded: Mapping[str, Any]  # what lm-evaluation-harness takes

    def answers(self, language_model: Any) -> dict[str, list[TextItem]]:
        """The answers of a `TextLM` to all items of each task, in the order of the data."""
        import lm_eval
        from lm_eval.api import task as harness

        with exchanged(harness, tqdm=lambda items, **_: items):  # a progress bar for every task
            found = lm_eval.evaluate(language_model, self._loaded, bootstrap_iters=0, log_samples=True)
        return {
            task.name: [_item(sample) for sample in sorted(found["samples"][task.name], key=lambda s: s["doc_id"])]
            for task in self.tasks
        }


@contextmanager
def loaded_tasks(tasks: Sequence[TextTask], data_dir: Path) -> Iterator[LoadedTasks]:
    """Read the data of all tasks; nothing is downloaded.

    Raises UserError if files are missing or unreadable, or an item is not what its task expects.
    """
    files = {task.name: find_files(task, data_dir) for task in tasks}
    for task in tasks:
        check_fields(task, *files[task.name])
    with _offline():
        from lm_eval.tasks import TaskManager
    with tempfile.TemporaryDirectory(prefix="tolktrain-text-tasks-") as folder:
        for task in tasks:
            # Written as YAML, because only the harness itself can read the functions that its definitions name.
            content = json.dumps(_definition(task, *files[task.name], Path(folder) / "cache"))
            (Path(folder) / f"{task.name}.yaml").write_text(content, encoding="utf-8")
        manager = TaskManager(include_path=folder, include_defaults=False)
        loaded: dict[str, Any] = {"tasks": {}}
        for task in tasks:
            try:
                loaded["tasks"] |= manager.load([task.name])["tasks"]
            except Exception as error:  # the library datasets raises classes of its own, of pyarrow and of pandas
                raise UserError(
                    f"--data-dir: {_named(files[task.name][1])} cannot be read as data of {task.name}: {_line(error)}"
                ) from error
            _check_items(task, loaded["tasks"][task.name], files[task.name][1])
        yield LoadedTasks(tuple(tasks), {name: tuple(paths) for name, (_, paths) in files.items()}, loaded)


@contextmanager
def _offline() -> Iterator[None]:
    """In this context, the harness and its libraries are imported for work without a network and progress bars. They
    read the variables that say so at that time; programs that are started later do not inherit them."""
    before = dict(os.environ)
    for name in ("HF_DATASETS_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _definition(task: TextTask, kind: str, paths: Sequence[Path], cache: Path) -> dict[str, Any]:
    split = task.data.split
    return {
        "include": str(definitions_folder() / task.definition),
        "task": task.name,
        "dataset_path": kind,
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: [str(path.resolve()) for path in paths]},
            "cache_dir": str(cache / task.name),
        },
        "training_split": None,
        "validation_split": None,
        "test_split": split,  # the one that is evaluated
        "fewshot_split": None,
        "num_fewshot": 0,
    }


def _check_items(task: TextTask, loaded: Any, paths: Sequence[Path]) -> None:
    number = -1
    try:
        for item in loaded.eval_docs:
            number += 1
            text, target = loaded.doc_to_text(item), loaded.doc_to_target(item)
            if loaded.OUTPUT_TYPE != "multiple_choice":
                continue
            right = text if loaded.multiple_input else target
            choices = loaded.doc_to_choice(item)
            if not isinstance(right, int) or not 0 <= right < len(choices):
                raise ValueError(f"the right choice is {right!r}, of {len(choices)} choices")
            if not all(choices):
                raise ValueError("a choice is empty")
    except Exception as error:  # templates raise whatever an unexpected type causes
        raise UserError(
            f"--data-dir: item {number + 1} of {_named(paths)} is not what {task.name} expects: {_line(error)}"
        ) from error
    if number < 0:
        raise UserError(f"--data-dir: {_named(paths)} holds no item for {task.name}")


def _item(sample: Mapping[str, Any]) -> TextItem:
    answers = sample["filtered_resps"]
    scored = [answer for answer in answers if isinstance(answer, (tuple, list))]
    metrics = {name: sample[name] for name in sample["metrics"]}
    return TextItem(
        id=int(sample["doc_id"]),
        hash=sample["doc_hash"],
        target=sample["target"],
        log_likelihoods=tuple(float(value) for value, _ in scored),
        greedy=tuple(bool(value) for _, value in scored),
        metrics={name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))},
    )


def _named(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
