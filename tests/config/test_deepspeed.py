"""DeepSpeed's settings: what is derived, what is refused, and that DeepSpeed itself accepts the files we ship."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tolktrain.config.deepspeed import read_deepspeed_file, resolve_deepspeed
from tolktrain.config.load import load_config
from tolktrain.errors import UserError

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "deepspeed").glob("*.json"))

Build = Callable[..., Mapping[str, Any]]
Refusal = Callable[..., str]


@pytest.fixture
def build(small: Path) -> Build:
    """Builds from the settings of a JSON file, overrides and a data-parallel size."""

    def make(settings: object = None, *overrides: str, data_ranks: int = 1) -> Mapping[str, Any]:
        if settings is not None:
            Path("ds.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
            overrides = (*overrides, "deepspeed.config=ds.json")
        config = load_config(small, overrides)
        return resolve_deepspeed(config, read_deepspeed_file(config), data_ranks).entries

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
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
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
        (
            {"zero_force_ds_cpu_optimizer": True},
            "ds.json: zero_force_ds_cpu_optimizer is true, but the optimizer, torch's AdamW, gives false; remove",
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
        (
            '{"fp16": {},\n "fp16": {}}',
            "ds.json: the key 'fp16' is twice in one object, in lines 1 and 2; leave one of them out",
        ),
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


REMOVE = "; remove the entry"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bfloat16": {}}, "bfloat16 is set, but it is DeepSpeed's old name for bf16, which is derived from"),
        (
            {"bf16": {"bf16_optimizer_states": True}},
            "bf16.bf16_optimizer_states is true, but master weights and moments are",
        ),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow is false, but steps with gradients that"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is set, but train.optimizer decides"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is set, but the schedule of each stage"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled is true, but train.precision decides"),
        ({"data_types": {"param_dtype": "bf16"}}, 'data_types.param_dtype is "bf16", but train.precision decides'),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op is "sum", but the loss is scaled for "mean"'),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel is set, but the section parallel of the"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size is 2, but the section parallel of the"),
        ({"pipeline": {"stages": 2}}, "pipeline.stages is 2, but the section parallel of the configuration decides"),
        ({"pipeline": {"pipe_partitioned": True}}, "pipeline.pipe_partitioned is true, but DeepSpeed would split what"),
        ({"pipeline": {"grad_partitioned": True}}, "pipeline.grad_partitioned is true, but DeepSpeed would split what"),
        (
            {"pipeline": {"activation_checkpoint_interval": 1}},
            "pipeline.activation_checkpoint_interval is 1, but train.activation_checkpointing decides",
        ),
        (
            {"activation_checkpointing": {"partition_activations": True}},
            "activation_checkpointing is set, but train.activation_checkpointing decides",
        ),
        ({"prescale_gradients": True}, "prescale_gradients is true, but it only guards float16 sums against overflow"),
        ({"gradient_predivide_factor": 8}, "gradient_predivide_factor is 8, but it only guards float16 sums against"),
        ({"sparse_gradients": True}, "sparse_gradients is true, but gradients of the embedding tables are dense"),
        ({"compression_training": {}}, "compression_training is set, but it changes the model that is trained"),
        ({"curriculum_learning": {}}, "curriculum_learning is set, but the sections data and train.stages"),
        ({"elasticity": {}}, "elasticity is set, but train.global_batch_size holds for every number of ranks"),
        ({"hybrid_engine": {"enabled": True}}, "hybrid_engine.enabled is true, but it generates with the model"),
        ({"tensorboard": {"enabled": True}}, "tensorboard.enabled is true, but the section logging of the"),
        ({"checkpoint": {"load_universal": True}}, "checkpoint is set, but checkpoints are tolktrain's own"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(
    refusal: Refusal, settings: dict[str, Any], message: str
) -> None:
    text = refusal(settings)
    assert text.startswith(f"ds.json: {message}") and text.endswith(REMOVE)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("zero_quantized_weights", True, "true, but it sends rounded numbers, so that training depends on the layout"),
        ("zero_quantized_gradients", True, "true, but it sends rounded numbers, so that training depends on the layou"),
        ("zero_hpz_partition_size", 8, "8, but a second copy of the parameters per node is not tested with this mode"),
        ("mics_shard_size", 8, "8, but DeepSpeed has dropped MiCS; remove"),
        ("zenflow", {"topk_ratio": 0.1}, "set, but it applies a part of the gradients steps later"),
        ("leaf_module", {"names": []}, "set, but ZeRO 3 gathers the parameters of this model layer by layer; remove"),
        ("stage3_module_granularity_threshold", 100, "100, but modules under the threshold lose their parameters"),
        ("round_robin_gradients", True, "true, but DeepSpeed looks up master weights and moments in another order"),
        ("ignore_unused_parameters", True, "true, but every parameter has a gradient in every step"),
        ("compute_grad_norm", False, "false, but the gradient norm is clipped and logged; remove"),
        ("offload_param", {"device": "cpu"}, "set, but parameters that are split over the ranks take a few GiB"),
        ("cpu_offload", True, 'true, but it is an old name of DeepSpeed\'s; write "offload_optimizer": {"device":'),
        ("elastic_checkpoint", True, "true, but checkpoints are tolktrain's own, and DeepSpeed's are never written"),
        ("allgather_partitions", False, "false, but DeepSpeed does not read it; remove"),
    ],
)
def test_what_zero_may_not_do_is_refused_with_the_reason(
    refusal: Refusal, entry: str, value: Any, message: str
) -> None:
    text = refusal({"zero_optimization": {"stage": 2, entry: value}})
    assert text.startswith(f"ds.json: zero_optimization.{entry} is {message}")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (
            "device",
            "nvme",
            '"nvme", but checkpoints are taken from master weights and moments in memory; write "device": "cpu"',
        ),
        ("ratio", 0.5, "0.5, but it serves NVMe or DeepSpeed's own CPU Adam, and the optimizer is torch's AdamW in"),
        ("super_offload", True, "true, but it serves NVMe or DeepSpeed's own CPU Adam"),
        ("nvme_path", "/disk", '"/disk", but it serves NVMe or DeepSpeed\'s own CPU Adam'),
    ],
)
def test_offload_is_to_memory_and_with_our_optimizer(refusal: Refusal, entry: str, value: Any, message: str) -> None:
    text = refusal({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", entry: value}}})
    assert text.startswith(f"ds.json: zero_optimization.offload_optimizer.{entry} is {message}")


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"overlap_comms": True}, "overlap_comms is not supported; did you mean overlap_comm?"),
        ({"max_live_parameters": 1}, "max_live_parameters is not supported; did you mean stage3_max_live_parameters?"),
        ({"unheard_of": 1}, "unheard_of is not supported"),
        ({"overlap_comm": "auto"}, 'overlap_comm must be true or false, got "auto"'),
        ({"reduce_bucket_size": "auto"}, 'reduce_bucket_size must be a whole number of elements, got "auto"'),
        ({"reduce_bucket_size": -5}, "reduce_bucket_size must be a whole number of elements, got -5"),
        ({"reduce_bucket_size": 0}, "reduce_bucket_size is 0; expected at least 1 element"),
        ({"sub_group_size": True}, "sub_group_size must be a whole number of elements, got true"),
        ({"offload_optimizer": True}, "offload_optimizer must be a JSON object, got true"),
    ],
)
def test_entries_of_zero_are_known_and_of_the_right_kind(refusal: Refusal, zero: dict[str, Any], message: str) -> None:
    assert refusal({"zero_optimization": zero}) == f"ds.json: zero_optimization.{message}"


def test_values_that_change_nothing_are_let_through(build: Build) -> None:
    zero = {
        **{"stage": 2, "reduce_bucket_size": 5e8, "round_robin_gradients": False, "allgather_partitions": True},
        **{"offload_optimizer": {"device": "none", "ratio": 1.0}, "zero_hpz_partition_size": 1},
    }
    settings = {
        **{"gradient_predivide_factor": 1.0, "prescale_gradients": False, "amp": False, "pipeline": None},
        **{"tensorboard": {"enabled": False, "job_name": "a"}, "zero_optimization": zero},
    }
    assert build(settings)["zero_optimization"] == zero


PIPELINE = "parallel.pipeline_parallel_size=2"
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_pipeline_stages_allow_zero_1_only(refusal: Refusal, build: Build, stage: int) -> None:
    message = f"ZeRO stage {stage} cannot be combined with parallel.pipeline_parallel_size 2; set deepspeed.zero_stage"
    assert refusal({"zero_optimization": {"stage": stage}}, PIPELINE) == f"ds.json: {message} to 1"
    assert refusal(None, PIPELINE, f"deepspeed.zero_stage={stage}") == f"deepspeed: {message} to 1"
    assert build({"zero_optimization": {"stage": stage}}, PIPELINE, "deepspeed.zero_stage=1")


def test_zero_3_is_not_compiled(refusal: Refusal, build: Build) -> None:
    message = "ZeRO stage 3 cannot be combined with train.compile layers"
    assert message in refusal(None, "deepspeed.zero_stage=3", "train.compile=layers")
    assert build(None, "deepspeed.zero_stage=2", "train.compile=layers")


def test_pipeline_stages_have_zero_1_and_exchange_whole_tensors(build: Build) -> None:
    settings = build(None, PIPELINE)
    assert settings["zero_optimization"] == {"stage": 1}
    assert settings["pipeline"] == {"pipe_partitioned": False, "grad_partitioned": False}
    assert "pipeline" not in build()


def test_tensor_ranks_have_zero_1_unless_told_otherwise(refusal: Refusal, build: Build) -> None:
    tensor = "parallel.tensor_parallel_size=2"
    assert build(None, tensor)["zero_optimization"] == {"stage": 1}
    assert build(None, tensor, "deepspeed.zero_stage=0", "train.precision=fp32")["zero_optimization"] == {"stage": 0}
    message = "ZeRO stage 0 in bf16 cannot be combined with parallel.tensor_parallel_size 2"
    assert message in refusal(None, tensor, "deepspeed.zero_stage=0", "train.precision=bf16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": OFFLOAD}, "zero_optimization.offload_optimizer cannot be combined with parallel.pipeli"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype bf16 cannot be combined with"),
        ({"bf16": {"immediate_grad_update": True}}, "bf16.immediate_grad_update cannot be combined with parallel.pip"),
    ],
)
def test_what_pipeline_stages_do_not_allow(
    refusal: Refusal, build: Build, settings: dict[str, Any], message: str
) -> None:
    assert refusal(settings, PIPELINE).startswith(f"ds.json: {message}")
    assert build(settings, "deepspeed.zero_stage=2")


def test_offload_needs_zero(refusal: Refusal, build: Build) -> None:
    assert refusal({"zero_optimization": OFFLOAD}) == (
        "ds.json: zero_optimization.offload_optimizer needs ZeRO, and the stage is 0; set deepspeed.zero_stage to 1, 2"
        " or 3"
    )
    assert build({"zero_optimization": OFFLOAD}, "deepspeed.zero_stage=1")


def test_gradients_are_added_up_and_sent_in_fp32_or_bf16(refusal: Refusal, build: Build) -> None:
    def accumulate(name: str) -> dict[str, Any]:
        return {"data_types": {"grad_accum_dtype": name}}

    in_fp32, zero_1 = "train.precision=fp32", "deepspeed.zero_stage=1"
    message = 'ds.json: data_types.grad_accum_dtype is "fp16"; expected "fp32" or "bf16"'
    assert refusal(accumulate("fp16")) == message
    assert refusal({"communication_data_type": "fp16"}).startswith('ds.json: communication_data_type is "fp16"; expec')
    message = "is bf16, which would round the gradients of train.precision fp32; remove it"
    assert refusal(accumulate("bf16"), in_fp32) == f"ds.json: data_types.grad_accum_dtype {message}"
    assert refusal({"communication_data_type": "bf16"}, in_fp32) == f"ds.json: communication_data_type {message}"
    assert refusal(accumulate("fp32")) == (
        "ds.json: data_types.grad_accum_dtype is fp32, but without ZeRO DeepSpeed adds up gradients in bf16; set"
        " deepspeed.zero_stage to 1, or remove the entry"
    )
    for settings in (accumulate("fp32"), accumulate("bf16"), {"communication_data_type": "fp32"}):
        assert build(settings, zero_1).items() >= settings.items()
    assert build(accumulate("fp32"), in_fp32)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_deepspeed_accepts_the_shipped_files(build: Build, file: Path, precision: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    stages = ("parallel.pipeline_parallel_size=2",) if file.stem == "pipeline" else ()
    settings = build(file.read_text(), f"train.precision={precision}", "train.micro_batch_size=2", *stages)
    accepted = DeepSpeedConfig(settings)
    stage = 1 if file.stem == "pipeline" else int(file.stem.removeprefix("zero").removesuffix("-offload"))
    assert accepted.zero_optimization_stage == stage
    assert (accepted.train_batch_size, accepted.gradient_accumulation_steps) == (8, 4)
    assert accepted.bfloat16_config.enabled == (precision == "bf16")
    assert accepted.gradient_clipping == 1.0
    assert not accepted.wall_clock_breakdown
    assert not (stages and (accepted.pipeline["pipe_partitioned"] or accepted.pipeline["grad_partitioned"]))


def test_a_file_for_each_use_is_shipped() -> None:
    assert [file.stem for file in SHIPPED] == ["pipeline", "zero0", "zero1", "zero2", "zero3-offload", "zero3"]
