"""Undocumented parts of PyTorch that are used: private names, and the experimental parts of
`torch.distributed.checkpoint` that `checkpoint.writer` implements."""

import json
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from tolktrain.libraries.pinned import Pinned

_LOADER = "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter"
_PLANNER, _STORAGE = "torch.distributed.checkpoint.planner", "torch.distributed.checkpoint.storage"
_METADATA = "torch.distributed.checkpoint.metadata"

# The flight recorder keeps the collectives of each backend apart: of gloo; of NCCL since torch 2.15; of NCCL before.
# None of it where torch was built without.
_RECORDERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("_dump_fr_trace_json", {}),
    ("_dump_fr_trace_json", {"backend": "nccl2"}),
    ("_dump_nccl_trace_json", {}),
)

TORCH = (
    # What `collectives_of_groups` and `ranks_of_groups` read.
    Pinned("torch._C._distributed_c10d", "_dump_fr_trace_json"),
    Pinned("torch.distributed.distributed_c10d", "_world"),
    Pinned("torch.distributed.distributed_c10d:_World", "pg_group_ranks"),
    # Loader processes, which are ended by force when they are stuck.
    Pinned(_LOADER, "_workers", "assigned"),
    Pinned(_LOADER, "_shutdown_workers", ("self",)),
    # Compiled variants: the default limit is below what a run with validation and frozen parts has.
    Pinned("torch._dynamo", "reset", ()),
    # `compiler` these be called without the compiler, whose import they decorate themselves with.
    Pinned("torch._compile", "_disable_dynamo", ("fn", "recursive")),
    Pinned("torch.optim:Adam", "step", ("self", "closure")),
    *(
        Pinned("torch.optim:Optimizer", name)
        for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    ),
    Pinned("torch._dynamo.config", "recompile_limit"),
    # `compiler` lets optimizers step without importing torch's compiler, which these decorators do.
    Pinned("torch", "_disable_dynamo"),
    *(Pinned("torch", f"_foreach_{name}_") for name in ("add", "copy", "mul", "zero")),
    Pinned("torch", "_foreach_norm"),
    Pinned("torch.optim:Adam.step", "__wrapped__"),
    *(
        Pinned(f"torch.optim:Optimizer.{name}", "__wrapped__")
        for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    ),
    # What `running_node` and `next_node_number` read; the last one is a method of the nodes.
    Pinned("torch._C", "_current_autograd_node"),
    Pinned("torch.autograd", "_get_sequence_nr"),
    Pinned("torch.autograd.graph:Node", "_sequence_nr", ("self",)),
    # By which `tolktrain bench --count` and `tolktrain plan --rehearse` see operators, and ranks that do not exist.
    Pinned("torch.utils._python_dispatch", "TorchDispatchMode"),
    Pinned("torch.utils._pytree", "tree_leaves"),
    Pinned("torch.testing._internal.distributed.fake_pg", "FakeStore"),
    # Megatron's linear layers add a hook that expects their `_extra_state`.
    Pinned("torch.nn:Module", "_load_state_dict_pre_hooks", "assigned"),
    # Megatron's sequence parallelism asks this for its device; replaced where there is no GPU.
    Pinned("torch.cuda", "current_device", ()),
    # `checkpoint.writer` implements these two; `dcp.save` calls their methods in this order.
    Pinned(
        "torch.distributed.checkpoint",
        "save",
        (
            *("state_dict", "checkpoint_id", "storage_writer", "planner", "process_group", "no_dist"),
            "use_collectives",
        ),
    ),
    Pinned(f"{_PLANNER}:SavePlanner", "set_up_planner", ("self", "state_dict", "storage_meta", "is_coordinator")),
    Pinned(f"{_PLANNER}:SavePlanner", "create_local_plan", ("self",)),
    Pinned(f"{_PLANNER}:SavePlanner", "create_global_plan", ("self", "all_plans")),
    Pinned(f"{_PLANNER}:SavePlanner", "finish_plan", ("self", "new_plan")),
    Pinned(f"{_PLANNER}:SavePlanner", "resolve_data", ("self", "write_item")),
    Pinned(f"{_STORAGE}:StorageWriter", "reset", ("self", "checkpoint_id")),
    Pinned(f"{_STORAGE}:StorageWriter", "set_up_storage_writer", ("self", "is_coordinator", "args", "kwargs")),
    Pinned(f"{_STORAGE}:StorageWriter", "prepare_local_plan", ("self", "plan")),
    Pinned(f"{_STORAGE}:StorageWriter", "prepare_global_plan", ("self", "plans")),
    Pinned(f"{_STORAGE}:StorageWriter", "write_data", ("self", "plan", "planner")),
    Pinned(f"{_STORAGE}:StorageWriter", "finish", ("self", "metadata", "results")),
    Pinned(f"{_STORAGE}:StorageWriter", "validate_checkpoint_id", ("checkpoint_id",)),
    Pinned(f"{_STORAGE}:WriteResult", "__init__", ("self", "index", "size_in_bytes", "storage_data")),
    Pinned(f"{_PLANNER}:WriteItem", "__init__", ("self", "index", "type", "bytes_io_data", "tensor_data")),
    Pinned(f"{_PLANNER}:WriteItemType", "SHARD"),
    Pinned(f"{_PLANNER}:TensorWriteData", "__init__", ("self", "chunk", "properties", "size")),
    *(Pinned(f"{_PLANNER}:SavePlan", name, "assigned") for name in ("items", "storage_data")),
    Pinned(f"{_METADATA}:ChunkStorageMetadata", "__init__", ("self", "offsets", "sizes")),
    Pinned(f"{_METADATA}:TensorStorageMetadata", "__init__", ("self", "properties", "size", "chunks")),
    Pinned(f"{_METADATA}:MetadataIndex", "__init__", ("self", "fqn", "offset", "index")),
    Pinned(f"{_METADATA}:Metadata", "state_dict_metadata", "assigned"),
    Pinned("torch.distributed.checkpoint.api:CheckpointException", "failures"),
)


