"""Results that depend on nothing but the input, also on GPUs."""

import os

import torch

from tolktrain.config.training import TrainConfig


def set_determinism(config: TrainConfig) -> None:
    """Let PyTorch compute deterministically, or not, as `train.deterministic` says. To be called before CUDA starts.

    An operator without a deterministic implementation raises RuntimeError afterwards. Attention's backward pass adds
    gradients of queries in a fixed order (flash-attn: `tolktrain_kernels.segment_attention`), cuDNN's is not taken, and
    cuBLAS has a workspace of its own for each stream. On CPUs, everything is deterministic anyway.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # What is not initialized is not read; to fill it would take a pass over the memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if config.deterministic or torch.are_deterministic_algorithms_enabled():  # it imports torch's compiler
        torch.use_deterministic_algorithms(config.deterministic)
