"""Optimizer offload to the memory of the node: where master weights, moments and the update live, and nothing else."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MIXED, RATES, Memory, assembled, cut_batch, make_batch, small_config, tensors_of

from tolktrain.checkpoint.slices import Snapshot
from tolktrain.config.data import Strategy
from tolktrain.data.batch import Batch
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import load_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resolved import ResolvedSettings

pytestmark = pytest.mark.slow

Make = Callable[..., Engine]
BY_STAGE = pytest.mark.parametrize("zero_stage", [1, 2, 3])
BY_PRECISION = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@pytest.fixture
def make(tmp_path: Path, sets: Path) -> Make:
    """Makes an engine for the last stage (everything trained) and four micro batches unless given."""

    def make(
        zero_stage: int,
        precision: str,
        offload: bool = True,
        stage: int = 2,
        model: SmolTolk | None = None,
        number: int = 4,
    ) -> Engine:
        zero: dict[str, Any] = {"stage": zero_stage}
        if offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        file = tmp_path / "deepspeed.json"
        file.write_text(json.dumps({"zero_optimization": zero}))
        overrides = (
            f"train.micro_batch_size={8 // number}",
            f"train.precision={precision}",
            "deepspeed.zero_stage=null",
        )
        config = small_config(tmp_path, sets, *overrides, f"deepspeed.config={file}")
        model = SmolTolk(Architecture.from_config(config.model), seed=0) if model is None else model
        settings = ResolvedSettings.of(config, model.architecture, initialize())
        return Engine(model, config.train.stages[stage], config, initialize(), settings)

    return make


def micro_batches(seed: int, strategies: list[Strategy] = MIXED, number: int = 4) -> list[Batch]:
    return cut_batch(make_batch(strategies, seed), number)


def assert_equal(one: Snapshot, other: Snapshot, tolerance: float = 0.0) -> None:
    """Parameters and moments agree, each by its norm. What is next to nothing is all rounding."""
    for kind, tensors in tensors_of(one).items():
        expected = tensors_of(other)[kind]
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert (tensor - expected[name]).norm() <= tolerance * max(expected[name].norm(), 1e-8), (kind, name)


def comparable(zero_stage: int, precision: str) -> int:
    """Number of micro batches in a step that is the same with and without offload.

    Without offload, ZeRO 1 in bf16 does not round the sum of the micro batches' gradients on a single data rank. Adam
    enlarges that where gradients nearly cancel, more on one processor than on another; so there, nothing is summed.
    """
    return 1 if (zero_stage, precision) == (1, "bf16") else 4


@BY_PRECISION
@BY_STAGE
def test_training_is_the_same_as_on_the_device(make: Make, zero_stage: int, precision: str) -> None:
    """In bf16 too, where gradients are added up in float32 with and without offload."""
    number = comparable(zero_stage, precision)
    engines = [make(zero_stage, precision, offload, number=number) for offload in (False, True)]
    for seed in range(3):
        here, there = [engine.train_step(micro_batches(seed, number=number), RATES) for engine in engines]
        assert there.counts == here.counts
        for key in ("text_nll", "speech_nll", "entropy", "grad_norm"):
            assert getattr(there, key) == pytest.approx(getattr(here, key), rel=1e-5), (seed, key)
    assert_equal(engines[1].snapshot(), engines[0].snapshot(), 1e-5)
    assert engines[1].num_updates == 3


@BY_PRECISION
@BY_STAGE
def test_restored_engines_go_on_the_same(make: Make, zero_stage: int, precision: str) -> None:
    """Bit by bit, from nothing but the snapshot's tensors and the number of updates."""
    engine = make(zero_stage, precision)
    for seed in range(2):
        engine.train_step(micro_batches(seed), RATES)
    saved, updates = engine.snapshot(), engine.num_updates
    expected = [engine.train_step(micro_batches(seed), RATES) for seed in (2, 3)]

    model = SmolTolk(engine.model.architecture, seed=None)
    load_canonical(model, assembled([saved.parameters]))
    other = make(zero_stage, precision, model=model)
    other.restore_moments(Memory(tensors_of(saved)), updates)
    assert_equal(other.snapshot(), saved)
    assert [other.train_step(micro_batches(seed), RATES) for seed in (2, 3)] == expected
    assert_equal(other.snapshot(), engine.snapshot())


@BY_STAGE
def test_a_checkpoint_without_offload_is_continued_with_it(make: Make, zero_stage: int) -> None:
    number = comparable(zero_stage, "bf16")
    engine = make(zero_stage, "bf16", offload=False, number=number)
    engine.train_step(micro_batches(0, number=number), RATES)
    saved = engine.snapshot()
    model = SmolTolk(engine.model.architecture, seed=None)
    load_canonical(model, assembled([saved.parameters]))
    other = make(zero_stage, "bf16", model=model, number=number)
    other.restore_moments(Memory(tensors_of(saved)), engine.num_updates)
    assert_equal(other.snapshot(), saved)
    for one in (engine, other):
        one.train_step(micro_batches(1, number=number), RATES)
    assert_equal(other.snapshot(), engine.snapshot(), 1e-5)


@BY_STAGE
def test_a_gradient_does_not_outlive_its_step(make: Make, zero_stage: int) -> None:
    """DeepSpeed keeps gradients on the host and overwrites them: text alone must not move the speech parameters by the
    gradients of the step before."""
    plain, engine = make(0, "fp32", offload=False), make(zero_stage, "fp32")
    for seed, strategies in enumerate((MIXED, ["text"] * 8)):
        norms = [e.train_step(micro_batches(seed, strategies), RATES).grad_norm for e in (plain, engine)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert_equal(engine.snapshot(), plain.snapshot(), 1e-5)


@BY_PRECISION
@BY_STAGE
def test_a_step_with_bad_gradients_changes_nothing(make: Make, zero_stage: int, precision: str) -> None:
    engine = make(zero_stage, precision)
    engine.train_step(micro_batches(0), RATES)
    before = engine.snapshot()
    hooks = [parameter.register_hook(lambda grad: grad * math.nan) for parameter in engine.model.parameters()]
    assert engine.train_step(micro_batches(1), RATES).skipped
    for hook in hooks:
        hook.remove()
    assert_equal(engine.snapshot(), before)
    assert engine.num_updates == 1
    assert not engine.train_step(micro_batches(1), RATES).skipped and engine.num_updates == 2


@BY_STAGE
def test_frozen_parameters_stay(make: Make, zero_stage: int) -> None:
    interleaved: list[Strategy] = ["interleaved"] * 8
    plain, engine = make(0, "fp32", offload=False, stage=1), make(zero_stage, "fp32", stage=1)
    before = assembled([engine.snapshot().parameters])
    for seed in range(2):
        for one in (plain, engine):
            one.train_step(micro_batches(seed, interleaved), RATES)
    after = engine.snapshot()
    assert_equal(after, plain.snapshot(), 1e-5)
    for name, value in assembled([after.parameters]).items():
        assert torch.equal(value, before[name]) == name.startswith(("backbone", "text_")), name


def test_summed_gradients_differ_by_a_rounding_only(make: Make) -> None:
    """The case that `comparable` leaves out, before the first update of Adam."""
    norms = [make(1, "bf16", offload).train_step(micro_batches(0), RATES).grad_norm for offload in (False, True)]
    assert norms[1] == pytest.approx(norms[0], rel=2**-8)
