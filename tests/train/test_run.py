"""Runs that are complete, refused, or broken down; what a run leaves behind."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_runs import (
    MIXED,
    NUM_STEPS,
    STEPS_PER_STAGE,
    TOKENS_PER_STEP,
    make_batch,
    read_metrics,
    small_config,
)

from tolktrain.checkpoint import saver
from tolktrain.checkpoint.manifest import FileDigest, digest_files, write_manifest
from tolktrain.checkpoint.store import read_parameters
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.interop.weights import export_weights, load_weights
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.runs.load_model import load_model
from tolktrain.train import run as run_module
from tolktrain.train.run import train

STEP_KEYS = [
    *("step", "stage", "tokens", "loss", "text_loss", "speech_loss", "layer_entropy", "grad_norm", "learning_rate"),
    *("speech_learning_rate", "seconds_per_step", "tokens_per_second", "mfu", "memory_gib"),
    *("memory_reserved_gib", "skipped"),
]


def copied(uninterrupted: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return shutil.copytree(uninterrupted, tmp_path / "runs" / "small")


def times_of(run_dir: Path) -> list[tuple[Path, int]]:
    """When each file of a run was changed, but for the lease, which every start takes."""
    paths = [path for path in run_dir.rglob("*") if path.relative_to(run_dir).parts[0] != "lease"]
    return sorted((path, path.stat().st_mtime_ns) for path in paths)


@pytest.mark.slow
def test_metrics_have_a_line_per_step_and_per_validation(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, NUM_STEPS + 1))
    assert all(list(line) == STEP_KEYS for line in steps)
    stages = [
        name for name, count in zip(("text", "adapter", "joint"), STEPS_PER_STAGE, strict=True) for _ in range(count)
    ]
    assert [line["stage"] for line in steps] == stages
    assert [line["tokens"] for line in steps] == [TOKENS_PER_STEP * line["step"] for line in steps]
    assert all(line["speech_loss"] is None and line["layer_entropy"] is None for line in steps[:3])
    assert all(line["text_loss"] > 0 and line["speech_loss"] > 0 for line in steps[3:7])
    assert all(line["mfu"] is None and 0.05 < line["memory_gib"] < 64 and line["skipped"] == 0 for line in steps)
    assert [line["speech_learning_rate"] for line in steps[3:7]] == pytest.approx([0.01, 0.02, 0.011, 0.002])
    validations = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in validations] == [step for step in (3, 5, 7, 10, 12) for _ in range(3)]
    mixed = validations[2]
    loss, text, speech = (mixed[f"validation.interleaved.held.{kind}"] for kind in ("loss", "text_loss", "speech_loss"))
    assert min(text, speech) < loss < max(text, speech)
    assert list(validations[0]) == ["step", "stage", "validation.text.held.loss"]


def test_the_folder_of_a_run(uninterrupted: Path, sets: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in uninterrupted.iterdir())
    assert names == ["checkpoints", "config.yaml", "deepspeed.json", "heartbeat.json", "lease", "logs", "metrics.jsonl"]
    config = load_config(uninterrupted / "config.yaml")
    assert config.train == small_config(tmp_path, sets).train
    assert [path.name for path in (uninterrupted / "logs").iterdir()] == ["rank-00000.log"]
    checkpoints = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert checkpoints == ["latest", *(f"step-{step:08d}" for step in (3, 4, 7, 8, 12))]
    assert not [path for path in uninterrupted.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


def test_the_model_is_restored_for_evaluation(uninterrupted: Path) -> None:
    model, config, state = load_model(uninterrupted)
    assert state["step"] == NUM_STEPS and config.run.name == "small" and not model.training
    expected = read_parameters(uninterrupted / f"checkpoints/step-{NUM_STEPS:08d}")
    assert all(torch.equal(value, expected[name]) for name, value in canonical_state(model).items())


def test_exported_weights_are_the_trained_model(uninterrupted: Path, tmp_path: Path) -> None:
    export_weights(uninterrupted, tmp_path / "weights", report=lambda _: None)
    exported, (trained, _, _) = load_weights(tmp_path / "weights"), load_model(uninterrupted)
    batch = make_batch(MIXED)
    inputs = ModelInputs.for_next(batch.tokens, batch.speech_in)
    with torch.no_grad():
        ours, theirs = (model.next_logits(inputs) for model in (exported.eval(), trained))
    assert torch.equal(ours.text, theirs.text) and torch.equal(ours.speech, theirs.speech)


def test_restoring_needs_a_run_with_a_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        load_model(tmp_path)
    run_dir = copied(uninterrupted, tmp_path)
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(UserError, match="no valid checkpoint"):
        load_model(run_dir)


def test_a_complete_run_says_so_at_once(
    uninterrupted: Path, tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = copied(uninterrupted, tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be built")

    monkeypatch.setattr("tolktrain.train.model_builder.SmolTolk", fail)
    monkeypatch.setattr(run_module, "check_data", fail)
    before = (run_dir / "metrics.jsonl").read_bytes()
    assert train(small_config(tmp_path, sets)) == 0
    assert "is complete: 12 steps are done" in capsys.readouterr().out
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_another_configuration_is_refused_with_its_differences(uninterrupted: Path, tmp_path: Path, sets: Path) -> None:
    run_dir = copied(uninterrupted, tmp_path)
    before = times_of(run_dir)
    other = small_config(tmp_path, sets, "train.stages.0.learning_rate=0.5", "run.seed=3", "train.max_steps=4")
    with pytest.raises(UserError) as error:
        train(other)
    message = str(error.value)
    assert "run.seed: 0 there, 3 here; it determines the data of every step" in message
    assert "train.stages.0.learning_rate: 0.01 there, 0.5 here; the stage 'text' is complete" in message
    assert "max_steps" not in message and "run.restart=true" in message
    assert times_of(run_dir) == before


def test_a_start_that_came_to_nothing_leaves_a_folder_that_another_has_taken(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "runs" / "small"

    def overtaken(*_: object, **__: object) -> None:
        (run_dir / "lease" / "00000002.json").touch()
        raise UserError("too late")

    monkeypatch.setattr(run_module, "check_data", overtaken)
    with pytest.raises(UserError, match="too late"):
        train(small_config(tmp_path, sets))
    assert sorted(os.listdir(run_dir / "lease")) == ["00000001.json", "00000002.json"]


def test_bad_input_leaves_no_folder_and_deletes_none(uninterrupted: Path, tmp_path: Path, sets: Path) -> None:
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    shapes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    (backbone / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 60, **shapes}))
    for override, message in (
        (f"data.sets.held.path={tmp_path / 'absent'}", "absent"),
        (f"model.backbone={backbone}", "backbone"),
    ):
        with pytest.raises(UserError, match=message):
            train(small_config(tmp_path, sets, override))
        assert not (tmp_path / "runs").exists()
    run_dir = copied(uninterrupted, tmp_path)
    broken = shutil.copytree(sets, tmp_path / "broken")
    shard = broken / "train" / "shard.00000.mds.zstd"
    shard.write_bytes(shard.read_bytes()[:-1])
    for override, message in (
        (f"data.sets.train.path={broken / 'train'}", "shard.00000"),
        (f"model.backbone={backbone}", "backbone"),
    ):
        with pytest.raises(UserError, match=message):
            train(small_config(tmp_path, sets, "run.restart=true", override))
        assert read_metrics(run_dir) == read_metrics(uninterrupted)
        assert (run_dir / "checkpoints" / "latest").exists()


def test_a_refused_start_does_not_occupy_the_folder(tmp_path: Path, sets: Path) -> None:
    (tmp_path / "runs" / "small").mkdir(parents=True)
    with pytest.raises(UserError, match="absent"):
        train(small_config(tmp_path, sets, f"data.sets.held.path={tmp_path / 'absent'}"))
    assert train(small_config(tmp_path, sets, "train.max_steps=1")) == 0


def test_restart_begins_anew(uninterrupted: Path, tmp_path: Path, sets: Path) -> None:
    run_dir = copied(uninterrupted, tmp_path)
    (run_dir / "report.html").write_text("old")
    assert train(small_config(tmp_path, sets, "run.restart=true", "run.seed=3", "train.max_steps=1")) == 0
    assert [line["step"] for line in read_metrics(run_dir)] == [1]
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize("loss", ["all deleted", "all damaged"])
def test_lost_checkpoints_do_not_begin_anew(uninterrupted: Path, tmp_path: Path, sets: Path, loss: str) -> None:
    run_dir = copied(uninterrupted, tmp_path)
    if loss == "all deleted":
        shutil.rmtree(run_dir / "checkpoints")
    else:
        for state in run_dir.glob("checkpoints/*/state.json"):
            state.write_text("{}")
    with pytest.raises(UserError, match="no valid checkpoint to continue from"):
        train(small_config(tmp_path, sets))
    assert read_metrics(run_dir) == read_metrics(uninterrupted)


def test_a_run_that_never_had_a_checkpoint_begins_again(uninterrupted: Path, tmp_path: Path, sets: Path) -> None:
    run_dir = copied(uninterrupted, tmp_path)
    shutil.rmtree(run_dir / "checkpoints")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:2]))
    assert train(small_config(tmp_path, sets, "train.max_steps=3")) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)[: len(read_metrics(run_dir))]


@pytest.mark.parametrize(("background", "steps", "is_lost"), [(1, 4, 0), (1, 5, 1), (0, 2, 0), (0, 3, 1)])
@pytest.mark.slow
def test_how_far_a_run_comes_without_a_checkpoint(
    tmp_path: Path, sets: Path, background: int, steps: int, is_lost: int
) -> None:
    """In the background the first of two steps' interval may still be written after the fourth step."""
    overrides = ["checkpoint.every_steps=2", f"train.stages.0.tokens={9 * TOKENS_PER_STEP}", "train.max_steps=6"]
    config = small_config(tmp_path, sets, *overrides, f"checkpoint.background={'true' if background else 'false'}")
    assert train(config) == 0
    run_dir = tmp_path / "runs" / "small"
    complete = read_metrics(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= steps))
    if is_lost:
        with pytest.raises(UserError, match="no valid checkpoint to continue from"):
            train(config)
    else:
        assert train(config) == 0
        assert read_metrics(run_dir) == complete


