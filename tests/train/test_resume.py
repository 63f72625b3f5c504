"""An interrupted run continues as if nothing had happened: the same metrics, bit by bit, and the same model."""

import json
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import NUM_STEPS, TOKENS_PER_STEP, StopAfter, read_metrics, small_config, write_config
from warm import Warm

from tolktrain import cli
from tolktrain.checkpoint.manifest import digest_files, write_manifest
from tolktrain.checkpoint.slices import PARAMETERS
from tolktrain.checkpoint.store import read_moments, read_parameters, read_state
from tolktrain.interop.weights import load_weights
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.runs.copies import uploads_of
from tolktrain.train.run import train

pytestmark = pytest.mark.slow

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
    """Stopped with a frozen backbone, and with everything trained, in stages of 1, 2 and 2 steps."""
    overrides += tuple(f"train.stages.{i}.tokens={count * TOKENS_PER_STEP}" for i, count in enumerate((1, 2, 2)))
    whole = small_config(tmp_path, sets, *overrides, name="whole")
    assert train(whole) == 0
    config = small_config(tmp_path, sets, *overrides, name="parts")
    assert train(config, StopAfter(2)) == 75 and train(config, StopAfter(2)) == 75 and train(config) == 0
    whole_dir, run_dir = tmp_path / "runs" / "whole", tmp_path / "runs" / "parts"
    assert read_metrics(run_dir) == read_metrics(whole_dir)
    stages = [line["stage"] for line in read_metrics(run_dir) if "loss" in line]
    assert stages == ["text", "adapter", "adapter", "joint", "joint"]
    ours, theirs = (read_parameters(d / "checkpoints" / "step-00000005") for d in (run_dir, whole_dir))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_killed_and_started_again(warm: Warm, tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    """kill -9 at a moment that nothing is prepared for, after step 5 of a run with checkpoints after 3 and 4."""
    path = write_config(tmp_path, sets)
    run_dir = tmp_path / "runs" / "small"
    process = warm.start("-m", "tolktrain", "train", path, folder=tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not _reached(run_dir, 5):
            assert process.poll() is None, process.errors
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
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


def test_the_form_of_the_last_release_is_read_everywhere(
    tmp_path: Path, sets: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of files for each kind, whose tensors have the names of parameters alone: resumed exactly, listed,
    verified, copied to a bucket and back, and exported."""
    config, run_dir = small_config(tmp_path, sets), tmp_path / "runs" / "small"
    assert train(config, StopAfter(5)) == 75  # inside the second stage, where some are frozen
    folder = run_dir / "checkpoints" / "step-00000005"
    expected = read_parameters(folder), *read_moments(folder)
    write_in_old_form(folder)
    assert not (folder / "tensors").exists() and len(list(folder.glob("*/*.safetensors"))) == 3
    found = read_parameters(folder), *read_moments(folder)
    assert all(map(same_tensors, found, expected))
    assert cli.main(["checkpoints", str(run_dir), "--verify"]) == 0
    assert "verified" in capsys.readouterr().out
    assert cli.main(["export", str(run_dir), str(tmp_path / "weights")]) == 0
    assert same_tensors(canonical_state(load_weights(tmp_path / "weights")), expected[0])
    with_copies = small_config(tmp_path, sets, f"checkpoint.upload={tmp_path / 'copies'}")
    uploads = uploads_of(with_copies)
    assert uploads is not None
    uploads.submit(folder)
    assert uploads.wait(300) and uploads.close(60)
    shutil.rmtree(run_dir)
    assert train(with_copies) == 0
    assert_same_run(run_dir, uninterrupted)
    assert [path.name for path in (folder / PARAMETERS).iterdir()] == ["shard-00001-of-00001.safetensors"]


def same_tensors(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether they are equal, but for copies that only some have."""
    return bool(some) and all(torch.equal(some[name], others[name]) for name in some.keys() & others.keys())


def write_in_old_form(folder: Path) -> None:
    """Rewrite a checkpoint as it was once written: <kind>/shard-....safetensors."""
    index = json.loads((folder / "tensors.json").read_text())
    names = ["state.json", "tensors.json"]
    for kind, tensors in index.items():
        (folder / kind).mkdir()
        content: dict[str, dict[str, torch.Tensor]] = {}
        for name, entry in tensors.items():
            for stored in entry["slices"]:
                whole = load_file(folder / stored["file"])
                stored["file"] = f"{kind}/{Path(stored['file']).name}"
                content.setdefault(stored["file"], {})[name] = whole[f"{kind}/{name}"]
        for file, part in content.items():
            save_file(part, folder / file)
            names.append(file)
    shutil.rmtree(folder / "tensors")
    (folder / "tensors.json").write_text(json.dumps(index))
    write_manifest(folder, digest_files(folder, names))
