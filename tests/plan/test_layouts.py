"""The layouts that `plan` proposes are those that training accepts, and the refused ones have training's message."""

from pathlib import Path

import pytest

from tolktrain.config.deepspeed import DeepSpeedFile, read_deepspeed_file, resolve_deepspeed
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import cut_layers
from tolktrain.model.divisibility import check_tensor_parallel
from tolktrain.plan.candidates import Candidate, Cluster, candidates
from tolktrain.plan.run import Options, Plan, plan

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "bench" / "smoltolk-2b.yaml"
SMALL = Path(__file__).resolve().parents[2] / "configs" / "bench" / "smoltolk-150m.yaml"


def accepted_by_training(candidate: Candidate, config_file: Path, *overrides: str) -> None:
    """What a start of training checks, from the configuration's file on."""
    entries = [f"{key}={value}" for key, value in candidate.overrides.items()]
    config = load_config(config_file, [*overrides, *entries])
    architecture = Architecture.from_config(config.model)
    check_tensor_parallel(architecture, config.parallel, config.train.sequence_length)
    cut_layers(architecture, config.train.sequence_length, config.parallel.pipeline_parallel_size)
    settings = resolve_deepspeed(config, read_deepspeed_file(config), candidate.data)
    assert settings.zero_stage == candidate.zero_stage
    assert settings.accumulation_steps == candidate.accumulation


@pytest.mark.slow
@pytest.mark.parametrize(("config_file", "num_gpus"), [(CONFIG, 16), (SMALL, 8)])
def test_training_accepts_every_proposed_layout(config_file: Path, num_gpus: int) -> None:
    item = plan(config_file, [], Options(gpus=(num_gpus,))).plans[0]
    assert len(item.ranked) > 3
    for job in item.ranked:
        accepted_by_training(job.candidate, config_file)


def test_what_training_refuses_has_its_message() -> None:
    item = plan(SMALL, [], Options(gpus=(8,))).plans[0]
    reasons = {refusal.reason for refusal in item.refused}
    with pytest.raises(UserError) as refused:
        load = load_config(SMALL, ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"])
        check_tensor_parallel(Architecture.from_config(load.model), load.parallel, load.train.sequence_length)
    assert str(refused.value) in reasons


def test_a_batch_that_cannot_be_divided_is_refused_for_each_size() -> None:
    item = plan(CONFIG, [], Options(gpus=(48,))).plans[0]
    with pytest.raises(UserError) as refused:
        resolve_deepspeed(load_config(CONFIG, []), DeepSpeedFile(None, {}), 48)
    assert not item.ranked
    assert any(str(refused.value) == refusal.reason for refusal in item.refused)


def test_more_ranks_than_sequences_are_refused_with_the_reason() -> None:
    item = plan(SMALL, ["train.global_batch_size=32", "train.micro_batch_size=1"], Options(gpus=(64,))).plans[0]
    assert any("train.global_batch_size 32 cannot be split over 64" in refusal.reason for refusal in item.refused)
    assert all(job.candidate.data <= 32 for job in item.ranked)


def test_tensor_ranks_stay_inside_a_node() -> None:
    config = load_config(CONFIG, [])
    file = read_deepspeed_file(config)
    found, _ = candidates(config, Architecture.from_config(config.model), Cluster(64, 4), dict.fromkeys(range(4), file))
    assert {candidate.tensor for candidate in found} == {1, 2, 4}


def ranked(*overrides: str, **options: object) -> Plan:
    return plan(CONFIG, overrides, Options(**{"gpus": (8,), **options})).plans[0]  # type: ignore[arg-type]


def test_all_that_is_ranked_fits_and_the_rest_says_how_much_is_missing() -> None:
    item = ranked(gpus=(1,), device="a100-40")
    assert item.ranked and item.too_large
    assert all(job.memory.total_gib <= 39.4 for job in item.ranked)
    assert all(needed > 39.4 for _, needed in item.too_large)


def test_the_first_is_the_fastest_and_the_others_name_what_they_lose() -> None:
    item = ranked()
    times = [job.seconds for job in item.ranked]
    assert times == sorted(times)
    pipelined = next(job for job in item.ranked if job.candidate.pipeline == 4)
    assert "bubble" in item.reason(pipelined)
    split = next(job for job in item.ranked if job.candidate.tensor == 8)
    assert item.reason(split).startswith("tensor traffic")


def test_a_model_that_fits_nowhere_is_offloaded_or_named() -> None:
    huge = [f"model.backbone.{name}" for name in ("hidden_size=8192", "num_layers=80", "num_attention_heads=64")]
    huge += ["model.backbone.num_key_value_heads=8", "model.backbone.ffn_hidden_size=28672"]
    item = ranked(*huge, gpus=(1,), device="a100-40")
    assert not item.ranked
    assert all(needed > 39.4 for _, needed in item.too_large)


def test_more_gpus_are_never_slower_in_time_nor_cheaper() -> None:
    plans = plan(CONFIG, [], Options(gpus=(8, 64, 512))).plans
    days = [item.ranked[0].days for item in plans]
    hours = [item.ranked[0].gpu_hours for item in plans]
    assert days == sorted(days, reverse=True)
    assert hours == sorted(hours)
