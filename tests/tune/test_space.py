"""The space, its predictions and the answer, on real configurations."""

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest
from predictors import CONFIGS, CPU, H100, predictor_of

from tolktrain.config.deepspeed import read_deepspeed_file, resolve_deepspeed
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Cluster
from tolktrain.plan.memory import estimate_memory
from tolktrain.tune.answer import StageResult, calibration, write_answer
from tolktrain.tune.run import Options, find_ground
from tolktrain.tune.search import Found, Trial
from tolktrain.tune.setting import Outcome, Setting
from tolktrain.tune.space import AS_IT_IS, SHIPPED, build_space, reads_buckets, shipped_files


@cache
def files() -> dict[str, dict[str, object]]:
    return shipped_files(CONFIGS / "bench" / "cpu.yaml", [])


def test_every_shipped_file_is_measured_with_two_processes() -> None:
    space = build_space(predictor_of("cpu", Cluster(2, 2), CPU), files(), compiles=False)
    others = [f"{name}.json" for name in SHIPPED if name != "zero1"]
    assert [setting.label for setting in space.shipped] == [f"{AS_IT_IS}, zero1.json", *others]
    assert {path.stem for path in (CONFIGS / "deepspeed").glob("*.json")} == set(SHIPPED)
    found = {(item.tensor, item.pipeline, item.zero_stage, item.offload) for item in space.layouts}
    data = {(1, 1, stage, False) for stage in range(4)} | {(1, 1, 3, True)}
    # Without data ranks, nothing can be divided over them.
    assert found == data | {(2, 1, 0, False), (2, 1, 1, False), (1, 2, 1, False)}
    assert list(space.micro_batch_sizes(space.layouts[0])) == [1, 2, 4]


def test_training_accepts_every_layout_with_what_it_reads(tmp_path: Path) -> None:
    predictor = predictor_of("smoltolk-2b", Cluster(8, 8), H100)
    space = build_space(predictor, files(), compiles=True)
    assert len(space.layouts) >= 6
    for layout in space.layouts:
        assert layout.zero_stage > 0, "ZeRO 0 in bf16 rounds differently"
        others = [other for _, other in space.alternatives(layout)]
        assert len(set(others)) == len(others) and layout not in others
        for setting in (layout, *others)[-1:]:
            override = write_answer(tmp_path, str(CONFIGS / "bench" / "smoltolk-2b.yaml"), (), setting)
            config = load_config(override)
            settings = resolve_deepspeed(config, read_deepspeed_file(config), predictor.candidate(setting).data)
            assert settings.zero_stage == setting.zero_stage
            assert settings.entries["zero_optimization"] == {**setting.zero, "stage": setting.zero_stage}


def test_entries_are_tried_where_the_layout_reads_them() -> None:
    predictor = predictor_of("smoltolk-2b", Cluster(8, 8), H100)
    space = build_space(predictor, files(), compiles=True)
    knobs = {
        (item.tensor, item.pipeline, item.zero_stage, item.offload): {name for name, _ in space.alternatives(item)}
        for item in space.layouts
    }
    buckets = {"reduce_bucket_size", "overlap_comm"}
    assert knobs[1, 1, 1, False] == {"compile", *buckets}
    assert knobs[2, 1, 1, False] == buckets  # the compiler is not used with tensor ranks
    assert knobs[1, 1, 2, False] == {"compile", "use_multi_rank_bucket_allreduce", *buckets}
    limits = {
        "stage3_max_live_parameters",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    }
    assert knobs[1, 1, 3, False] == buckets | limits
    wide = predictor_of("cpu", Cluster(2, 2), CPU)
    zero1 = next(item for item in build_space(wide, files(), False).layouts if item.zero_stage == 1)
    pipeline = zero1.but(pipeline=2)
    assert reads_buckets(wide.config, zero1) and reads_buckets(predictor.config, zero1)
    assert reads_buckets(predictor.config, pipeline) and not reads_buckets(wide.config, pipeline)


def test_zero_0_in_bf16_is_no_answer() -> None:
    space = build_space(predictor_of("smoltolk-150m", Cluster(8, 8), H100), files(), compiles=False)
    answers = {setting.zero_stage: space.may_answer(setting) for setting in space.shipped}
    assert answers == {0: False, 1: True, 2: True, 3: True}


def test_a_configuration_that_training_refuses_is_refused() -> None:
    predictor = predictor_of("cpu", Cluster(2, 2), CPU, "parallel.tensor_parallel_size=4")
    with pytest.raises(UserError, match="parallel.tensor_parallel_size"):
        build_space(predictor, files(), compiles=False)


def test_the_memory_is_that_of_plan_in_bf16_on_gpus() -> None:
    predictor = predictor_of("smoltolk-2b", Cluster(8, 8), H100)
    for layout in build_space(predictor, files(), compiles=False).layouts:
        expected = estimate_memory(predictor.shape, predictor.candidate(layout), Assumptions())
        assert predictor.memory_gib(layout) == expected.total_gib


