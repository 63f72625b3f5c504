"""DeepSpeed's settings: what is derived, what is refused, and that DeepSpeed itself accepts the files we ship."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tolktrain.config.deepspeed import build_deepspeed_config
from tolktrain.config.errors import UserError
from tolktrain.config.load import load_config

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "deepspeed").glob("*.json"))

Build = Callable[..., dict[str, Any]]
Refusal = Callable[..., str]


@pytest.fixture
def build(small: Path) -> Build:
    """Builds from the settings of a JSON file, overrides and a data-parallel size."""

    def make(settings: object = None, *overrides: str, data_ranks: int = 1) -> dict[str, Any]:
        if settings is not None:
            Path("ds.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
            overrides = (*overrides, "deepspeed.config=ds.json")
        return build_deepspeed_config(load_config(small, overrides), data_ranks)

    return make


@pytest.fixture
def refusal(build: Build, tmp_path: Path) -> Refusal:
    """The message of a refused build, with the temporary folder's name taken out."""

    def make(*arguments: object, **options: int) -> str:
        with pytest.raises(UserError) as caught:
            build(*arguments, **options)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return make


def test_everything_that_follows_is_derived(build: Build) -> None:
    settings = build(None, "train.precision=bf16", "train.optimizer.clip_grad_norm=0.5", data_ranks=2)
    assert settings == {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 0},
    }


def test_float32_and_accumulation(build: Build) -> None:
    settings = build(None, "train.precision=fp32", "train.micro_batch_size=2", data_ranks=2)
    assert settings["bf16"] == {"enabled": False}
    assert settings["gradient_accumulation_steps"] == 2


def test_the_file_keeps_its_own_entries(build: Build) -> None:
    given = {
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "bf16": {"immediate_grad_update": True},
        "steps_per_print": 7,
        "train_batch_size": 8,
        "gradient_clipping": "auto",
        "fp16": {"enabled": False, "loss_scale": 0},
    }
    settings = build(given)
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert settings["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert settings["steps_per_print"] == 7
    assert settings["gradient_clipping"] == 1.0


def test_the_configuration_chooses_the_zero_stage(build: Build) -> None:
    settings = build({"zero_optimization": {"stage": 1, "overlap_comm": False}}, "deepspeed.zero_stage=3")
    assert settings["zero_optimization"] == {"stage": 3, "overlap_comm": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_batch_size": 16},
            "ds.json: train_batch_size is 16, but train.global_batch_size gives 8; remove the entry, it is derived",
        ),
        (
            {"train_micro_batch_size_per_gpu": 1},
            "ds.json: train_micro_batch_size_per_gpu is 1, but train.micro_batch_size gives 4; remove",
        ),
        (
            {"gradient_accumulation_steps": 4},
            "ds.json: gradient_accumulation_steps is 4, but train.global_batch_size 8 / train.micro_batch_size 4"
            " / 1 data ranks gives 2; remove",
        ),
        (
            {"gradient_clipping": 0.1},
            "ds.json: gradient_clipping is 0.1, but train.optimizer.clip_grad_norm gives 1.0; remove",
        ),
        (
            {"bf16": {"enabled": False}},
            "ds.json: bf16.enabled is false, but train.precision bf16 gives true; remove",
        ),
        ({"fp16": {"enabled": True}}, "ds.json: fp16.enabled is true, but train.precision bf16 gives false; remove"),
        ({"fp16": True}, "ds.json: fp16 must be a JSON object, got true"),
        ({"bfloat16": {"enabled": True}}, "ds.json: bfloat16 is DeepSpeed's old name for bf16"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "ds.json: bf16.bf16_master_weights_and_grads is true, but"),
        ({"optimizer": {"type": "Adam"}}, "ds.json: optimizer is set, but train.optimizer decides; remove the entry"),
        ({"scheduler": {"type": "WarmupLR"}}, "ds.json: scheduler is set, but the schedule of each stage"),
        ({"torch_autocast": {"enabled": True}}, "ds.json: torch_autocast.enabled is true, but train.precision decides"),
        (
            {"gradient_allreduce_op": "sum"},
            'ds.json: gradient_allreduce_op is "sum", but the loss is scaled for "mean"',
        ),
        (
            {"zero_optimisation": {"stage": 1}},
            "ds.json: zero_optimisation is not a DeepSpeed entry; did you mean zero_optimization?",
        ),
        (
            {"zero_optimization": {"stage": 4}},
            "ds.json: zero_optimization.stage is 4; ZeRO has the stages 0, 1, 2 and 3",
        ),
        ({"zero_optimization": 1}, "ds.json: zero_optimization must be a JSON object, got 1"),
        ("[1]", "ds.json: expected a JSON object of DeepSpeed settings, got list"),
        ('{\n"a": 1,\n}', "ds.json:3: not valid JSON: "),
        ('{"fp16": {}, "fp16": {}}', "ds.json: fp16 is given twice; keep one of them"),
    ],
)
def test_refused_entries(refusal: Refusal, settings: object, message: str) -> None:
    assert refusal(settings).startswith(message)


def test_every_contradiction_is_told(refusal: Refusal) -> None:
    assert refusal({"train_batch_size": 1, "gradient_clipping": 3}).count("remove the entry") == 2


def test_a_file_that_does_not_exist(refusal: Refusal) -> None:
    message = refusal(None, "deepspeed.config=none.json")
    assert message == "deepspeed.config names none.json, which does not exist; configs/deepspeed has examples"


def test_batches_that_do_not_divide(refusal: Refusal) -> None:
    assert refusal(data_ranks=3) == (
        "train.global_batch_size 8 cannot be split over 3 data-parallel ranks; use 6 or 9,"
        " or another number of processes"
    )
    assert refusal(data_ranks=16).startswith(
        "train.global_batch_size 8 cannot be split over 16 data-parallel ranks; use 16, or another"
    )
    assert refusal(data_ranks=4) == (
        "train.micro_batch_size 4 does not divide the 2 sequences of each data-parallel rank"
        " (train.global_batch_size 8 / 4 ranks); use 1 or 2"
    )


def test_pipeline_stages_allow_zero_1_only(refusal: Refusal, build: Build) -> None:
    pipeline = "parallel.pipeline_parallel_size=2"
    assert refusal({"zero_optimization": {"stage": 2}}, pipeline) == (
        "ds.json: ZeRO stage 2 cannot be combined with parallel.pipeline_parallel_size 2;"
        " set deepspeed.zero_stage to 1 or 0"
    )
    assert build({"zero_optimization": {"stage": 2}}, pipeline, "deepspeed.zero_stage=1")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_deepspeed_accepts_the_shipped_files(build: Build, file: Path, precision: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = build(file.read_text(), f"train.precision={precision}", "train.micro_batch_size=2")
    accepted = DeepSpeedConfig(settings)
    assert accepted.zero_optimization_stage == int(file.stem.removeprefix("zero"))
    assert (accepted.train_batch_size, accepted.gradient_accumulation_steps) == (8, 4)
    assert accepted.bfloat16_config.enabled == (precision == "bf16")
    assert accepted.gradient_clipping == 1.0
    assert not accepted.wall_clock_breakdown


def test_all_zero_stages_are_shipped() -> None:
    assert [file.stem for file in SHIPPED] == ["zero0", "zero1", "zero2", "zero3"]
