"""Uses of DeepSpeed's private names and undocumented behaviour.

The rest of the code calls the functions below, those of `bf16_update`, and DeepSpeed's documented ones. `DEEPSPEED`
lists each attribute that they access; a test compares it with the installed version.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.libraries.pinned import Pinned
from tolktrain.parallel.layout import Layout

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
_PIPELINE_ENGINE = "deepspeed.runtime.pipe.engine:PipelineEngine"
_MODULE = "deepspeed.runtime.pipe.module:PipelineModule"
_GRID = "deepspeed.runtime.pipe.topology:PipelineParallelGrid"
_TOPOLOGY = "deepspeed.runtime.pipe.topology"
_FRAGMENT = "deepspeed.utils.tensor_fragment"
_BF16 = "deepspeed.runtime.bf16_optimizer:BF16_Optimizer"
_ZERO_12 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
_ZERO_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
_PARTITIONED = "deepspeed.runtime.zero.partition_parameters"
_COORDINATOR = "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator"
_RELEASES = "_PartitionedParameterCoordinator__params_to_release"
_UNFUSED = "deepspeed.runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer"
_FUSED = "deepspeed.runtime.fp16.fused_optimizer:FP16_Optimizer"

DEEPSPEED = (
    # Import and start.
    Pinned("deepspeed.ops", "__compatible_ops__"),
    Pinned("deepspeed.runtime.bf16_optimizer", "see_memory_usage", ("message", "force")),
    Pinned("deepspeed.runtime.zero.parameter_offload", "FWD_MODULE_STACK"),
    Pinned(_COORDINATOR, _RELEASES, ("args", "kwargs")),
    Pinned("deepspeed.utils.nvtx", "enable_nvtx"),
    Pinned("deepspeed.runtime.zero.linear", "zero3_linear_wrap", ("input", "weight", "bias")),
    Pinned(f"{_PARTITIONED}:InsertPostInitMethodToModuleSubClasses", "linear_bk", "assigned"),
    # A step. `backward` (decorated) divides by the number of micro batches unless `scale_wrt_gas` is false.
    Pinned(_ENGINE, "backward"),
    Pinned(_ENGINE, "get_global_grad_norm", ("self",)),
    Pinned(_ENGINE, "was_step_applied", ("self",)),
    Pinned(_ENGINE, "destroy", ("self",)),
    Pinned(_ENGINE, "_reduce_non_expert_gradients", ("self", "grads", "elements_per_buffer")),
    Pinned(_PIPELINE_ENGINE, "train_batch", ("self", "data_iter")),
    Pinned(
        _PIPELINE_ENGINE,
        "eval_batch",
        (
            *("self", "data_iter", "return_logits", "compute_loss", "reduce_output", "bcast_loss"),
            "num_micro_batches",
        ),
    ),
    Pinned(_PIPELINE_ENGINE, "reset_activation_shape", ("self",)),
    *(Pinned(_PIPELINE_ENGINE, name, "assigned") for name in ("pipe_buffers", "loss", "total_loss")),
    Pinned(_PIPELINE_ENGINE, "_recv_tensor_meta", ("self", "send_stage")),
    Pinned(_PIPELINE_ENGINE, "_allocate_or_extend_buffers", ("self", "idx", "shape", "dtype")),
    # Optimizers. The engine keeps the one that it was given, and its own around it.
    *(Pinned(_ENGINE, name, "assigned") for name in ("basic_optimizer", "optimizer")),
    Pinned(_FUSED, "fp16_groups", "assigned"),
    *(Pinned(_UNFUSED, name, "assigned") for name in ("fp16_groups", "fp32_groups")),
    Pinned(_ZERO_3, "fp32_partitioned_groups_flat", "assigned"),
    *(Pinned(zero, "_lazy_init_hp_params_optimizer_state", ("self",)) for zero in (_BF16, _ZERO_12)),
    Pinned(_ZERO_12, "reset_cpu_buffers", ("self",)),
    Pinned(_ZERO_12, "averaged_gradients", "assigned"),
    # Fragments of parameters under ZeRO 1 and 2, among them those of BF16_Optimizer.
    Pinned("deepspeed.utils.mixed_precision_linkage", "_hp_mapping", "assigned"),
    Pinned(f"{_FRAGMENT}:tensor_fragment", "lp_fragment_address", "assigned"),
    *(Pinned(f"{_FRAGMENT}:fragment_address", name, "assigned") for name in ("start", "numel")),
    Pinned(f"{_FRAGMENT}:tensor_fragment", "get_hp_fragment", ("self", "optim_state_key")),
    # Parameters under ZeRO 3.
    *(
        Pinned(f"{_PARTITIONED}:Init", name, "assigned")
        for name in ("ds_process_group", "ds_numel", "ds_shape", "ds_tensor", "partition_numel")
    ),
    *(
        Pinned(_FRAGMENT, f"safe_{verb}_local_{what}", ("param", *value, *key))
        for verb, value in (("get", ()), ("set", ("value",)))
        for what, key in (("fp32_param", ()), ("optimizer_state", ("optim_state_key",)))
    ),
    Pinned(_PARTITIONED, "register_external_parameter", ("module", "parameter")),
    # Pipeline stages.
    Pinned(_MODULE, "_partition_layers", ("self", "method")),
    Pinned(_MODULE, "_set_bounds", ("self", "start", "stop")),
    Pinned(_MODULE, "get_tied_weights_and_groups", ("self",)),
    *(Pinned(_MODULE, name, "assigned") for name in ("_grid", "_topo", "global_rank", "parts", "ds_pipe_replicated")),
    *(
        Pinned(_GRID, name, "assigned")
        for name in ("dp_proc_group", "pp_proc_group", "slice_proc_group", "ds_model_proc_group")
    ),
    Pinned(f"{_TOPOLOGY}:PipeModelDataParallelTopology", "__init__", ("self", "num_pp", "num_mp", "num_dp")),
    Pinned(f"{_TOPOLOGY}:ProcessTopology", "get_axis_comm_lists", ("self", "axis")),
    Pinned(f"{_TOPOLOGY}:ProcessTopology", "get_coord", ("self", "rank")),
    Pinned(_PIPELINE_ENGINE, "_bf16_reduce_grads", ("self",)),
    Pinned(_PIPELINE_ENGINE, "using_bf16_optimizer", "assigned"),
    *(
        Pinned(_BF16, name, "assigned")
        for name in (
            *("_hp_grad", "bf16_groups", "fp32_groups_gradients", "fp32_groups_has_gradients"),
            *("immediate_grad_update", "fp32_groups_flat_partition", "fp32_groups_gradient_flat_partition"),
            *("bf16_groups_flat", "bf16_partitioned_groups", "real_dp_process_group", "nccl_start_alignment_factor"),
            "allgather_bucket_size",
            *("fp32_groups_gradients_flat", "clip_grad", "mpu", "overflow", "_global_grad_norm", "optimizer"),
        )
    ),
    Pinned(_BF16, "step", ("self", "closure")),
    Pinned(_BF16, "get_grads_for_norm", ("self", "for_clipping")),
    Pinned(_BF16, "update_lp_params", ("self",)),
    Pinned(_BF16, "clear_lp_grads", ("self", "set_to_none")),
    Pinned(_BF16, "update_hp_grads", ("self", "clear_lp_grads")),
    Pinned(_BF16, "clear_hp_grads", ("self",)),
    # Parameters that all tensor ranks have, or several stages, count once in the gradient norm.
    Pinned("deepspeed.runtime.utils", "is_model_parallel_parameter", ("p",)),
    Pinned("deepspeed.runtime.constants", "PIPE_REPLICATED"),
    Pinned(
        "deepspeed.runtime.utils",
        "all_gather_dp_groups",
        (
            *("groups_flat", "partitioned_param_groups", "dp_process_group", "start_alignment_factor"),
            "allgather_bucket_size",
        ),
    ),
)


def adam(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that was passed to the engine."""
    optimizer: torch.optim.Optimizer = engine.basic_optimizer
    return optimizer


