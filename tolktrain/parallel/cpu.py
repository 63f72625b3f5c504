"""Lets megatron-core run without a GPU."""

import torch


def stand_in_for_cuda() -> None:
    """Let megatron-core's sequence parallelism allocate on the CPU. Has no effect if CUDA is available.

    It allocates its buffers on `torch.cuda.current_device()`, whatever the backend of its groups.
    """
    if not torch.cuda.is_available():
        torch.cuda.current_device = _cpu  # type: ignore[assignment]


def _cpu() -> torch.device:
    return torch.device("cpu")
