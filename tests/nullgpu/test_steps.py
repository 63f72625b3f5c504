"""Training steps of the 150M model on a null GPU: a single process."""

import json
from pathlib import Path
from typing import Any

import pytest
from null_jobs import NullJobs, leaks

Done = dict[str, Any]
GIB = 2**30
RECORDED = Path(__file__).with_name("counted-150m.json")
RECORD = "python tools/nullgpu/run.py -- env PYTHONPATH=tools python tests/nullgpu/record_counts.py"

# The widths are real; of the 30 layers a few do where nothing depends on their number.
FEW_LAYERS = ["model.backbone.num_layers=4", "train.micro_batch_size=8"]
# The widths of the 2B model: its gradients are large in comparison with its activations.
WIDE = [
    *("model.backbone.hidden_size=2048", "model.backbone.ffn_hidden_size=8192", "model.backbone.num_layers=1"),
    *("model.backbone.num_attention_heads=32", "model.backbone.num_key_value_heads=32", "train.micro_batch_size=4"),
    *("model.speech.input_adapter_layers=1", "model.speech.output_adapter_layers=1"),
]
CASES: dict[str, dict[str, Any]] = {
    "shipped": {"overrides": [], "steps": 3, "batches": 3, "counts": True},
    "torch": {"overrides": ["kernels.backend=torch", *FEW_LAYERS]},
    "padded": {"overrides": ["kernels.attention=padded", *FEW_LAYERS]},
    "torch, padded": {"overrides": ["kernels.backend=torch", "kernels.attention=padded", *FEW_LAYERS]},
    "fp32": {"overrides": ["train.precision=fp32", *FEW_LAYERS]},
    "recomputed": {"overrides": ["train.activation_checkpointing=layers", *FEW_LAYERS]},
    # First step: an operator that has no deterministic implementation raises an exception.
    "deterministic": {"overrides": ["train.deterministic=true", *FEW_LAYERS]},
    "deterministic, fp32": {"overrides": ["train.deterministic=true", "train.precision=fp32", *FEW_LAYERS]},
    # The compiler itself waits.
    "compiled": {"overrides": ["train.compile=layers", *FEW_LAYERS], "steps": 4, "waiting_steps": 2},
    "ZeRO 0": {"overrides": ["deepspeed.zero_stage=0", *FEW_LAYERS], "accumulation": 2},
    "ZeRO 1": {
        "overrides": ["deepspeed.zero_stage=1", *FEW_LAYERS],
        "accumulation": 2,
        "allocator": "expandable_segments:True",
    },
    "ZeRO 2": {"overrides": ["deepspeed.zero_stage=2", *FEW_LAYERS], "accumulation": 2},
    # DeepSpeed waits for each group of gathered parameters, and for the gradients that go to the host.
    "ZeRO 3": {"overrides": ["deepspeed.zero_stage=3", *FEW_LAYERS], "accumulation": 2, "waiting_steps": 99},
    "offload": {
        "overrides": ["deepspeed.config=configs/deepspeed/zero3-offload.json", *FEW_LAYERS],
        "waiting_steps": 99,
    },
    "documents": {"overrides": FEW_LAYERS, "documents": True, "steps": 3, "batches": 3},
    # The compiler itself waits.
    "documents, compiled": {
        "overrides": ["train.compile=layers", *FEW_LAYERS],
        "documents": True,
        "steps": 4,
        "waiting_steps": 2,
    },
    "wide": {"overrides": WIDE, "steps": 4, "batches": 4},
    "many": {"overrides": ["model.backbone.num_layers=2", "train.micro_batch_size=2"], "steps": 50, "batches": 7},
    "planted leak": {
        "overrides": ["model.backbone.num_layers=2", "train.micro_batch_size=2"],
        "steps": 20,
        "plant": "leak",
    },
    "planted growth": {
        "overrides": ["model.backbone.num_layers=2", "train.micro_batch_size=2"],
        "steps": 30,
        "plant": "hoard",
    },
    "planted indeterminism": {
        "overrides": ["train.deterministic=true", "model.backbone.num_layers=2", "train.micro_batch_size=2"],
        "plant": "add_in_any_order",
    },
    "planted wait in forward": {"overrides": FEW_LAYERS, "plant": "wait_in_forward"},
    "planted wait in backward": {"overrides": FEW_LAYERS, "plant": "wait_in_backward"},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(null_jobs: NullJobs) -> dict[str, Done]:
    """All cases, in one process: most of the time would go into starting others."""
    outcome = null_jobs.run("steps.py", json.dumps(list(CASES.values())))
    assert outcome.codes == [0], outcome
    # Only those that are planted.
    assert len(outcome.faults) == 2, outcome
    return dict(zip(CASES, outcome.last_lines[0], strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("planted")])
def test_steps_wait_nowhere_in_forward_and_backward(done: dict[str, Done], name: str) -> None:
    """The case would have failed. After the engine is closed, nothing is left on the GPU and in ZeRO 3's cache."""
    assert len(done[name]["steps"]) == CASES[name].get("steps", 2)
    assert all(step["launches"] > 200 for step in done[name]["steps"])
    assert done[name]["left"] < 2**20
    assert done[name]["num_remembered"] == 0


def test_the_shipped_step_takes_the_fast_kernels(done: dict[str, Done]) -> None:
    """Forward and backward of each operator return what the compiler was promised."""
    shipped = done["shipped"]
    assert shipped["kernels"] == {"backend": "triton", "attention": "varlen"}
    # Norms, activations and rotations of 34 layers, both ways.
    assert shipped["num_compared"] > 2 * 34 * 4
    assert done["torch"]["num_compared"] == 0
    # Of as many layers, with the boundaries of documents in addition.
    assert done["documents"]["steps"][0]["launches"] < done["torch"]["steps"][0]["launches"]


def test_memory_of_the_device_is_not_memory_of_this_machine(done: dict[str, Done]) -> None:
    """Tens of GiB are allocated there."""
    assert done["shipped"]["peak"] > 35 * GIB
    assert done["shipped"]["resident"] < 4 * GIB


def test_the_host_waits_once_in_a_step(done: dict[str, Done]) -> None:
    """For the norm, before the update; the sums of the loss have been copied by then."""
    for name in ("shipped", "torch", "recomputed", "ZeRO 1"):
        assert all(step["synchronizations"] == 1 for step in done[name]["steps"]), name


def test_nothing_is_copied_from_memory_that_is_not_pinned(done: dict[str, Done]) -> None:
    """Such a copy would wait for all earlier work of the GPU: what is computed of a batch is pinned with it. Only the
    norm is read so."""
    assert all(step["pageable_copies"] <= 1 for step in done["shipped"]["steps"])


def test_no_plan_is_built_for_each_micro_batch(done: dict[str, Done]) -> None:
    """cuDNN has plans for backbone and output adapter, whose shapes hardly change; segments are new each time."""
    assert done["shipped"]["steps"][1]["attention_plans"] == done["shipped"]["steps"][2]["attention_plans"] == 0
    assert all(step["attention_plans"] == 0 for step in done["documents"]["steps"])


def test_gradients_are_not_copied_for_an_average_over_one_rank(done: dict[str, Done]) -> None:
    """DeepSpeed's flat copies of them would be 1.7 GiB more, in pieces of memory between which nothing else fits: the
    2B model would be out of memory in its sixth step on 80 GB."""
    assert done["wide"]["reserved"][-1] - done["wide"]["peak"] < 0.8 * GIB


def test_expandable_segments_leave_little_unused(done: dict[str, Done]) -> None:
    """As launch/pretrain.sbatch sets them. Without them, this case leaves 0.45 GiB unused."""
    assert done["ZeRO 1"]["reserved"][-1] - done["ZeRO 1"]["peak"] < 0.15 * GIB


def test_deterministic_steps_enter_no_operator_that_is_not(done: dict[str, Done]) -> None:
    """PyTorch would raise an exception, except for cuDNN's attention, which it must not choose. A planted operator
    shows that it does so."""
    for name in ("deterministic", "deterministic, fp32"):
        assert len(done[name]["steps"]) == 2
        assert sum(step["attention_plans"] for step in done[name]["steps"]) == 0
    assert "does not have a deterministic implementation" in done["planted indeterminism"]["failure"]
    assert done["shipped"]["steps"][0]["attention_plans"] > 0


def test_fifty_steps_leak_nothing(done: dict[str, Done]) -> None:
    """Memory, streams, events, modules; and the same check finds a planted leak of a kilobyte a step."""
    assert leaks(done["many"]) == []
    assert leaks(done["planted leak"]) == ["allocated"]


def test_reserved_memory_stops_growing(done: dict[str, Done]) -> None:
    """After 20 steps with unequal micro batches; `many_steps.py` shows it at real size. A planted case grows."""
    reserved, planted = done["many"]["reserved"], done["planted growth"]["reserved"]
    assert reserved[20] == reserved[-1]
    assert planted[20] < planted[-1]


def test_counts_of_a_step_do_not_grow(done: dict[str, Done]) -> None:
    """Launches and bytes of each part of the shipped step, both ways, are at most 2 % above `counted-150m.json`."""
    recorded = {(line["part"], line["direction"]): line for line in json.loads(RECORDED.read_text())}
    grown = []
    for line in done["shipped"]["counted"]:
        before = recorded.get((line["part"], line["direction"]), {"launches": 0, "bytes": 0})
        grown += [
            f"{line['part']}, {line['direction']}: {name} {before[name]:.0f} -> {line[name]:.0f}"
            for name in ("launches", "bytes")
            if line[name] > 1.02 * before[name]
        ]
    assert not grown, f"if that is meant: {RECORD}\n" + "\n".join(grown)


def test_counts_of_a_step_agree_with_what_else_counts(done: dict[str, Done]) -> None:
    """Launches with the null GPU's, FLOPs with the model's formulas, bytes with those of one kernel by hand."""
    shipped = done["shipped"]
    lines, counts = shipped["counted"], shipped["counts"]
    assert "unseen" not in {line["part"] for line in lines}
    # The driver's copies and fills are counted, and are no launches.
    launches = sum(line["launches"] for line in lines)
    assert shipped["counted_launches"] <= launches <= shipped["counted_launches"] + 60
    # Hardware computes five products backward in attention, two of which are those of the forward pass again.
    attention = sum(
        line["flops"] for line in lines if line["part"].endswith("attention") and line["direction"] == "forward"
    )
    flops = sum(line["flops"] for line in lines) - attention / 2
    # All but the selector of the pooling, whose products are inside its kernels.
    assert flops == pytest.approx(shipped["model_flops"], rel=2e-3)
    # The gated activation reads 2 F and writes F in bf16; backward it reads 3 F and writes 2 F.
    rows = 30 * counts["positions"] + 2 * counts["predicting_positions"] + 2 * counts["speech_positions"]
    for direction, passes in (("forward", 3), ("backward", 5)):
        [line] = [of for of in lines if (of["part"], of["direction"]) == ("gated activation", direction)]
        assert line["bytes"] == passes * 1536 * 2 * rows


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_planted_wait_is_found(done: dict[str, Done], where: str) -> None:
    """In the passes of DeepSpeed's engine."""
    assert "the host waits for the device" in done[f"planted wait in {where}"]["failure"]
