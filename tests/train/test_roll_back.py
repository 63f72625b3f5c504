"""A run that diverges is rolled back and skips the data: from there it is the run that never had that data."""

import gc
import json
import logging
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import JOINT, LAST, LEFT_OUT, ROW, TEXT, checksums, located, make_config, spoiling, without
from small_runs import StopAfter, read_metrics

from tolktrain.checkpoint.store import read_moments, read_parameters
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.runs import rollbacks
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.rollback import roll_back
from tolktrain.train.run import train

pytestmark = pytest.mark.slow

Spoilt = dict[tuple[int, int], float]


def run(config: Config, spoilt: Spoilt, stop: StopAfter | None = None) -> int:
    """Train while these batches multiply the loss."""
    places = located(config, spoilt)
    with spoiling({places[place]: factor for place, factor in spoilt.items()}):
        return train(config, stop)


def rollbacks_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs" / "small" / "rollbacks.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same_end(folder: Path, expected: Path, last: int = LAST) -> None:
    """Metrics and the last checkpoint are the same, bit by bit."""
    run_dir, other = folder / "runs" / "small", expected / "runs" / "small"
    assert read_metrics(run_dir) == read_metrics(other)
    name = f"checkpoints/step-{last:08d}"
    tensors = [(read_parameters(path / name), *read_moments(path / name)) for path in (run_dir, other)]
    for ours, theirs in zip(*tensors, strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (run_dir / "checkpoints" / "latest").read_text() == f"step-{last:08d}\n"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """A run that never had the data of `LEFT_OUT`."""
    folder = tmp_path_factory.mktemp("reference")
    config = make_config(folder, sets)
    with without(checksums(config, LEFT_OUT)):
        assert train(config) == 0
    return folder


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """A run that was stopped after the second of three bad steps."""
    folder = tmp_path_factory.mktemp("halted")
    assert run(make_config(folder, sets), ROW, StopAfter(10)) == 75
    return folder


@pytest.fixture
def again(halted: Path, tmp_path: Path, sets: Path) -> Config:
    """The halted run, to continue with in `tmp_path`."""
    shutil.copytree(halted / "runs", tmp_path / "runs")
    return make_config(tmp_path, sets)


def test_one_bad_step_is_skipped_and_the_data_comes_back_later(tmp_path: Path, sets: Path) -> None:
    config = make_config(tmp_path, sets, "train.max_steps=6")
    assert run(config, {(JOINT, 1): math.nan, (JOINT, 2): math.inf}) == 0
    lines = read_metrics(tmp_path / "runs" / "small")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 0]
    assert [line["loss"] is None for line in lines] == [False, False, False, True, True, False]
    assert not (tmp_path / "runs" / "small" / "rollbacks.jsonl").exists()


