"""Two ranks with a null GPU each."""

import json
from pathlib import Path
from typing import Any

import pytest
from null_jobs import NullJobs, Outcome

EVEN_HEADS = [f"model.backbone.{key}" for key in ("hidden_size=512", "num_attention_heads=8", "num_key_value_heads=4")]
LAYOUTS: dict[str, dict[str, Any]] = {
    "data 2": {"overrides": ["deepspeed.config={small_buckets}"]},
    "data 2, no overlap": {"overrides": ["deepspeed.config={no_overlap}"]},
    "data 2, ZeRO 3": {"overrides": ["deepspeed.zero_stage=3"], "waiting_steps": 99},
    "tensor 2 (sequence parallel)": {
        "overrides": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true", *EVEN_HEADS]
    },
    "pipeline 2": {
        "overrides": ["parallel.pipeline_parallel_size=2", "deepspeed.config=configs/deepspeed/pipeline.json"]
    },
}
SIZE = ["train.micro_batch_size=8", "model.backbone.num_layers=4"]


BUCKET = 4_000_000  # elements: about one layer


@pytest.mark.slow
def test_every_layout_trains(null_jobs: NullJobs, tmp_path: Path) -> None:
    """Each for two steps of two micro batches; all ranks make the same collectives, of the same sizes."""
    files = {}
    for name, entries in (("small_buckets", {}), ("no_overlap", {"overlap_comm": False})):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"zero_optimization": {"stage": 1, "reduce_bucket_size": BUCKET, **entries}}))
    cases = [
        {**case, "overrides": [*(text.format(**files) for text in case["overrides"]), *SIZE], "accumulation": 2}
        for case in LAYOUTS.values()
    ]
    ranks = null_jobs.run("steps.py", json.dumps(cases), ranks=2).results
    for rank in ranks:
        for name, done in zip(LAYOUTS, rank, strict=True):
            assert len(done["steps"]) == 2 and all(step["collectives"] > 2 for step in done["steps"]), name
            assert name.partition(",")[0] in done["layout"]
            assert done["left"] < 2**20, name
        assert_overlapped(rank[0], rank[1])


def assert_overlapped(overlapping: dict[str, Any], waiting: dict[str, Any]) -> None:
    """Gradients are reduced once in a step, all of them, in the second of two backward passes and not before; without
    overlap, after it."""
    (_, (begin, end)), reductions = overlapping["backward_passes"], overlapping["reductions"]
    sizes = [size for _, size in reductions]
    assert sorted(sizes) == sorted(size for _, size in waiting["reductions"]) and len(sizes) > 5
    assert all(begin < launches <= end for launches, _ in reductions)
    early = sum(size for launches, size in reductions if launches < begin + 0.6 * (end - begin))
    late = sum(size for launches, size in reductions if launches > end - 40)
    table = max(sizes)  # complete at the end of the backward pass only
    assert early > 0.2 * sum(sizes) and late < table + 0.1 * sum(sizes), (reductions, begin, end)
    assert all(launches > waiting["backward_passes"][-1][1] - 40 for launches, _ in waiting["reductions"])


PLANTED = {
    "unequal_sizes": "has all-reduce of 5",
    "unequal_kinds": "has broadcast of 4",
    "unequal_message": "rank 0 sends 16 bytes, rank 1 receives 20",
}


@pytest.fixture(scope="module")
def collectives(null_jobs: NullJobs) -> dict[str, Outcome]:
    """All that two ranks do in collectives.py, right and wrong."""
    return null_jobs.run_cases("collectives.py", ("messages", "groups", *PLANTED), ranks=2)


@pytest.mark.slow
def test_small_messages_arrive(collectives: dict[str, Outcome]) -> None:
    """Pipeline stages send the shapes of their tensors."""
    assert collectives["messages"].results == [[3, 1, 4, 20], [3, 1, 4, 20]]


@pytest.mark.slow
def test_groups_have_the_sizes_that_torch_asks_for(collectives: dict[str, Outcome]) -> None:
    """NCCL splits communicators by what all of their ranks say: because the GPU of a rank is known (`device_id`), when
    a group is made, and not at its first use. The health check does not accept sums of zeros."""
    for part, whole, made, used, num_wrong in collectives["groups"].results:
        assert (part, whole) == (1, 2) and num_wrong == 2**20
        assert (made, used) == (3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_planted_differences_between_ranks_are_found(collectives: dict[str, Outcome], name: str) -> None:
    """By whichever rank comes second."""
    outcome, message = collectives[name], PLANTED[name]
    assert len(outcome.faults) >= 1 and message in outcome.faults[0], outcome
    assert any(text for text in outcome.last_lines)


def test_the_report_of_a_hang_has_the_collectives_of_nccl(null_jobs: NullJobs) -> None:
    """The one that never ends first."""
    outcome = null_jobs.run("collectives.py", "hang", environ={"NULLGPU_HANG_AT": "2"})
    (report,) = outcome.results
    lines = report.splitlines()
    first = next(number for number, line in enumerate(lines) if "all_reduce" in line)
    assert "[1234]" in lines[first] and "NOT left" in lines[first], report
    assert "[1]" in lines[first + 1] and "NOT" not in lines[first + 1], report
    assert "values.tolist()" in report


@pytest.mark.slow
def test_two_ranks_on_one_gpu_are_refused(null_jobs: NullJobs) -> None:
    """NCCL would only name a duplicate. Each rank sees one GPU, as tasks of Slurm may, but it is the same one."""
    outcome = null_jobs.run("collectives.py", "messages", ranks=2, environ={"NULLGPU_COUNT": "1"})
    assert any(outcome.codes)
    assert "both use the GPU 01000000" in "".join(outcome.errors), outcome
