"""The disk becomes full in the middle of a run: it ends clearly, or continues where the numbers are not needed."""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_disk import MakeDisk
from small_runs import NUM_STEPS, read_metrics, small_config, write_config

from tolktrain import cli
from tolktrain.checkpoint.manifest import verify
from tolktrain.checkpoint.store import read_moments, read_parameters
from tolktrain.runs.metrics import MetricsFile, truncate_metrics
from tolktrain.train.process import logging_to
from tolktrain.train.run import train

pytestmark = pytest.mark.slow


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something once, before the line of a step is written."""
    write = MetricsFile.write

    def wrapped(self: MetricsFile, line: dict[str, Any]) -> None:
        if line["step"] == step and "loss" in line:
            act()
        write(self, line)

    monkeypatch.setattr(MetricsFile, "write", wrapped)


def assert_whole_lines(run_dir: Path, at_least: int) -> None:
    """metrics.jsonl holds whole lines, of each step from the first one on."""
    lines = (run_dir / "metrics.jsonl").read_text()
    assert lines.endswith("\n")
    steps = [line["step"] for line in map(json.loads, lines.splitlines()) if "loss" in line]
    assert steps == [*range(1, len(steps) + 1)] and at_least <= len(steps) < NUM_STEPS


@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("full_at", [1, 4, 5])
def test_the_run_ends_and_goes_on_the_same(
    make_disk: MakeDisk,
    sets: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full_at: int,
    background: str,
) -> None:
    disk = make_disk(8 << 10)
    command = ["train", str(write_config(disk.path, sets)), "--skip-health-check", "evaluation.after_training=false"]
    command += [f"checkpoint.background={background}"]
    at_step(monkeypatch, full_at, disk.fill)
    assert cli.main(command) == 1
    run_dir = disk.path / "runs" / "small"
    # The last block of metrics.jsonl may have room for a few lines more.
    errors = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"error: {run_dir}/(metrics\.jsonl|checkpoints/\S+): No space left on device \(0\.\d MB are free\); free some,"
        r" .*and run the same command again.*",
        errors[-1],
    ), errors
    for line in errors[:-1]:  # other failures are reported once
        assert "training continues" in line and errors.count(line) == 1, errors
    if full_at == 1:
        assert not run_dir.exists()  # nothing had been done
    else:
        assert_whole_lines(run_dir, full_at - 1)
    for folder in (run_dir / "checkpoints").glob("step-*"):
        verify(folder)
    monkeypatch.undo()

    disk.empty()
    assert cli.main(command) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    assert not list(run_dir.rglob(".tmp-*"))
    assert_same_checkpoint(run_dir, uninterrupted)


def assert_same_checkpoint(run_dir: Path, expected: Path) -> None:
    """The last checkpoints hold the same, bit for bit."""
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    ours, theirs = ((read_parameters(run / name), *read_moments(run / name)) for run in (run_dir, expected))
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.keys() == wanted.keys()
        assert all(found[key].equal(value) for key, value in wanted.items())


def test_a_line_that_fits_only_in_part_is_not_written(
    tmp_path: Path, make_disk: MakeDisk, sets: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, run_dir = make_disk(4), tmp_path / "runs" / "small"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").symlink_to(disk.path / "metrics.jsonl")
    command = ["train", str(write_config(tmp_path, sets)), "--skip-health-check", "evaluation.after_training=false"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run_dir}/metrics.jsonl: No space left on device (") and error.count("\n") == 1
    assert error.endswith(f"run the same command again (details in {run_dir}/logs/rank-00000.log)\n")
    assert_whole_lines(run_dir, 3)
    # What continues puts a file into the run directory in place of the link.
    assert cli.main(command) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    assert_same_checkpoint(run_dir, uninterrupted)


def test_curves_are_not_needed(
    tmp_path: Path,
    make_disk: MakeDisk,
    sets: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    disk, run_dir = make_disk(64), tmp_path / "runs" / "small"
    run_dir.mkdir(parents=True)
    (run_dir / "tensorboard").symlink_to(disk.path)
    at_step(monkeypatch, 1, disk.fill)
    at_step(monkeypatch, 8, disk.empty)
    assert train(small_config(tmp_path, sets, "logging.tensorboard=true")) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    messages = [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()]
    assert len(messages) == 1 and "events.out.tfevents" in messages[0] and "training continues" in messages[0]
    events = EventAccumulator(str(disk.path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [*range(8, NUM_STEPS + 1)]


def test_curves_that_fit_in_part(tmp_path: Path, make_disk: MakeDisk, sets: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    disk, run_dir = make_disk(4), tmp_path / "runs" / "small"
    run_dir.mkdir(parents=True)
    (run_dir / "tensorboard").symlink_to(disk.path)
    assert train(small_config(tmp_path, sets, "logging.tensorboard=true")) == 0
    events = EventAccumulator(str(disk.path))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == [*range(1, len(steps) + 1)] and 3 <= len(steps) < NUM_STEPS


def test_a_log_is_not_needed(
    tmp_path: Path,
    make_disk: MakeDisk,
    sets: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk, run_dir = make_disk(64), tmp_path / "runs" / "small"
    run_dir.mkdir(parents=True)
    (run_dir / "logs").symlink_to(disk.path)

    def chatter() -> None:
        for number in range(50):
            logging.getLogger("tolktrain").info("%d %s", number, "x" * 200)

    at_step(monkeypatch, 2, lambda: (disk.fill(), chatter()))
    assert train(small_config(tmp_path, sets)) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    error = capsys.readouterr().err
    assert error.count("No space left on device") == 1, error
    assert "Traceback" not in error and "Logging error" not in error
    assert re.search(rf"warning: .*'{run_dir}/logs/rank-00000.log'; training continues", error)
    log = (disk.path / "rank-00000.log").read_text()
    assert log.endswith("\n") and " 0 xxx" in log and " 49 xxx" not in log


def test_a_log_is_written_again_when_there_is_room(
    make_disk: MakeDisk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    disk, logger = make_disk(64), logging.getLogger("tolktrain.test")
    with logging_to(disk.path / "logs" / "rank-00003.log", 3):
        for _ in range(2):
            disk.fill()
            for _ in range(5):
                logger.info("lost %s", "x" * 5000)
            disk.empty()
            logger.info("kept")
        disk.fill()  # at the end too, where a buffer would be flushed
        logger.info("lost %s", "x" * 5000)
    assert capsys.readouterr().err.count("No space left on device") == 1
    lines = (disk.path / "logs" / "rank-00003.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["kept", "kept"]


def test_an_output_file_on_the_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a job's stderr leads may be what is full; a warning must not end training."""
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it tries again
        monkeypatch.setattr(sys, "stderr", full)
        with logging_to(tmp_path / "logs" / "rank-00000.log", 0):
            logging.getLogger("tolktrain").warning("nobody will read this")
            logging.getLogger("tolktrain").warning("nor this")
        monkeypatch.undo()
    assert "nor this" in (tmp_path / "logs" / "rank-00000.log").read_text()


