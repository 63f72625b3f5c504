"""The layout of the ranks: one object over torch.distributed and megatron-core's groups."""

import math
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.open_files import raise_file_limit
from tolktrain.errors import UserError
from tolktrain.parallel.cpu import stand_in_for_cuda
from tolktrain.parallel.devices import check_devices_of_ranks
from tolktrain.parallel.megatron import parallel_state
from tolktrain.parallel.megatron_compat import created_groups


@dataclass(frozen=True)
class Layout:
    """The sizes of the layout and the coordinates of this rank. Created by `initialize`.

    Ranks count tensor-first, then data, then pipeline: rank = (pipeline_rank * data_size + data_rank) * tensor_size +
    tensor_rank. So the ranks that communicate most, those of a tensor group, are neighbours on a node.
    """

    rank: int
    world_size: int
    local_rank: int  # on its node
    tensor_size: int
    tensor_rank: int
    pipeline_size: int
    pipeline_rank: int
    data_size: int
    data_rank: int
    sequence_parallel: bool

    @cached_property
    def device(self) -> torch.device:
        """The device of this process. Asked for many times in a step, and torch looks for drivers each time."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same parameters and process different sequences."""
        return parallel_state.get_data_parallel_group()

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that split the layers of a pipeline stage and process the same sequences."""
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The ranks that hold the pipeline stages of one replica, for one tensor rank."""
        return parallel_state.get_pipeline_model_parallel_group()

    @property
    def replica_group(self) -> dist.ProcessGroup:
        """The ranks that together hold one copy of the model: all its pipeline stages and tensor ranks."""
        return parallel_state.get_model_parallel_group()

    @property
    def ends_group(self) -> dist.ProcessGroup | None:
        """The first and the last pipeline stage of a replica, for one tensor rank; None on the stages between."""
        return parallel_state.get_embedding_group(check_initialized=False)

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pipeline_rank == 0

    def describe(self) -> str:
        """Sizes in words: "8 processes on cuda: tensor 2 (sequence parallel), pipeline 2, data 2"."""
        processes = f"{self.world_size} process{'es' * (self.world_size > 1)} on {self.device.type}"
        if self.world_size == 1:
            return processes
        tensor = f"tensor {self.tensor_size}{' (sequence parallel)' * self.sequence_parallel}"
        return f"{processes}: {tensor}, pipeline {self.pipeline_size}, data {self.data_size}"


def initialize(
    tensor: int = 1, pipeline: int = 1, sequence_parallel: bool = False, timeout: timedelta | None = None
) -> Layout:
    """Start torch.distributed and megatron-core's groups unless they exist already, and return this rank's layout.

    A single process needs no environment variables and opens no port. Several processes need torchrun's variables
    (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Args:
        tensor: ranks that split each layer.
        pipeline: number of pipeline stages.
        sequence_parallel: whether tensor ranks also split the sequence between layers.
        timeout: of collectives; torch's default if None.

    Raises:
        UserError: the number of processes is no multiple of tensor * pipeline, or the limit of open files is too low.
    """
    if tensor > 1:
        # megatron-core launches a collective before the product that overlaps it; one hardware queue keeps this order.
        # The driver reads the variable when it starts, so nothing may ask for a device before.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    stand_in_for_cuda()
    if not dist.is_initialized():
        _start_distributed(timeout)
    world_size = dist.get_world_size()
    if world_size % (tensor * pipeline):
        raise UserError(_indivisible(world_size, tensor, pipeline))
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            order="tp-cp-ep-dp-pp",
            distributed_timeout_minutes=math.ceil(timeout.total_seconds() / 60) if timeout is not None else 30,
            create_gloo_process_groups=False,
        )
    layout = Layout(
        rank=dist.get_rank(),
        world_size=world_size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        sequence_parallel=sequence_parallel,
    )
    assert (layout.tensor_size, layout.pipeline_size) == (tensor, pipeline), "another layout is in use"
    return layout


def _start_distributed(timeout: timedelta | None) -> None:
    environment = ProcessEnvironment.detect()
    raise_file_limit(environment)
    on_gpu, device = torch.cuda.is_available(), None
    if on_gpu:
        index = environment.device_index(torch.cuda.device_count())
        torch.cuda.set_device(index)
        device = torch.device("cuda", index)
    # Otherwise each of some twenty groups would connect all pairs of ranks: 8 (n - 1) sockets a rank with data
    # parallelism alone. With lazy initialization, only pairs that communicate are connected.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        place: dict[str, Any] = {}
        if on_gpu:
            store = check_devices_of_ranks(environment, socket.gethostname(), timeout)
            place = {"rank": environment.rank, "world_size": environment.world_size}
            place["store"] = dist.PrefixStore("default_pg", store)
        # Without `device_id`, PyTorch guesses the GPU of NCCL's groups from LOCAL_RANK.
        dist.init_process_group(backend, timeout=timeout, device_id=device, **place)
    else:
        # A store in memory opens no port, so two runs on one machine do not conflict.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def _indivisible(world_size: int, tensor: int, pipeline: int) -> str:
    fitting = [count for count in range(1, world_size + 1) if world_size % count == 0]
    tensors = [count for count in fitting if world_size // count % pipeline == 0]
    pipelines = [count for count in fitting if world_size // count % tensor == 0]
    proposals = [f"{(world_size // (tensor * pipeline) + 1) * tensor * pipeline} processes"]
    proposals += [f"parallel.tensor_parallel_size {tensors[-1]}"] if tensors else []
    proposals += [f"parallel.pipeline_parallel_size {pipelines[-1]}"] if pipelines else []
    return (
        f"parallel: tensor_parallel_size {tensor} times pipeline_parallel_size {pipeline} needs a multiple of"
        f" {tensor * pipeline} processes, but there are {world_size}; use {' or '.join(proposals)}"
    )


def release_groups() -> None:
    """Destroy megatron-core's groups, so that the same processes can initialize another layout."""
    if parallel_state.model_parallel_is_initialized():
        groups = created_groups()
        parallel_state.destroy_model_parallel()
        # megatron-core only drops its references. A gloo group that still exists keeps its sockets and its threads,
        # of which one wakes a hundred times a second.
        for group in groups:
            dist.destroy_process_group(group)


def shut_down() -> None:
    """Destroy all groups, so that the process can exit without a warning or initialize again."""
    release_groups()
    if dist.is_initialized():
        dist.destroy_process_group()