def unsharded_master_weights(engine: Any) -> dict[nn.Parameter, Tensor]:
    """Without ZeRO: the tensors that AdamW updates, by module parameter. In bf16 they are float32 copies."""
    if engine.optimizer is engine.basic_optimizer:
        parameters = [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
        return {parameter: parameter for parameter in parameters}
    pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)  # named so for bf16 too
    return {own: master for group in pairs for own, master in zip(*group, strict=True)}


def adam_parameters(engine: Any, zero_stage: int) -> list[Tensor]:
    """The tensors that AdamW updates on this rank: parameters, or the flat partitions of their master weights."""
    if zero_stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]


def without_averaging(engine: Any) -> None:
    """Let an engine with a single data rank leave gradients as they are. ZeRO 2 and 3, and ZeRO 1 in float32, have
    other code and are not affected.

    DeepSpeed would flatten, copy and round all gradients in every step for the average over one rank: a buffer of the
    size of the gradients, which is allocated when memory is most fragmented. A parameter without a gradient still gets
    one of zeros.
    """
    engine._reduce_non_expert_gradients = lambda grads, elements_per_buffer: None


@torch.no_grad()
def copy_each(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy, and convert, each source into its target, in few launches."""
    torch._foreach_copy_(targets, sources)


@dataclass(frozen=True)
class FlatGradients:
    """An optimizer group of ZeRO 1 in bf16."""

    parameters: list[nn.Parameter]
    sums: Tensor  # of the gradients of the parameters, one after the other, and padding; float32, flat
    own: Tensor  # the view of `sums` that this data rank updates; all data ranks have equally long ones


def flat_gradients(engine: Any) -> list[FlatGradients]:
    """The groups of BF16_Optimizer."""
    optimizer = engine.optimizer
    parts = (optimizer.bf16_groups, optimizer.fp32_groups_gradients_flat, optimizer.fp32_groups_gradient_flat_partition)
    return [FlatGradients(*group) for group in zip(*parts, strict=True)]


def reduce_by(engine: Any, reduce: Callable[[], None]) -> None:
    """Let `reduce` replace the average of gradients over the data ranks; ZeRO 1 in bf16."""
    engine._reduce_non_expert_gradients = lambda grads, elements_per_buffer: reduce()


def norm_of_partitions(engine: Any, groups: Sequence[FlatGradients], layout: Layout) -> None:
    """Compute the norm from, and clip, only what each data rank updates; ZeRO 1 in bf16, without pipeline stages.

    Parameters that all tensor ranks have count on the first one.
    """
    from deepspeed.runtime.utils import is_model_parallel_parameter

    optimizer = engine.optimizer
    whole = [group.own for group in groups]
    counted: list[Tensor] = whole
    if layout.tensor_rank:
        counted = [
            group.sums[first + begin : first + end]
            for group in groups
            for first, parameter in zip(_offsets(group.parameters), group.parameters, strict=True)
            for begin, end in [fragment_range(parameter)]
            if begin < end and is_model_parallel_parameter(parameter)
        ] or [torch.zeros(1, device=layout.device)]

    def gradients(for_clipping: bool = False) -> Any:
        return whole if for_clipping else (counted, {})

    optimizer.get_grads_for_norm, optimizer.mpu = gradients, _EveryRank()


class _EveryRank:
    """DeepSpeed's "mpu" object of an optimizer that sums squares over all ranks."""

    def get_model_parallel_group(self) -> Any:
        """All ranks."""
        return dist.group.WORLD


def _offsets(parameters: Sequence[nn.Parameter]) -> list[int]:
    """Where each parameter begins if they follow one another."""
    sizes = [parameter.numel() for parameter in parameters]
    return [0, *itertools.accumulate(sizes[:-1])]


def link_moments(engine: Any) -> None:
    """Link the fragments of ZeRO 1 and 2 to moments that were created here, as DeepSpeed does at its first update."""
    link: Callable[[], None] | None = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def forget_skipped_gradients(engine: Any) -> None:
    """Let ZeRO 1 and 2 with offload drop accumulated gradients whenever they clear their buffers on the host.

    In bf16 training, DeepSpeed keeps the gradients of a step that it skips, adds the next ones to them, and so skips
    every later step too.
    """
    optimizer = engine.optimizer
    clear: Callable[[], None] | None = getattr(optimizer, "reset_cpu_buffers", None)
    if clear is not None:

        def clear_all() -> None:
            clear()
            optimizer.averaged_gradients.clear()

        optimizer.reset_cpu_buffers = clear_all


def forget_modules(module: nn.Module) -> None:
    """Remove a model from ZeRO 3's stack of modules and its cache, which would keep all of its states in memory, and
    undo what ZeRO 3 has replaced."""
    from deepspeed.runtime.zero import parameter_offload

    forget_releases()
    restore_linear()
    gone = set(map(id, module.modules()))
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if id(module) not in gone]