def test_back_and_on_without_the_data(
    tmp_path: Path, sets: Path, reference: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert run(make_config(tmp_path, sets), ROW) == 0
    assert_same_end(tmp_path, reference)
    (record,) = rollbacks_of(tmp_path)
    assert record["carried_out"] and record["to_step"] == 4 and record["skipped_data"] == [5, 9]
    assert (record["first_bad_step"], record["last_bad_step"], record["stage"]) == (9, 11, "joint")
    assert "rolling back to step 4 and skipping the data of steps 8 to 11 (rollback 1 of at most 2)" in caplog.text
    folders = sorted(path.name for path in (tmp_path / "runs" / "small" / "checkpoints").iterdir())
    steps = [f"step-{step:08d}" for step in (2, 4, 8, 12, 14)]
    assert folders == sorted(["latest", *steps, "step-00000008.rolled-back-1"])


def test_a_run_that_was_halted_in_a_bad_row_decides_the_same(again: Config, tmp_path: Path, reference: Path) -> None:
    assert run(again, ROW) == 0
    assert_same_end(tmp_path, reference)
    assert rollbacks_of(tmp_path)[0]["first_bad_step"] == 9


def test_stopped_at_the_step_that_makes_it_go_back(again: Config, tmp_path: Path, reference: Path) -> None:
    assert run(again, ROW, StopAfter(1)) == 75
    assert [record["carried_out"] for record in rollbacks_of(tmp_path)] == [True]
    assert read_metrics(tmp_path / "runs" / "small")[-1]["step"] == 4
    assert run(again, ROW) == 0
    assert_same_end(tmp_path, reference)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("module", "function", "recorded"),
    [
        (roll_back, "write_rollbacks", False),
        (roll_back, "carry_out", True),
        (rollbacks, "truncate_metrics", True),
        (rollbacks, "write_rollbacks", True),
    ],
    ids=["before the record", "after the record", "checkpoints aside", "not marked as done"],
)
def test_killed_while_going_back(
    again: Config,
    tmp_path: Path,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    recorded: bool,
) -> None:
    def die(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(module, function, die)
    with pytest.raises(KilledError):
        run(again, ROW)
    monkeypatch.undo()
    file = tmp_path / "runs" / "small" / "rollbacks.jsonl"
    assert [record["carried_out"] for record in rollbacks_of(tmp_path)] == [False] if recorded else not file.exists()
    assert run(again, ROW) == 0
    assert_same_end(tmp_path, reference)
    assert [record["carried_out"] for record in rollbacks_of(tmp_path)] == [True]


def test_more_rollbacks_than_allowed(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first one leads on to more bad data. Each time the old model is gone before a new one is built."""
    models: list[weakref.ref[SmolTolk]] = []
    build: Callable[..., SmolTolk] = ModelBuilder.build

    def counted(*arguments: Any) -> SmolTolk:
        assert not any(model() for model in models)
        model = build(*arguments)
        models.append(weakref.ref(model))
        return model

    rows = ROW | {(JOINT, step): math.nan for step in (10, 11, 12)}
    config = make_config(tmp_path, sets, "train.guard.max_rollbacks=1")
    monkeypatch.setattr(ModelBuilder, "build", counted)
    gc.collect()
    with pytest.raises(UserError) as error:
        run(config, rows)
    message = str(error.value)
    assert message.startswith("training has diverged: in the stage 'joint', up to step 11, the losses or gradients of")
    assert "the run was rolled back 1 time already (see " in message and "higher train.guard.max_rollbacks" in message
    monkeypatch.undo()
    assert len(models) == 3 and len(rollbacks_of(tmp_path)) == 1
    assert run(make_config(tmp_path, sets, "train.guard.max_rollbacks=2"), rows) == 0
    assert [record["skipped_data"] for record in rollbacks_of(tmp_path)] == [[5, 9], [9, 13]]
    other = tmp_path / "other"
    config = make_config(other, sets)
    with without(checksums(config, [(JOINT, step) for step in range(5, 13)])):
        assert train(config) == 0
    assert_same_end(tmp_path, other)
    aside = [path.name for path in (tmp_path / "runs" / "small" / "checkpoints").glob("*.rolled-back-*")]
    assert aside == ["step-00000008.rolled-back-2"]


def test_a_spike(tmp_path: Path, sets: Path) -> None:
    """A hundred times the loss in three steps in a row; once before, in one step, which is an outlier."""
    guard = ("train.guard.spike_sigma=50", "train.guard.spike_window=4", "train.guard.spike_patience=3")
    spoilt = {(JOINT, 4): 100.0, **dict.fromkeys(ROW, 100.0)}
    assert run(make_config(tmp_path, sets, *guard), spoilt) == 0
    (record,) = rollbacks_of(tmp_path)
    assert (record["first_bad_step"], record["last_bad_step"]) == (9, 11)
    assert "the losses of 3 steps were above" in record["reason"]
    other = tmp_path / "other"
    config = make_config(other, sets, *guard)
    with without(checksums(config, LEFT_OUT)):
        assert run(config, {(JOINT, 4): 100.0}) == 0
    assert_same_end(tmp_path, other)


def test_back_to_the_beginning(tmp_path: Path, sets: Path) -> None:
    """Where there is no checkpoint yet. The record keeps the folder bound to its configuration."""
    short = ("train.max_steps=3", "train.guard.max_skipped_in_a_row=2")
    config = make_config(tmp_path, sets, *short)
    assert run(config, {(TEXT, 0): math.nan, (TEXT, 1): math.nan}, StopAfter(2)) == 75
    (record,) = rollbacks_of(tmp_path)
    assert record["to_step"] == 0 and record["skipped_data"] == [0, 2]
    assert read_metrics(tmp_path / "runs" / "small") == []
    with pytest.raises(UserError, match="holds a run of another configuration"):
        train(make_config(tmp_path, sets, *short, "run.seed=1"))
    assert train(config) == 0
    other = tmp_path / "other"
    config = make_config(other, sets, *short)
    with without(checksums(config, [(TEXT, 0), (TEXT, 1)])):
        assert train(config) == 0
    assert_same_end(tmp_path, other, 3)


def test_checkpoints_to_go_back_to_are_kept_as_long_as_steps_are_bad(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, sets, "checkpoint.keep_last=1", "checkpoint.every_steps=1", "train.max_steps=12")
    assert run(config, ROW) == 0
    (record,) = rollbacks_of(tmp_path)
    # The one before was no longer there: the data of its step was learned.
    assert record["to_step"] == 8 and record["skipped_data"] == [6, 9]
    folders = sorted(path.name for path in (tmp_path / "runs" / "small" / "checkpoints").glob("step-????????"))
    assert folders == ["step-00000012"]


def test_nothing_left_to_go_back_to(again: Config, tmp_path: Path) -> None:
    for step in (2, 4, 8):
        shutil.rmtree(tmp_path / "runs" / "small" / "checkpoints" / f"step-{step:08d}")
    with pytest.raises(UserError, match="no valid checkpoint of step 8 or before is left to roll back to"):
        run(again, ROW)
    assert not (tmp_path / "runs" / "small" / "rollbacks.jsonl").exists()


def test_a_damaged_record_is_not_passed_over(again: Config, tmp_path: Path) -> None:
    file = tmp_path / "runs" / "small" / "rollbacks.jsonl"
    record = rollbacks.Rollback(1, "", "joint", "", 9, 11, 4, (5, 9), False)
    rollbacks.write_rollbacks(file.parent, [record, replace(record, number=2)])
    first, second = file.read_text().splitlines(keepends=True)
    for content in ("", second, first + second[:20], first.replace("[5, 9]", "[5]"), "[]\n"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"rollbacks.jsonl cannot be read.*run.restart=true"):
            train(again)
    assert read_metrics(file.parent)[-1]["step"] == 10