def test_a_checkpoint_of_another_architecture_is_refused(uninterrupted: Path, tmp_path: Path, sets: Path) -> None:
    run_dir = copied(uninterrupted, tmp_path)
    for folder in run_dir.glob("checkpoints/step-*"):
        state = json.loads((folder / "state.json").read_text())
        state["architecture"] |= {"num_layers": 7, "layer_pooling": "static"}
        (folder / "state.json").write_text(json.dumps(state))
        files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        write_manifest(folder, digest_files(folder, [name for name in files if name != "manifest.json"]))
    with pytest.raises(UserError, match="another architecture.*num_layers: 7, 2; layer_pooling: static, both"):
        train(small_config(tmp_path, sets))


def test_a_run_is_trained_by_one_at_a_time(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path
) -> None:
    config = small_config(tmp_path, sets, "train.max_steps=1")

    def train_again(*_: object, **__: object) -> None:
        with pytest.raises(UserError, match="another training of this run is active"):
            train(config)
        raise InterruptedError

    monkeypatch.setattr(run_module, "check_data", train_again)
    with pytest.raises(InterruptedError):
        train(config)


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, sets: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, sets)
    run_dir = tmp_path / "runs" / "small"
    manifests: list[Path] = []

    def write_until_full(folder: Path, files: Mapping[str, FileDigest]) -> None:
        manifests.append(folder)
        if len(manifests) == 3:  # after step 7
            raise OSError("No space left on device")
        write_manifest(folder, files)

    monkeypatch.setattr(saver, "write_manifest", write_until_full)
    with pytest.raises(OSError, match="No space left"):
        train(config)
    assert read_metrics(run_dir)[-1]["step"] == 7
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["latest", "step-00000003", "step-00000004"]
    monkeypatch.undo()
    assert train(config) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)


