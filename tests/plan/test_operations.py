"""Computed operations of a step against those that the null GPU has counted (tests/nullgpu/counted-150m.json)."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tolktrain.cluster.accelerators import ACCELERATORS
from tolktrain.cluster.device_models import LIKELY, SUSTAINED
from tolktrain.config.load import load_config
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Candidate, Cluster, configured_candidate
from tolktrain.plan.time import (
    OperationSums,
    Shape,
    computed_operations,
    estimate_step,
    rank_operations,
    update_operations,
    with_rehearsed,
)

ROOT = Path(__file__).resolve().parents[2]
H100 = next(device for device in ACCELERATORS if device.name == "h100")
ALL = ("backbone", "pooling", "speech")


def case(*overrides: str, trainable: tuple[str, ...] = ALL, num_gpus: int = 1) -> tuple[Shape, Candidate]:
    """One micro batch of the 150M model on one GPU, if nothing else is asked for."""
    config = load_config(
        ROOT / "configs/bench/smoltolk-150m.yaml", ["train.global_batch_size=32", "deepspeed.zero_stage=1", *overrides]
    )
    architecture = Architecture.from_config(config.model)
    counts = StepCounts.average(2048, 0.459, 1.0, 60)
    shape = Shape(architecture, counts, 2048, trainable)  # type: ignore[arg-type]
    return shape, configured_candidate(config, architecture, Cluster(num_gpus, num_gpus))


def test_each_part_moves_what_was_counted() -> None:
    counted, computed = Counter[str](), Counter[str]()
    launches = 0.0
    for line in json.loads((ROOT / "tests/nullgpu/counted-150m.json").read_text()):
        counted[line["part"]] += line["bytes"]
        launches += line["launches"]
    shape, candidate = case()
    found = rank_operations(shape, candidate, 0)
    for item, times in found:
        computed[item.part] += times * item.work.bytes
    large = [part for part, moved in counted.items() if moved > 3e8]
    assert len(large) > 10
    wrong = {part: (computed[part], counted[part]) for part in large if not 0.9 < computed[part] / counted[part] < 1.1}
    assert not wrong
    assert sum(computed.values()) == pytest.approx(sum(counted.values()), rel=0.02)
    assert sum(times * item.work.launches for item, times in found) == pytest.approx(launches, rel=0.05)


@pytest.mark.parametrize("trainable", [ALL, ("pooling", "speech"), ("pooling",)])
def test_products_have_the_flops_of_the_model(trainable: tuple[str, ...]) -> None:
    """Attention's backward pass computes five products for the two of the forward pass; utilization counts four."""
    shape, candidate = case(trainable=trainable)
    kinds = Counter[str]()
    for item in computed_operations(shape, candidate):
        kinds[item.work.kind] += item.work.flops  # type: ignore[assignment]
    counts = StepCounts(*(32 * 2048 * value for value in vars(shape.per_position).values()))
    parts = step_flops(shape.architecture, counts, trainable).parts  # type: ignore[arg-type]
    matrices = sum(p.matrices * (1 + p.to_input + p.to_weights) for p in parts if p.kind != "pooling")
    assert kinds["product"] + kinds["vocabulary product"] == pytest.approx(matrices, rel=1e-3)
    assert kinds["attention"] == pytest.approx(sum(p.attention for p in parts), rel=1e-3)
    backward = sum(2.5 * p.attention for p in parts if p.to_input or p.to_weights)
    assert kinds["attention backward"] == pytest.approx(backward, rel=1e-3)


def bytes_of_update(num_gpus: int, *overrides: str) -> dict[str, float]:
    """Of the first rank."""
    shape, candidate = case(*overrides, num_gpus=num_gpus)
    return {item.part: item.work.bytes for item in update_operations(shape, candidate)}


def test_pipeline_stages_compute_the_norm_of_whole_gradients() -> None:
    """4 of 34 bytes of an element, which more data ranks do not divide."""
    size, stages = "train.global_batch_size=128", "parallel.pipeline_parallel_size=2"
    one, two = (bytes_of_update(2 * data, size, stages)["optimizer"] for data in (1, 2))
    assert two == pytest.approx((4 + 30 / 2) / 34 * one)
    several, more = (bytes_of_update(data, size)["optimizer"] for data in (2, 4))
    assert more == pytest.approx(several / 2)


def test_a_single_gpu_does_not_add_the_last_gradients() -> None:
    """In bytes of an element: two GPUs copy and average the gradients of the first micro batch (12), and each updates
    one half of the elements (34)."""
    one, longer = bytes_of_update(1), bytes_of_update(1, "train.global_batch_size=96")
    several = bytes_of_update(2, "train.global_batch_size=64")
    element = several["gradient accumulation"] / 12
    assert several["optimizer"] == pytest.approx(34 / 2 * element)
    assert one["gradient accumulation"] == 0
    assert one["optimizer"] == pytest.approx((2 + 28) * element)
    assert longer["gradient accumulation"] == pytest.approx((6 + 10) * element)
    assert longer["optimizer"] == pytest.approx((6 + 32) * element)


def test_the_time_of_a_step_is_that_of_its_operations() -> None:
    shape, candidate = case()
    assumed = Assumptions(host_launch_seconds=0.0)
    sums = OperationSums.of(rank_operations(shape, candidate, 0), H100, assumed)
    step = estimate_step(shape, candidate, H100, assumed)
    assert step.seconds == pytest.approx(sums.seconds)
    assert step.optimizer == pytest.approx(sums.update_seconds)
    # A kernel alone is faster than what published trainings sustain on this device.
    assert estimate_step(shape, candidate, H100, Assumptions(rates=LIKELY)).seconds < 0.9 * step.seconds
    assert Assumptions().rates is SUSTAINED


def test_recomputed_layers_are_computed_twice() -> None:
    plain = OperationSums.of(rank_operations(*case(), 0), H100, Assumptions())
    shape, candidate = case("train.activation_checkpointing=layers")
    again = OperationSums.of(rank_operations(shape, candidate, 0), H100, Assumptions())
    layers = sum(item.work.flops for item in computed_operations(shape, candidate) if item.is_recomputed)
    assert again.flops == pytest.approx(plain.flops + layers)
    assert estimate_step(shape, candidate, H100, Assumptions()).recompute > 0.2 * plain.seconds


def test_rehearsed_operations_change_the_step() -> None:
    shape, candidate = case()
    step = estimate_step(shape, candidate, H100, Assumptions())
    sums = OperationSums.of(rank_operations(shape, candidate, 0), H100, Assumptions())
    assert with_rehearsed(step, sums, sums).seconds == pytest.approx(step.seconds)
    slower = OperationSums(
        sums.launches, sums.bytes, sums.flops, 2 * sums.seconds - sums.update_seconds, sums.update_seconds
    )
    changed = with_rehearsed(step, sums, slower)
    assert changed.products == pytest.approx(2 * step.products)
    assert changed.optimizer == pytest.approx(step.optimizer)
