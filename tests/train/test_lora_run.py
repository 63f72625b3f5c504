"""Low-rank updates in a run: from a base, interrupted, continued, exported, and refused where they would be lost."""

from pathlib import Path

import pytest
import torch
from small_runs import MIXED, StopAfter, make_batch, read_metrics, small_config

from tolktrain.checkpoint.store import read_parameters
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.interop.weights import export_weights, load_weights
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.lora import is_lora
from tolktrain.runs.load_model import load_model
from tolktrain.train.run import train

pytestmark = pytest.mark.slow

UPDATES = ("model.lora.rank=3", "train.stages.0.trainable=[lora]", "train.stages.1.trainable=[lora, pooling]")


def tuned(folder: Path, sets: Path, base: Path, *overrides: str) -> Config:
    """A run that begins from `base`: a stage of updates only, and one that trains the pooling too."""
    stages = ("train.last_stage=adapter", "train.stages.0.lora_learning_rate=0.02", "deepspeed.zero_stage=2")
    return small_config(folder, sets, *UPDATES, *stages, f"checkpoint.init_from={base}", *overrides)


def test_from_a_base_to_merged_weights(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert train(tuned(whole, sets, uninterrupted)) == 0
    for stop in (2, 3):
        assert train(tuned(again, sets, uninterrupted), StopAfter(stop)) == 75
    assert train(tuned(again, sets, uninterrupted)) == 0
    run_dir = whole / "runs" / "small"
    assert read_metrics(run_dir) == read_metrics(again / "runs" / "small")

    base, last = read_parameters(uninterrupted / "checkpoints/step-00000012"), "checkpoints/step-00000007"
    found = read_parameters(run_dir / last)
    assert all(torch.equal(tensor, found[name]) for name, tensor in base.items() if not name.startswith("pooling."))
    updates = {name: tensor for name, tensor in found.items() if is_lora(name)}
    assert len(updates) == len(found) - len(base) == 2 * 7 * 4 and all(tensor.any() for tensor in updates.values())
    continued = read_parameters(again / "runs" / "small" / last)
    assert all(torch.equal(tensor, continued[name]) for name, tensor in found.items())

    export_weights(run_dir, tmp_path / "merged", report=lambda line: None)
    merged, (model, *_) = load_weights(tmp_path / "merged"), load_model(run_dir)
    assert model.architecture.lora is not None and merged.architecture.lora is None
    inputs = ModelInputs.from_batch(make_batch(MIXED))
    with torch.no_grad():
        sums = zip(merged(inputs), model(inputs), load_model(uninterrupted)[0](inputs), strict=True)
    for ours, theirs, before in sums:
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        assert theirs.item() != pytest.approx(before.item(), rel=1e-4)

    with pytest.raises(
        UserError, match=r"low-rank updates there \(rank 3, alpha 16\).*merge them first: tolktrain exp"
    ):
        train(small_config(tmp_path / "other", sets, f"checkpoint.init_from={run_dir}"))
