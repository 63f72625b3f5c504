"""Pairs of documents of which one is preferred, indexed on the host, so that a GPU never waits for a count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tolktrain_kernels.documents import mark_starts


@dataclass(frozen=True)
class PreferencePairs:
    """The pairs of a micro batch: document 2p is the chosen one of pair p, document 2p + 1 the rejected one."""

    text: Tensor  # [N_t] int64: document of each row of `ScoredRows.text`
    speech: Tensor  # [N_s] int64: document of each row of `ScoredRows.speech`
    lengths: Tensor  # [2P] float64: scored positions of each document
    num_pairs: int  # P

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PreferencePairs":
        """The same pairs with their tensors on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PreferencePairs":
        """The same pairs in page-locked memory, so that copies to a GPU are asynchronous."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> None:
        """Move the tensors to shared memory. Raises RuntimeError."""
        self._with_tensors(lambda tensor: tensor.share_memory_())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PreferencePairs":
        return PreferencePairs(change(self.text), change(self.speech), change(self.lengths), self.num_pairs)


def pack_pairs(starts: Sequence[Sequence[int]], text_pred: np.ndarray, speech_pred: np.ndarray) -> PreferencePairs:
    """Index the pairs of a micro batch on the host. Sequences in which nothing is scored have no documents.

    Args:
        starts: of each sequence, the first position of each document, as in `pack_documents`.
        text_pred: bool [B, T], true where a text target is scored.
        speech_pred: bool [B, T], true where a speech target is scored.

    Raises:
        ValueError: a sequence has an odd number of documents, or a document in which nothing is scored.
    """
    scored = text_pred | speech_pred
    begins = mark_starts(starts, scored.shape[1])
    counts = np.zeros(0, np.int64)
    number = np.zeros(scored.shape, np.int64)  # of the document of each position
    for row in np.flatnonzero(scored.any(axis=1)):
        own = np.cumsum(begins[row]) - 1
        lengths = np.bincount(own[scored[row]], minlength=int(own[-1]) + 1)
        if len(lengths) % 2 or not lengths.all():
            raise ValueError(f"the documents have {', '.join(map(str, lengths))} scored positions")
        number[row] = len(counts) + own
        counts = np.concatenate((counts, lengths))
    return PreferencePairs(
        text=torch.from_numpy(number.T[text_pred.T]),
        speech=torch.from_numpy(number.T[speech_pred.T]),
        lengths=torch.from_numpy(counts.astype(np.float64)),
        num_pairs=len(counts) // 2,
    )
