"""Tensors as the Triton kernels take them."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ALIGNMENT = 16  # bytes; what the kernels are told of every tensor's address


def aligned_rows(tensor: Tensor) -> Tensor:
    """The tensor [..., D] as rows [N, D] without gaps at an aligned address: itself where it is so, else a copy."""
    rows = tensor.reshape(-1, tensor.shape[-1]).contiguous()
    return rows if rows.data_ptr() % ALIGNMENT == 0 else rows.clone()


def address_table(tensors: Sequence[Tensor]) -> Tensor:
    """Addresses of tensors, int64 on their device, which is not waited for."""
    addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
    device = tensors[0].device
    return addresses.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else addresses
