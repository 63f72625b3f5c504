"""Attention of the input adapter as published: a dense mask, built sequence by sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_mask(speech_in: Tensor) -> Tensor:
    """The attention mask: bool [B, 1, T, T]. Speech attends to earlier speech of its segment, text to itself.

    Args:
        speech_in: bool [B, T], true for speech; on a GPU, this synchronizes.
    """
    num_sequences, length = speech_in.shape
    mask = torch.eye(length, dtype=torch.bool, device=speech_in.device).repeat(num_sequences, 1, 1)
    causal = torch.ones(length, length, dtype=torch.bool, device=speech_in.device).tril()
    for sequence, row in enumerate(speech_in):
        for start, end in _segments(row):
            mask[sequence, start:end, start:end] = causal[start:end, start:end]
    return mask.unsqueeze(1)


def _segments(row: Tensor) -> Sequence[tuple[int, int]]:
    """Begin and end of each speech segment in one sequence [T]."""
    changes = (torch.nonzero(row[1:] != row[:-1]).flatten() + 1).tolist()
    bounds = [0, *changes, len(row)]
    first = 0 if bool(row[0]) else 1
    return list(zip(bounds[first::2], bounds[first + 1 :: 2], strict=False))
