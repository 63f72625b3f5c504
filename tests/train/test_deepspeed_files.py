"""DeepSpeed's settings that may be chosen do not change the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from knob_ranks import KNOBS, run_steps, zero
from launched import launch
from small_runs import assembled
from warm import Warm

from tolktrain.config.deepspeed import DeepSpeedSettings

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"
FILES = ["zero0", "zero1", "zero2", "zero3", "zero3-offload"]  # pipeline.json needs two processes
CASES = [(precision, name) for precision, knobs in KNOBS.items() for name in knobs if "frozen" not in name]
Run = dict[str, Any]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> dict[str, Run]:
    """One process without ZeRO, by precision; in bf16 with ZeRO 1, which adds gradients up in float32."""
    stages = {"fp32": 0, "bf16": 1}
    return {p: whole_of([run_steps(tmp_path_factory.mktemp(p), sets, zero(stage), p)]) for p, stage in stages.items()}


@pytest.fixture(scope="module")
def two_ranks(warm: Warm, tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of what `knob_ranks.py` has left."""
    folder = tmp_path_factory.mktemp("knobs")
    launch(warm, "knob_ranks.py", 2, folder, sets)
    return folder


def assert_same_training(one: Run, other: Run, rounding: float) -> None:
    """Losses, gradient norms, every gradient and every parameter agree, the latter two by their norms."""
    for step, expected in zip(one["steps"], other["steps"], strict=True):
        assert step == pytest.approx(expected, rel=rounding)
    # Adam's first updates follow the sign of a gradient, which rounding to bf16 decides where it is small.
    kinds = ("gradients", "parameters") if rounding < 1e-4 else ("gradients",)
    for kind in kinds:
        assert one[kind].keys() == other[kind].keys()
        for name, value in one[kind].items():
            expected = other[kind][name]
            assert (value - expected).norm() <= rounding * expected.norm(), (kind, name)


def whole_of(ranks: list[Run]) -> Run:
    """What all ranks together have, whose tensors are slices."""
    tensors = {kind: assembled(rank[kind] for rank in ranks) for kind in ("gradients", "parameters")}
    return {**ranks[0], **tensors}


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_trains_as_without_zero(tmp_path: Path, sets: Path, alone: dict[str, Run], name: str) -> None:
    settings = json.loads((SHIPPED / f"{name}.json").read_text())
    assert_same_training(whole_of([run_steps(tmp_path, sets, settings, "fp32")]), alone["fp32"], 1e-5)


@pytest.mark.parametrize(("given", "num_trained", "size"), [(10**9, 101, 102), (50, 101, 50), (51, 101, 52), (8, 0, 2)])
def test_buckets_are_even_and_no_larger_than_what_is_trained(given: int, num_trained: int, size: int) -> None:
    """DeepSpeed allocates them whole, and stops at an odd one."""
    settings = {**zero(1, reduce_bucket_size=given, allgather_bucket_size=given), "bf16": {"enabled": False}}
    section = DeepSpeedSettings(settings).for_engine(num_trained, clips_outside=False)["zero_optimization"]
    assert (section["reduce_bucket_size"], section["allgather_bucket_size"]) == (size, size)


def test_every_file_has_its_test() -> None:
    assert sorted(file.stem for file in SHIPPED.glob("*.json")) == sorted([*FILES, "pipeline"])


@pytest.mark.parametrize(("precision", "name"), CASES, ids=lambda case: case)
def test_a_knob_does_not_change_the_training(two_ranks: Path, alone: dict[str, Run], precision: str, name: str) -> None:
    parts = [torch.load(two_ranks / f"{precision} {name}-{rank}.pt", weights_only=True) for rank in range(2)]
    assert parts[0]["steps"] == parts[1]["steps"]
    whole = whole_of(parts)
    rounding = 1e-5 if precision == "fp32" else 2e-2
    assert_same_training(whole, alone[precision], rounding)


BUCKETS = {
    "1": "1 immediate",
    "1 small buckets": "1 immediate",
    "1 no overlap": "1 immediate",
    "1 all-reduce": "1 immediate",
    "1 frozen backbone": "1 immediate, frozen backbone",
    "1 one micro batch": "1 immediate, one micro batch",
    "1 all-reduce, one micro batch": "1 immediate, one micro batch",
}


@pytest.mark.parametrize("name", BUCKETS)
def test_buckets_give_the_sums_of_deepspeed(two_ranks: Path, name: str) -> None:
    """ZeRO 1 in bf16. With `immediate_grad_update`, DeepSpeed accumulates, reduces and computes the norm itself. The
    sum of two ranks does not depend on the order, so that only the norm, by which gradients are clipped, is rounded
    differently."""
    ours, theirs = (
        whole_of([torch.load(two_ranks / f"bf16 {run}-{rank}.pt", weights_only=True) for rank in range(2)])
        for run in (name, BUCKETS[name])
    )
    assert ours["steps"][0] == pytest.approx(theirs["steps"][0], rel=1e-6)
    for parameter, gradient in ours["gradients"].items():
        expected = theirs["gradients"][parameter]
        assert (gradient - expected).norm() <= 1e-6 * expected.norm(), parameter
    assert_same_training(ours, theirs, 1e-3)
