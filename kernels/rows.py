"""Prepares tensors for the Triton kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ALIGNMENT = 16  # bytes; the alignment of all addresses that the kernels assume


def aligned_rows(tensor: Tensor) -> Tensor:
    """The tensor [..., D] as rows [N, D] without gaps at an aligned address; a copy only if necessary."""
    rows = tensor.reshape(-1, tensor.shape[-1]).contiguous()
    return rows if rows.data_ptr() % ALIGNMENT == 0 else rows.clone()


def address_table(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Addresses of tensors on a device, int64 there, copied asynchronously; 0 for None."""
    addresses = torch.tensor([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
    return addresses.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else addresses
