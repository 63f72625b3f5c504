"""The entries of DeepSpeed's JSON file that are supported, and the reasons why others are refused.

Supported entries are tested (tests/train/test_deepspeed_files.py); docs/deepspeed.md describes what each does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Supported top-level entries and sections, in addition to those that follow from the configuration.
SUPPORTED = (
    *("comms_logger", "communication_data_type", "data_types", "dump_state", "flops_profiler", "log_level"),
    *("memory_breakdown", "pipeline", "steps_per_print", "timers", "wall_clock_breakdown", "zero_optimization"),
)

# Supported entries of zero_optimization, and their types.
ZERO_ENTRIES: Mapping[str, type] = {
    **dict.fromkeys(("contiguous_gradients", "overlap_comm", "parameter_alignment", "reduce_scatter"), bool),
    **dict.fromkeys(("use_multi_rank_bucket_allreduce", "memory_efficient_linear"), bool),
    **dict.fromkeys(("stage3_allgather_sequential", "stage3_use_all_reduce_for_fetch_params"), bool),
    **dict.fromkeys(("enable_sanity_checks", "log_trace_cache_warnings"), bool),
    **dict.fromkeys(("stage", "allgather_bucket_size", "reduce_bucket_size", "sub_group_size"), int),
    **dict.fromkeys(("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size"), int),
    **dict.fromkeys(("stage3_model_persistence_threshold", "stage3_param_persistence_threshold"), int),
    "offload_optimizer": dict,
}


@dataclass(frozen=True)
class Refusal:
    """Why an entry is refused, and what to do instead."""

    reason: str
    harmless: tuple[Any, ...] = ()  # values that change nothing and are accepted
    fix: str = "remove the entry"


_OFF = (False, None)
_LAYOUT = "the section parallel of the configuration decides how ranks are laid out"
_DATA = "the sections data and train.stages of the configuration decide what is trained on"
_MODEL = "it changes the model that is trained, and DeepSpeed has dropped it"
_METRICS = "the section logging of the configuration decides where metrics go"
_RECOMPUTE = "train.activation_checkpointing decides"
_SAVING = "checkpoints are tolktrain's own, and DeepSpeed's are never written"
_PRECISION = "train.precision decides"
_MASTER_WEIGHTS = "master weights and moments are kept in float32"
_UNREAD = "DeepSpeed does not read it"
_SCALING = "it only guards float16 sums against overflow, and ZeRO 2 and 3 refuse it"
_QUANTIZED = "it sends rounded numbers, so that training depends on the layout"
_TRAVEL = (
    "DeepSpeed would split what travels between pipeline stages over the tensor ranks, which sequence parallelism has"
    " done already: training would go wrong without a message"
)
_OLD_OFFLOAD = Refusal("it is an old name of DeepSpeed's", _OFF, 'write "offload_optimizer": {"device": "cpu"} instead')
_OWN_ADAM = "it serves NVMe or DeepSpeed's own CPU Adam, and the optimizer is torch's AdamW in memory"

REFUSED: Mapping[str, Refusal] = {
    **dict.fromkeys(("data_parallel_size", "expert_parallel", "sequence_parallel_size"), Refusal(_LAYOUT)),
    **dict.fromkeys(("seq_parallel_communication_data_type", "tensor_parallel"), Refusal(_LAYOUT)),
    **dict.fromkeys(("use_data_before_expert_parallelism",), Refusal(_LAYOUT, _OFF)),
    **dict.fromkeys(("pipeline.partition", "pipeline.seed_layers", "pipeline.stages"), Refusal(_LAYOUT)),
    **dict.fromkeys(("pipeline.grad_partitioned", "pipeline.pipe_partitioned"), Refusal(_TRAVEL, (False,))),
    "pipeline.activation_checkpoint_interval": Refusal(_RECOMPUTE, (0,)),
    **dict.fromkeys(("activation_checkpointing", "pipeline.use_reentrant"), Refusal(_RECOMPUTE)),
    **dict.fromkeys(("compression_training", "eigenvalue", "progressive_layer_drop"), Refusal(_MODEL)),
    **dict.fromkeys(("quantize_training", "sparse_attention", "weight_quantization"), Refusal(_MODEL)),
    **dict.fromkeys(("curriculum_learning", "dataloader_drop_last"), Refusal(_DATA)),
    "data_efficiency.enabled": Refusal(_DATA, _OFF),
    **dict.fromkeys(("csv_monitor.enabled", "comet.enabled", "tensorboard.enabled"), Refusal(_METRICS, _OFF)),
    "wandb.enabled": Refusal(_METRICS, _OFF),
    **dict.fromkeys(("amp", "fp16.auto_cast"), Refusal(_PRECISION, _OFF)),
    "torch_autocast.enabled": Refusal(_PRECISION, _OFF),
    **dict.fromkeys(("data_types.buffer_dtype", "data_types.keep_in_fp32_modules"), Refusal(_PRECISION)),
    "data_types.param_dtype": Refusal(_PRECISION),
    **dict.fromkeys(
        ("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states"), Refusal(_MASTER_WEIGHTS, _OFF)
    ),
    "bf16.check_grad_overflow": Refusal("steps with gradients that are not finite are always skipped", (True,)),
    "bfloat16": Refusal("it is DeepSpeed's old name for bf16, which is derived from train.precision"),
    **dict.fromkeys(("checkpoint", "datastates", "nebula"), Refusal(_SAVING)),
    "optimizer": Refusal("train.optimizer decides"),
    "scheduler": Refusal("the schedule of each stage (train.stages.N.schedule) decides"),
    "elasticity": Refusal("train.global_batch_size holds for every number of ranks"),
    "gradient_allreduce_op": Refusal('the loss is scaled for "mean"', ("mean",)),
    "gradient_predivide_factor": Refusal(_SCALING, (1, 1.0)),
    "prescale_gradients": Refusal(_SCALING, _OFF),
    "sparse_gradients": Refusal("gradients of the embedding tables are dense", _OFF),
    "managed_gradient_accumulation": Refusal("a step of the engine is one global batch", (True,)),
    "disable_python_gc": Refusal("nothing would free objects that refer to each other", _OFF),
    "disable_allgather": Refusal(_UNREAD, _OFF),
    "aio": Refusal("offload to NVMe is not supported"),
    "autotuning.enabled": Refusal("the run would end after a few steps of measuring", _OFF),
    "compile": Refusal("DeepSpeed's compiler is not tested with this model"),
    "hybrid_engine.enabled": Refusal("it generates with the model that is in training, which tolktrain does not", _OFF),
}

REFUSED_IN_ZERO: Mapping[str, Refusal] = {
    **dict.fromkeys(("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"), _OLD_OFFLOAD),
    "offload_param": Refusal(
        "parameters that are split over the ranks take a few GiB at most, while each layer would cross the PCIe bus in"
        " every forward and backward pass"
    ),
    "offload_optimizer.device": Refusal(
        "checkpoints are taken from master weights and moments in memory",
        ("cpu", "none"),
        'write "device": "cpu" to keep them in the memory of the node',
    ),
    **dict.fromkeys(("offload_optimizer.buffer_count", "offload_optimizer.nvme_path"), Refusal(_OWN_ADAM)),
    **dict.fromkeys(("offload_optimizer.fast_init", "offload_optimizer.super_offload"), Refusal(_OWN_ADAM, _OFF)),
    **dict.fromkeys(("offload_optimizer.pipeline_read", "offload_optimizer.pipeline_write"), Refusal(_OWN_ADAM, _OFF)),
    **dict.fromkeys(("offload_optimizer.cpuadam_cores_perc",), Refusal(_OWN_ADAM)),
    "offload_optimizer.ratio": Refusal(_OWN_ADAM, (1, 1.0)),
    **dict.fromkeys(("zero_quantized_gradients", "zero_quantized_weights"), Refusal(_QUANTIZED, _OFF)),
    "zero_quantized_nontrainable_weights": Refusal(_QUANTIZED, _OFF),
    "zeropp_loco_param": Refusal(_QUANTIZED),
    "zero_hpz_partition_size": Refusal("a second copy of the parameters per node is not tested with this model", (1,)),
    **dict.fromkeys(("mics_hierarchical_params_gather", "mics_shard_size"), Refusal("DeepSpeed has dropped MiCS")),
    "zenflow": Refusal("it applies a part of the gradients steps later, so that training depends on it", _OFF),
    "leaf_module": Refusal("ZeRO 3 gathers the parameters of this model layer by layer"),
    "stage3_module_granularity_threshold": Refusal(
        "modules under the threshold lose their parameters before the backward pass reads them", (0,)
    ),
    "round_robin_gradients": Refusal(
        "DeepSpeed looks up master weights and moments in another order than it then keeps them in: checkpoints"
        " would hold the values of other parameters",
        _OFF,
    ),
    "ignore_unused_parameters": Refusal("every parameter has a gradient in every step, which offload relies on"),
    "compute_grad_norm": Refusal("the gradient norm is clipped and logged", (True,)),
    **dict.fromkeys(("elastic_checkpoint", "pipeline_loading_checkpoint"), Refusal(_SAVING, _OFF)),
    **dict.fromkeys(
        ("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
        Refusal(_SAVING, _OFF),
    ),
    "load_from_fp32_weights": Refusal(_SAVING, (True,)),
    "legacy_stage1": Refusal("DeepSpeed has dropped it", _OFF),
    "allgather_partitions": Refusal(_UNREAD, (True,)),
    "override_module_apply": Refusal("models are built whole and split afterwards", (True,)),
    "save_muon_momentum_buffer_in_memory": Refusal("train.optimizer is AdamW", _OFF),
}