def forget_outputs(engine: Any) -> None:
    """Remove the tensors of the last step from a pipeline engine. Their hooks hold the engine in C++, so Python would
    never free the one or the other."""
    for tensors in getattr(engine, "pipe_buffers", {}).values():
        tensors.clear()
    engine.loss = engine.total_loss = None


def expect_shape(engine: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Tell a pipeline stage what it will receive, so that the stage before it need not send the shape."""
    engine._recv_tensor_meta = lambda _: engine._allocate_or_extend_buffers(0, list(shape), dtype)


def forget_releases() -> None:
    """Clear ZeRO 3's cache of what to release after each module of a step. It holds for one order of modules only, and
    keeps every engine there was in memory.

    Each entry is found by a walk through the modules of the rest of the step, so a step without the cache takes a time
    that grows with the square of the number of layers.
    """
    release_cache().cache_clear()


def restore_linear() -> None:
    """Undo the replacement of `torch.nn.functional.linear` by ZeRO 3, which DeepSpeed leaves in place for good: for all
    later engines of this process, and for the evaluation after training. It takes several times as long to call."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    if functional.linear is zero3_linear_wrap:
        functional.linear = InsertPostInitMethodToModuleSubClasses.linear_bk


def without_ranges_on_cpu() -> None:
    """Let DeepSpeed not mark its functions as ranges for a GPU's profiler if there is no GPU: under ZeRO 3, it calls
    hundreds of functions per module."""
    from deepspeed.utils import nvtx

    if not torch.cuda.is_available():
        nvtx.enable_nvtx = False


def release_cache() -> Any:
    """The cache, a function made by `functools.lru_cache` inside DeepSpeed's decorator."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    cells = getattr(PartitionedParameterCoordinator, _RELEASES).__closure__
    return next(cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "cache_clear"))


def without_shared_memory_collectives(deepspeed: Any) -> None:
    """Disable the all-reduce in shared memory, which only inference uses and which takes half a minute to compile.

    Nothing else asks which operators can be built, and to find out about all of them would start the compiler.
    """
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def without_memory_reports() -> None:
    """Let DeepSpeed's optimizer for bf16 not print how much memory is used: it does so two times, and two times for
    each group of parameters, and each time collects garbage, which can take a second. The peak begins anew there, as
    it does with the prints."""
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = _begin_peak


def _begin_peak(message: str, force: bool = False) -> None:
    if force and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def fragment_range(parameter: nn.Parameter) -> tuple[int, int]:
    """ZeRO 1 and 2: the elements of a flattened trained parameter in this data rank's partition."""
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return 0, 0
    address = mapping.lp_fragment_address
    return address.start, address.start + address.numel


def fragment(parameter: nn.Parameter, kind: str | None) -> Tensor:
    """ZeRO 1 and 2: this rank's elements of a master weight, or of the moment `kind`; the original."""
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return torch.empty(0)
    found: Tensor = mapping.get_hp_fragment(kind)
    return found.detach()


def partition_range(parameter: nn.Parameter) -> tuple[int, int]:
    """ZeRO 3: the elements in this data rank's partition, without the padding of the last partition."""
    zero3: Any = parameter
    size, rank, total = zero3.partition_numel(), dist.get_rank(zero3.ds_process_group), zero3.ds_numel
    return min(rank * size, total), min((rank + 1) * size, total)


def padded_partition(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """ZeRO 3: a rank's elements, padded to the partition size."""
    return functional.pad(value, (0, parameter.partition_numel() - len(value)))  # type: ignore[attr-defined]


def partition(parameter: nn.Parameter) -> Tensor:
    """ZeRO 3: the module's own partition of a parameter, flat and padded; not a copy."""
    part: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    return part.detach()


def local_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter on this tensor rank; ZeRO 3 leaves an empty one in the module."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def use_groups(module: Any, layout: Layout) -> None:
    """Let a `PipelineModule` use our process groups.

    They have the same ranks as its own (see `check_same_groups`), without a second set of NCCL communicators, and with
    our timeout.
    """
    grid = module._grid
    grid.dp_proc_group, grid.pp_proc_group = layout.data_group, layout.pipeline_group
    grid.slice_proc_group, grid.ds_model_proc_group = layout.tensor_group, layout.replica_group


def set_bounds(module: Any, bounds: list[int]) -> None:
    """Set the bounds of a `PipelineModule`: stage i has layers bounds[i] to bounds[i + 1] - 1."""
    module.parts = bounds
    stage = module._topo.get_coord(module.global_rank).pipe
    module._set_bounds(start=bounds[stage], stop=bounds[stage + 1])


def mark_replicated(parameter: nn.Parameter, replicated: bool) -> None:
    """Mark whether another pipeline stage has the parameter too, so that it counts once in the gradient norm."""
    parameter.ds_pipe_replicated = replicated  # type: ignore[attr-defined]


def after_averaging(engine: Any, action: Callable[[], None]) -> bool:
    """Call `action` after the pipeline's bf16 optimizer has averaged gradients over the data ranks.

    Returns whether the engine has that optimizer; otherwise it does nothing.
    """
    if not engine.using_bf16_optimizer:
        return False
    average: Callable[[], None] = engine._bf16_reduce_grads

    def average_and_act() -> None:
        average()
        action()

    engine._bf16_reduce_grads = average_and_act
    return True


def accumulated_gradient(parameter: nn.Parameter) -> Tensor:
    """The float32 gradient that the pipeline's bf16 optimizer keeps of a parameter."""
    gradient: Tensor = parameter._hp_grad  # type: ignore[attr-defined]
    return gradient
