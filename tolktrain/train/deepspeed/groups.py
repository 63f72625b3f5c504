"""megatron-core's groups in DeepSpeed's interface, and a check that both libraries form the same groups."""

import torch.distributed as dist

from tolktrain.parallel.layout import Layout
from tolktrain.train.process import import_deepspeed


class MegatronGroups:
    """DeepSpeed's "mpu" object, for models without pipeline stages."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def get_model_parallel_rank(self) -> int:
        """This rank's index among the ranks that split layers."""
        return self._layout.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Number of ranks that split layers."""
        return self._layout.tensor_size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Ranks over which the gradient norm is summed."""
        return self._layout.tensor_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        """This rank's index among the ranks that hold the same parameters."""
        return self._layout.data_rank

    def get_data_parallel_world_size(self) -> int:
        """Number of ranks that hold the same parameters."""
        return self._layout.data_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Ranks over which gradients are averaged."""
        return self._layout.data_group


def deepspeed_topology(layout: Layout) -> object:
    """DeepSpeed's description of the layout; its axes are pipe, data and model, and the last one varies fastest."""
    import_deepspeed()
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    return PipeModelDataParallelTopology(
        num_pp=layout.pipeline_size, num_mp=layout.tensor_size, num_dp=layout.data_size
    )


def check_same_groups(layout: Layout) -> None:
    """Check that each of DeepSpeed's groups would have the same ranks in the same order as megatron-core's."""
    topology = deepspeed_topology(layout)
    groups = {"model": layout.tensor_group, "data": layout.data_group, "pipe": layout.pipeline_group}
    for axis, group in groups.items():
        ours = dist.get_process_group_ranks(group)
        theirs = topology.get_axis_comm_lists(axis) or [[rank] for rank in range(layout.world_size)]  # type: ignore[attr-defined]
        if ours not in theirs:
            raise RuntimeError(f"{axis}: megatron-core has the ranks {ours}, DeepSpeed {theirs}")