def test_divergence_ends_the_run(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tolktrain.model.loss.loss_from_sums", lambda sums, *_: sums.text_nll * float("nan"))
    overrides = ("train.guard.max_skipped_in_a_row=3", "train.guard.max_rollbacks=0")
    message = "training has diverged: in the stage 'text', up to step 3, the losses or gradients of the last 3 steps"
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=message):
        train(small_config(tmp_path, sets, *overrides))
    lines = read_metrics(tmp_path / "runs" / "small")
    assert [(line["step"], line["skipped"], line["grad_norm"]) for line in lines] == [(n, 1, None) for n in (1, 2, 3)]
    assert caplog.text.count("skipped: its loss or gradients are not finite") == 3


@pytest.mark.slow
def test_bf16_without_zero_trains_and_goes_on(tmp_path: Path, sets: Path) -> None:
    for steps in (2, 4):
        overrides = ("train.precision=bf16", "deepspeed.zero_stage=0", f"train.max_steps={steps}")
        assert train(small_config(tmp_path, sets, *overrides)) == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "runs" / "small") if "loss" in line]
    assert len(losses) == 4 and all(4 < loss < 5 for loss in losses)


@pytest.mark.slow
def test_tensorboard_gets_the_same_numbers(tmp_path: Path, sets: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (2, 3):
        assert train(small_config(tmp_path, sets, "logging.tensorboard=true", f"train.max_steps={steps}")) == 0
    run_dir = tmp_path / "runs" / "small"
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("loss")}
    assert written == pytest.approx({line["step"]: line["loss"] for line in read_metrics(run_dir) if "loss" in line})
    assert [event.step for event in events.Scalars("validation/text/held/loss")] == [3]


def test_wandb_must_be_installed(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(small_config(tmp_path, sets, "logging.wandb_project=any"))


def test_stage_names_must_differ(tmp_path: Path, sets: Path) -> None:
    with pytest.raises(UserError, match="names must differ"):
        train(small_config(tmp_path, sets, "train.stages.0.name=joint"))
    assert not (tmp_path / "runs").exists()
