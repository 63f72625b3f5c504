"""Documents: parts of a sequence of which none sees the others, as if each were a sequence of its own.

All indices are computed on the host, so that a GPU never waits for a count. Attention works on segments, as that of the
speech adapter does (`segment_attention`), and never with T x T masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """The documents of S sequences of T positions. They fill their sequence; padding belongs to the last one.

    Attention takes the positions sequence by sequence (row s * T + t), the other parts of the model position by
    position (row t * S + s).
    """

    positions: Tensor  # [T * S] int64, time-major rows: position in the own document
    cu_seqlens: Tensor  # [R + 1] int32: begin of each document, sequence by sequence, and T * S
    scatter: Tensor  # [T * S] int64: its place document * max_segment + offset in the padded buffer [R * max_segment]
    max_segment: int  # length of the longest document

    @property
    def num_segments(self) -> int:
        """Documents (R)."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key that it sees; for documents on the host."""
        lengths = np.diff(self.cu_seqlens.numpy()).astype(np.int64)
        return int((lengths * (lengths + 1) // 2).sum())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Documents":
        return Documents(change(self.positions), change(self.cu_seqlens), change(self.scatter), self.max_segment)


@dataclass(frozen=True)
class PackedDocuments:
    """The documents of a micro batch of B sequences, at least one of which has several. Made by `pack_documents`."""

    every: Documents  # of all sequences
    # Of the S sequences that predict speech; the same object if these are all, None if there is none.
    predicting: Documents | None
    counted: Tensor  # [T, S] float32: 1 at the positions of documents that predict speech, else 0
    num_counted: int  # the sum of `counted`

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedDocuments":
        """The same documents with their tensors on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedDocuments":
        """The same documents in page-locked memory, so that copies to a GPU are asynchronous."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> None:
        """Move the tensors to shared memory. Raises RuntimeError."""
        self._with_tensors(lambda tensor: tensor.share_memory_())

    def with_every_sequence(self) -> "PackedDocuments":
        """For inputs in which all sequences pass through the output adapter, and no entropy is summed."""
        counted = torch.ones(len(self.counted), len(self.every.positions) // len(self.counted))
        return PackedDocuments(self.every, self.every, counted, counted.numel())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PackedDocuments":
        every, predicting = self.every._with_tensors(change), self.predicting
        if predicting is not None:
            predicting = every if predicting is self.every else predicting._with_tensors(change)
        return PackedDocuments(every, predicting, change(self.counted), self.num_counted)


def pack_documents(starts: Sequence[Sequence[int]], speech_pred: np.ndarray | Tensor) -> PackedDocuments | None:
    """Index the documents of a micro batch on the host.

    Args:
        starts: of each sequence, the first position of each document, ascending, the first 0. A start after the last
            position does not count.
        speech_pred: bool [B, T], true where a speech target is scored.

    Returns:
        None if each sequence is a single document.
    """
    mask = np.asarray(speech_pred, dtype=bool)
    begins = mark_starts(starts, mask.shape[1])
    if begins.sum() == len(mask):
        return None
    columns = np.flatnonzero(mask.any(axis=1))
    number = np.cumsum(begins).reshape(begins.shape) - 1  # of the document of each position
    predicts = np.bincount(number[mask], minlength=int(number.max()) + 1) > 0
    counted = predicts[number[columns]].T
    every = _documents(begins)
    predicting: Documents | None = None
    if columns.size == len(begins):
        predicting = every
    elif columns.size:
        predicting = _documents(begins[columns])
    return PackedDocuments(
        every=every,
        predicting=predicting,
        counted=torch.from_numpy(np.ascontiguousarray(counted, dtype=np.float32)),
        num_counted=int(counted.sum()),
    )


def mark_starts(starts: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Bool [B, length]: true at the first position of each document."""
    begins = np.zeros((len(starts), length), dtype=bool)
    for row, places in enumerate(starts):
        assert places[0] == 0, places
        begins[row, [place for place in places if place < length]] = True
    return begins


def _documents(begins: np.ndarray) -> Documents:
    """From the begins, bool [S, T]."""
    boundaries = np.append(np.flatnonzero(begins), begins.size)
    lengths = np.diff(boundaries)
    offset = np.arange(begins.size) - np.repeat(boundaries[:-1], lengths)
    longest = int(lengths.max())
    scatter = np.repeat(np.arange(lengths.size) * longest, lengths) + offset
    return Documents(
        positions=torch.from_numpy(np.ascontiguousarray(offset.reshape(begins.shape).T).reshape(-1)),
        cu_seqlens=torch.from_numpy(boundaries.astype(np.int32)),
        scatter=torch.from_numpy(scatter),
        max_segment=longest,
    )
