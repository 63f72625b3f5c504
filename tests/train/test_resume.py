"""An interrupted run goes on as if nothing had happened: the same metrics, bit by bit, and the same model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import NUM_STEPS, StopAfter, read_metrics, small_config, write_config

from tolktrain.checkpoint.store import read_moments, read_parameters, read_state
from tolktrain.train.run import train

FINAL = f"checkpoints/step-{NUM_STEPS:08d}"


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert read_metrics(run_dir) == read_metrics(expected)
    tensors = [(read_parameters(folder / FINAL), *read_moments(folder / FINAL)) for folder in (run_dir, expected)]
    for ours, theirs in zip(*tensors, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    states = [read_state(folder / FINAL) for folder in (run_dir, expected)]
    assert states[0]["random_states"] == states[1]["random_states"]


def test_the_same_seed_gives_the_same_run(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    assert train(small_config(tmp_path, sets)) == 0
    assert_same_run(tmp_path / "runs" / "small", uninterrupted)


def test_another_seed_gives_another_run(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    assert train(small_config(tmp_path, sets, "run.seed=1", "train.max_steps=1")) == 0
    assert read_metrics(tmp_path / "runs" / "small")[0]["loss"] != read_metrics(uninterrupted)[0]["loss"]


@pytest.mark.parametrize(
    "stops",
    [(1,), (3,), (3, 3), (2, 3, 3)],
    ids=["first step", "end of a stage", "end of a stage, then inside", "inside each stage"],
)
def test_stopped_and_started_again(tmp_path: Path, sets: Path, uninterrupted: Path, stops: tuple[int, ...]) -> None:
    """Stage ends come after steps 3 and 7, checkpoints after 4 and 8 too, validations after 5 and 10 too."""
    config = small_config(tmp_path, sets)
    run_dir, done = tmp_path / "runs" / "small", 0
    for stop in stops:
        done += stop
        assert train(config, StopAfter(stop)) == 75
        assert (run_dir / "checkpoints" / "latest").read_text() == f"step-{done:08d}\n"
        assert read_metrics(run_dir)[-1]["step"] == done
    assert train(config) == 0
    assert_same_run(run_dir, uninterrupted)


def test_ended_early_and_extended(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    for steps in ("train.max_steps=2", "train.max_steps=5", "train.max_steps=null"):
        assert train(small_config(tmp_path, sets, steps)) == 0
    assert_same_run(tmp_path / "runs" / "small", uninterrupted)


def test_ended_after_a_stage_and_extended(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    """The text stage has 3 steps, the adapter stage 4."""
    run_dir = tmp_path / "runs" / "small"
    for last, step in (("text", 3), ("text", 3), ("adapter", 7), ("null", NUM_STEPS)):
        assert train(small_config(tmp_path, sets, f"train.last_stage={last}")) == 0
        assert read_metrics(run_dir)[-1]["step"] == step
    assert_same_run(run_dir, uninterrupted)


@pytest.mark.parametrize(
    "overrides",
    [
        ("deepspeed.zero_stage=0", "train.micro_batch_size=2", "data.num_workers=1"),
        ("deepspeed.zero_stage=3", "train.micro_batch_size=2"),
        ("deepspeed.zero_stage=3", "train.precision=bf16"),
    ],
    ids=["ZeRO 0 with accumulation", "ZeRO 3", "ZeRO 3 in bf16"],
)
def test_other_settings(tmp_path: Path, sets: Path, overrides: tuple[str, ...]) -> None:
    """Stopped with a frozen backbone, and with everything trained."""
    overrides += ("train.max_steps=9",)
    whole = small_config(tmp_path, sets, *overrides, name="whole")
    assert train(whole) == 0
    config = small_config(tmp_path, sets, *overrides, name="parts")
    assert train(config, StopAfter(5)) == 75 and train(config, StopAfter(3)) == 75 and train(config) == 0
    whole_dir, run_dir = tmp_path / "runs" / "whole", tmp_path / "runs" / "parts"
    assert read_metrics(run_dir) == read_metrics(whole_dir)
    ours, theirs = (read_parameters(d / "checkpoints" / "step-00000009") for d in (run_dir, whole_dir))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_killed_and_started_again(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    """kill -9 at a moment that nothing is prepared for, after step 5 of a run with checkpoints after 3 and 4."""
    path = write_config(tmp_path, sets)
    run_dir = tmp_path / "runs" / "small"
    process = subprocess.Popen(
        [sys.executable, "-m", "tolktrain", "train", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + 300
        while not _reached(run_dir, 5):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (run_dir / "checkpoints" / ".tmp-step-00000099" / "parameters").mkdir(parents=True)
    with open(run_dir / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 6, "stage": "jo')  # a line that was being written
    assert train(small_config(tmp_path, sets)) == 0
    assert_same_run(run_dir, uninterrupted)
    assert not list(run_dir.rglob(".tmp-*"))


def _reached(run_dir: Path, step: int) -> bool:
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return False
    return any(json.loads(line)["step"] >= step for line in lines if line.endswith("\n"))


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    sets: Path,
    uninterrupted: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "runs" / "small"
    shutil.copytree(uninterrupted, run_dir)
    config = small_config(tmp_path, sets)
    for step in (NUM_STEPS, 8):
        shard = next((run_dir / f"checkpoints/step-{step:08d}/tensors").iterdir())
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
    assert train(config) == 0
    assert "step-00000008/tensors/shard-00001" in caplog.text
    assert "step-00000008/tensors/shard-00001" in capsys.readouterr().err
    assert_same_run(run_dir, uninterrupted)
    damaged = sorted(path.name for path in (run_dir / "checkpoints").glob("*.damaged"))
    assert damaged == ["step-00000008.damaged", f"step-{NUM_STEPS:08d}.damaged"]


def test_latest_never_names_one_that_was_set_aside(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    shutil.copytree(uninterrupted, checkpoints.parent)
    next((checkpoints / f"step-{NUM_STEPS:08d}" / "tensors").iterdir()).unlink()
    assert train(small_config(tmp_path, sets, "train.max_steps=8")) == 0  # nothing to train
    assert (checkpoints / "latest").read_text() == "step-00000008\n"
