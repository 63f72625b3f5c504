"""Runs that begin from trained weights: under every layout, interrupted, requeued, and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from initial_cases import source_run
from initial_ranks import begin
from launched import launch
from small_runs import StopAfter, assembled, read_metrics, small_config, write_config
from warm import Warm

from tolktrain import cli
from tolktrain.checkpoint.store import read_parameters, read_state
from tolktrain.config import Config
from tolktrain.data.records import DatasetInfo
from tolktrain.errors import UserError
from tolktrain.parallel.layout import release_groups
from tolktrain.train.run import train

pytestmark = pytest.mark.slow

# Ids, codebooks, layers, pooling and the tied head differ, and no table can be divided by two.
SWITCHES = (
    "model.backbone.text_vocab_size=110 model.backbone.tie_text_embeddings=false model.speech.num_units=61"
    " model.speech.num_codebooks=2 model.speech.output_adapter_layers=2 model.speech.layer_pooling=dynamic"
    ' model.special_tokens=["<|a|>","<|b|>"]'
)
LAYOUTS = (
    "parallel.tensor_parallel_size=2 parallel.sequence_parallel=true",
    "parallel.pipeline_parallel_size=2 train.precision=bf16",
    "deepspeed.zero_stage=3 train.micro_batch_size=2",
    "deepspeed.zero_stage=3 train.micro_batch_size=2 train.precision=bf16",
)


def test_every_layout_begins_with_the_same_weights(warm: Warm, tmp_path: Path, sets: Path) -> None:
    with source_run(tmp_path, small_config(tmp_path, sets)):
        whole = assembled([begin(tmp_path, sets, SWITCHES.split())])
        release_groups()
        launch(warm, "initial_ranks.py", 2, tmp_path, sets, "/".join(LAYOUTS), SWITCHES)  # type: ignore[arg-type]
    for number, layout in enumerate(LAYOUTS):
        found = assembled(torch.load(tmp_path / f"layout-{number}-{rank}.pt") for rank in range(2))
        assert found.keys() == whole.keys(), layout
        assert [name for name in whole if not torch.equal(found[name], whole[name])] == [], layout


@pytest.fixture
def source(tmp_path: Path, uninterrupted: Path) -> Path:
    """A finished run that may be changed."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "source"))


@pytest.fixture
def config(tmp_path: Path, sets: Path, source: Path) -> Config:
    """A run with a deeper adapter that begins from `source`."""
    return small_config(tmp_path, sets, "model.speech.output_adapter_layers=2", f"checkpoint.init_from={source}")


def without_key(config: Config) -> Config:
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"init_from": None})})


def test_the_new_run_has_the_weights_and_nothing_else(
    tmp_path: Path, sets: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of next to nothing, the first checkpoint holds what the run has begun from."""
    still = [f"train.stages.2.{key}=1e-30" for key in ("learning_rate", "speech_learning_rate")]
    overrides = [*still, "train.stages.0.learning_rate=1e-30", f"checkpoint.init_from={source}", "train.max_steps=1"]
    assert train(small_config(tmp_path, sets, *overrides)) == 0
    run_dir = tmp_path / "runs" / "small"
    folder = run_dir / "checkpoints" / "step-00000001"
    found, old = read_parameters(folder), read_parameters(source / "checkpoints" / "step-00000012")
    assert found.keys() == old.keys()
    assert all(torch.allclose(found[name], old[name], rtol=0, atol=1e-25) for name in old)
    state = read_state(folder)
    assert (state["step"], state["adam_updates"], state["stage_name"]) == (1, 1, "text")
    info = DatasetInfo.read(str(sets / "train"))
    assert info.text is not None and info.speech is not None
    assert state["tokenizers"] == {"text": info.text.sha256, "speech": info.speech.sha256}
    printed = capsys.readouterr().out
    assert f"initial weights: {source / 'checkpoints' / 'step-00000012'} (step 12, sha256 " in printed
    assert "  newly initialized: nothing\n  not used: nothing\n" in printed
    log = (run_dir / "logs" / "rank-00000.log").read_text()
    assert "taken: " in log and "speech_embedding.0 (1)" in log
    record = json.loads((run_dir / "initial_weights.json").read_text())
    assert (record["step"], record["stage"]) == (12, "joint") and len(record["taken"]) == len(old)


@pytest.mark.parametrize("keeps_key", [True, False])
def test_a_requeued_run_continues_from_its_own_checkpoints(
    keeps_key: bool, tmp_path: Path, sets: Path, source: Path, config: Config
) -> None:
    """Though the weights that it has begun from are gone."""
    assert train(config) == 0
    run_dir, whole = tmp_path / "runs" / "small", tmp_path / "whole"
    run_dir.rename(whole)
    assert train(config, StopAfter(5)) == 75
    shutil.rmtree(source)
    assert train(config if keeps_key else without_key(config)) == 0
    assert read_metrics(run_dir) == read_metrics(whole)
    ours, theirs = (read_parameters(path / "checkpoints" / "step-00000012") for path in (run_dir, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_has_begun_otherwise_refuses_the_key(
    tmp_path: Path, sets: Path, source: Path, config: Config
) -> None:
    plain = without_key(config)
    assert train(plain, StopAfter(4)) == 75
    with pytest.raises(UserError, match="has begun from random weights or a backbone and continues from its own"):
        train(config)
    restarted = config.model_copy(update={"run": config.run.model_copy(update={"restart": True})})
    assert train(restarted, StopAfter(4)) == 75
    assert (tmp_path / "runs" / "small" / "initial_weights.json").exists()
    other = shutil.copytree(source, tmp_path / "other")
    shutil.rmtree(other / "checkpoints" / "step-00000012")
    elsewhere = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"init_from": str(other)})})
    with pytest.raises(UserError, match=f"has begun from {source} and continues from its own checkpoints; remove"):
        train(elsewhere)
    moved = source.rename(tmp_path / "moved")
    there = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"init_from": str(moved)})})
    assert train(there) == 0


def test_weights_that_do_not_fit_leave_nothing(
    tmp_path: Path, sets: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, sets)
    arguments = ["train", str(path), f"checkpoint.init_from={source}", "model.backbone.num_attention_heads=2"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "checkpoint.init_from: " in error and "num_attention_heads is 4 there, 2 in the model" in error
    assert not (tmp_path / "runs").exists()