def recorded_collectives() -> list[Mapping[str, Any]]:
    """Entries of torch's flight recorders, oldest first; empty if this build has no recorder."""
    return [entry for recorder, options in _RECORDERS for entry in _recorded(recorder, options)]


def _recorded(recorder: str, options: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    try:
        import torch._C._distributed_c10d as c10d

        entries = json.loads(getattr(c10d, recorder)(**options)).get("entries", [])
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError):  # TypeError: no such option
        return []
    return sorted(entries, key=lambda entry: entry.get("record_id", 0))


def ranks_of_groups() -> dict[str, list[int]]:
    """Ranks of each process group by its name; empty if they are not available."""
    try:
        from torch.distributed import distributed_c10d

        groups = distributed_c10d._world.pg_group_ranks
        return {getattr(group, "group_name", "?"): list(ranks) for group, ranks in groups.items()}
    except (ImportError, AttributeError, RuntimeError):
        return {}


def loader_processes(batches: object) -> list[BaseProcess] | None:
    """Processes of an iterator of torch's loader; None if it loads in this process."""
    workers: list[BaseProcess] | None = getattr(batches, "_workers", None)
    return workers


def end_loader_processes(batches: Any) -> None:
    """End loader processes as torch does when the iterator is deleted. Raises RuntimeError if a process was killed."""
    batches._shutdown_workers()


def forget_compiled_variants(limit: int) -> None:
    """Clear torch.compile's caches, and set its limit to at least `limit` variants of a piece of code."""
    import torch

    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)


def running_node() -> tuple[str, int] | None:
    """Name and number of the autograd node that this thread is executing; None outside of a backward pass.

    Nodes are numbered in the order in which the forward pass makes them. Those that add up the gradient of a parameter
    have a number above all others.
    """
    import torch

    node = torch._C._current_autograd_node()
    return None if node is None else (node.name(), node._sequence_nr())


def next_node_number() -> int:
    """The number that the next autograd node of this thread gets."""
    import torch

    number: int = torch.autograd._get_sequence_nr()
    return number
