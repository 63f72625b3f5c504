"""What megatron-core needs to run where there is no GPU."""

import torch


def stand_in_for_cuda() -> None:
    """Let megatron-core's sequence parallelism allocate on the CPU. Without effect where CUDA is available.

    It asks `torch.cuda.current_device()` where to put its buffers, whatever the backend of its groups.
    """
    if not torch.cuda.is_available():
        torch.cuda.current_device = _cpu  # type: ignore[assignment]


def _cpu() -> torch.device:
    return torch.device("cpu")