def test_states_in_float32() -> None:
    """16 bytes a parameter without ZeRO: the parameter, its gradient, and two moments."""
    predictor = predictor_of("cpu", Cluster(2, 2), CPU, "train.sequence_length=8")
    parameters = sum(layer.parameters for layer in predictor.shape.layers)
    by_stage = {
        setting.zero_stage: predictor.memory_gib(setting) * 2**30
        for setting in build_space(predictor, files(), compiles=False).shipped
        if not setting.offload and setting.pipeline == 1
    }
    assert by_stage[0] - 0.6 * 2**30 == pytest.approx(16 * parameters, rel=0.2)
    wide = predictor_of("cpu", Cluster(4, 4), CPU, "train.sequence_length=8")
    for setting in build_space(predictor, files(), compiles=False).shipped:
        if setting.zero_stage and setting.pipeline == 1:
            assert wide.memory_gib(setting) < predictor.memory_gib(setting), "more data ranks hold less each"


def test_memory_grows_with_the_micro_batch_and_falls_with_recomputation() -> None:
    for name, cluster, device in (("cpu", Cluster(2, 2), CPU), ("smoltolk-2b", Cluster(8, 8), H100)):
        predictor = predictor_of(name, cluster, device)
        space = build_space(predictor, files(), compiles=False)
        for layout in space.layouts:
            sizes = space.micro_batch_sizes(layout)
            memory = [predictor.memory_gib(layout.but(micro_batch_size=size)) for size in sizes]
            assert memory == sorted(memory)
            largest = layout.but(micro_batch_size=sizes[-1])
            assert predictor.memory_gib(largest.but(recompute=True)) <= predictor.memory_gib(largest)
            assert predictor.seconds(largest) > 0


def test_the_answer_keeps_the_users_overrides(tmp_path: Path) -> None:
    setting = Setting.of_entries(
        {"zero_optimization": {"stage": 2, "overlap_comm": False}},
        tensor=1,
        pipeline=1,
        zero_stage=2,
        micro_batch_size=4,
        recompute=True,
    )
    overrides = ("train.sequence_length=512", "train.stages.1.learning_rate=1e-4", "run.name=other")
    base = CONFIGS / "bench" / "cpu.yaml"
    config = load_config(write_answer(tmp_path / "tuned", str(base), overrides, setting))
    expected = load_config(
        base,
        [
            *overrides,
            *("train.micro_batch_size=4", "train.activation_checkpointing=layers", "deepspeed.zero_stage=2"),
            f"deepspeed.config={tmp_path}/tuned/deepspeed.json",
        ],
    )
    assert config == expected
    assert read_deepspeed_file(config).entries == {"zero_optimization": {"stage": 2, "overlap_comm": False}}


def test_the_calibration_compares_with_the_prediction(tmp_path: Path) -> None:
    predictor = predictor_of("cpu", Cluster(2, 2), CPU)
    [first, second, *_] = build_space(predictor, files(), compiles=False).shipped
    found = Found(2, 1e-4, lambda _: True)
    for setting, factor in ((first, 2.0), (second, 8.0)):
        seconds = factor * predictor.seconds(setting)
        found.trials.append(Trial(setting, 2, 0, Outcome("ok", 8192, (seconds,), 2.0, peak_memory_gib=1.5)))
    found.trials.append(Trial(second.but(micro_batch_size=1), 2, 0, Outcome("out of memory")))
    stage = StageResult("joint", 1000, predictor, found)
    content = json.loads(json.dumps(calibration("cpu.yaml", CPU, 2, {"torch": "2"}, [stage])))
    assert set(content) == {"format", "device", "world_size", "versions", "measurements", "time_factor"}
    assert content["time_factor"] == pytest.approx(4.0)
    one, other = content["measurements"]
    assert one["predicted_tokens_per_second"] == pytest.approx(2 * one["tokens_per_second"])
    assert one["peak_memory_bytes"] == 1.5 * 2**30 and one["layout"]["data"] == 2
    assert other["layout"]["zero_stage"] == second.zero_stage


def test_tune_is_started_once() -> None:
    with pytest.raises(UserError, match="start it once, without torchrun or srun"):
        find_ground(Options(), {"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("processes", "environ", "expected"),
    [
        (None, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "16"}, Cluster(16, 8)),
        (None, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, Cluster(16, 8)),
        (4, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, Cluster(4, 2)),
        (1, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, "1 ranks do not divide evenly over the 2 nodes"),
        (18, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, "each of the 2 nodes has 8; use 16 at most"),
        (None, {}, Cluster(8, 8)),
        (9, {}, "this machine has 8; use 8 at most"),
    ],
)
def test_the_ranks_of_an_allocation(
    monkeypatch: pytest.MonkeyPatch, processes: int | None, environ: dict[str, str], expected: Cluster | str
) -> None:
    found = {"name": H100.name, "kind": H100.kind, "count": 8, "memory_gib": H100.memory_gib, "versions": {}}
    done = subprocess.CompletedProcess([], 0, stdout=json.dumps(found))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            find_ground(Options(processes=processes), environ)
    else:
        assert find_ground(Options(processes=processes), environ).cluster == expected