def test_metrics_are_cut_as_a_whole(make_disk: MakeDisk) -> None:
    """Going back, and going on after a kill, drop the lines of steps that are run again."""
    disk = make_disk(64)
    lines = [json.dumps({"step": step, "loss": 1.0, "filling": "x" * 900}) + "\n" for step in range(1, 21)]
    (disk.path / "metrics.jsonl").write_text("".join(lines) + '{"step": 21, "lo')
    disk.refuses(lambda: truncate_metrics(disk.path, 15), "metrics.jsonl", leaving_kib=8)
    assert (disk.path / "metrics.jsonl").read_text() == "".join(lines[:15])


@pytest.mark.parametrize("leaving_kib", [0, 4, 12])
def test_a_start_on_a_full_disk(
    make_disk: MakeDisk,
    sets: Path,
    uninterrupted: Path,
    capsys: pytest.CaptureFixture[str],
    leaving_kib: int,
) -> None:
    disk = make_disk(8 << 10)
    command = ["train", str(write_config(disk.path, sets)), "--skip-health-check", "evaluation.after_training=false"]
    shutil.copytree(uninterrupted, disk.path / "runs" / "small")
    for path in (disk.path / "runs" / "small" / "checkpoints").glob("step-*"):
        if path.name > "step-00000007":
            shutil.rmtree(path)
    disk.fill(leaving_kib)
    assert cli.main(command) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    for folder in (disk.path / "runs" / "small" / "checkpoints").glob("step-*"):
        verify(folder)
    disk.empty()
    assert cli.main(command) == 0
    assert read_metrics(disk.path / "runs" / "small") == read_metrics(uninterrupted)


def test_a_new_run_on_a_full_disk(make_disk: MakeDisk, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = make_disk(256)
    command = ["train", str(write_config(disk.path, sets)), "--skip-health-check", "train.max_steps=1"]
    disk.fill()
    assert cli.main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir(disk.path).count("small.yaml") == 1
