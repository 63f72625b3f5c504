"""Which rank holds what: one object over torch.distributed and megatron-core's groups."""

import os
from dataclasses import dataclass

import torch
import torch.distributed

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.config.errors import UserError
from tolktrain.parallel.megatron import parallel_state


@dataclass(frozen=True)
class Layout:
    """Place of this process among all of them. Made by `initialize`."""

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

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def data_group(self) -> torch.distributed.ProcessGroup:
        """The ranks that hold the same parameters and see other data."""
        return parallel_state.get_data_parallel_group()


def initialize(tensor: int = 1, pipeline: int = 1, sequence_parallel: bool = False) -> Layout:
    """Start torch.distributed and megatron-core's groups where they do not run yet, and say which rank this is.

    A single process needs no environment variables and opens no port; under torchrun its variables (RANK, WORLD_SIZE,
    LOCAL_RANK, MASTER_ADDR, MASTER_PORT) are used.

    Raises:
        UserError: for tensor or pipeline sizes above 1.
    """
    if tensor > 1 or pipeline > 1 or sequence_parallel:
        asked = (
            f"tensor_parallel_size {tensor}, pipeline_parallel_size {pipeline}, sequence_parallel {sequence_parallel}"
        )
        raise UserError(
            f"parallel: {asked} is not supported yet in this version; use 1, 1 and false (data parallel only)"
        )
    if not torch.distributed.is_initialized():
        _start_distributed()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, create_gloo_process_groups=False
        )
    return Layout(
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        sequence_parallel=sequence_parallel,
    )


def _start_distributed() -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(ProcessEnvironment.detect().device_index(torch.cuda.device_count()))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group(backend)
    else:
        # A store in memory: nothing listens, so two runs on one machine never fight for a port.
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def shut_down() -> None:
    """End what `initialize` started, so that the process can leave without a warning or start anew."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
