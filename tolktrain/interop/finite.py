"""Searches weights for values with which nothing can be computed."""

import torch
from torch import Tensor


def non_finite(tensor: Tensor) -> str | None:
    """What is wrong with a tensor that holds NaN or infinity, as "holds ..."; None for a finite one.

    The extreme values alone are searched first, because that needs no memory and takes less time than to copy the
    tensor.
    """
    if not tensor.numel() or all(bool(torch.isfinite(value)) for value in torch.aminmax(tensor)):
        return None
    wrong = torch.nonzero(~torch.isfinite(tensor))
    kinds = [
        name
        for name, found in (("NaN", torch.isnan(tensor).any()), ("infinity", torch.isinf(tensor).any()))
        if bool(found)
    ]
    return (
        f"holds {' and '.join(kinds)} ({len(wrong):,} of {tensor.numel():,} values, the first at {wrong[0].tolist()})"
    )
