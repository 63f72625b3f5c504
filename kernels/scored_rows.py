"""The positions of a batch with a scored target, indexed on the host, so that a GPU never waits for a count."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoredRows:
    """The positions with a scored target. Rows are those of the time-major flattened states: t * width + column."""

    text: Tensor  # [N_t] int64: rows of [T * B] whose target is scored as text
    speech: Tensor  # [N_s] int64: rows of [T * S] whose target is scored as speech
    # [S] int64: sequences that pass through pooling and output adapter, those that predict speech. If there is none,
    # one position passes (see `SmolTolk`).
    columns: Tensor
    text_targets: Tensor  # [N_t] int64
    speech_targets: Tensor  # [N_s, K] int64
    num_text: int
    num_speech: int
    num_columns: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ScoredRows":
        """The same rows with their tensors on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ScoredRows":
        """The same rows in page-locked memory, so that copies to a GPU are asynchronous."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> None:
        """Move the tensors to shared memory. Raises RuntimeError."""
        self._with_tensors(lambda tensor: tensor.share_memory_())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "ScoredRows":
        return ScoredRows(
            text=change(self.text),
            speech=change(self.speech),
            columns=change(self.columns),
            text_targets=change(self.text_targets),
            speech_targets=change(self.speech_targets),
            num_text=self.num_text,
            num_speech=self.num_speech,
            num_columns=self.num_columns,
        )


def index_scored(targets: Tensor, speech_pred: Tensor, text_pred: Tensor, every_sequence: bool = False) -> ScoredRows:
    """Index the scored positions of a batch on the host.

    Args:
        targets: int64 [B, K, T].
        speech_pred: bool [B, T], true where a speech target is scored.
        text_pred: bool [B, T], true where a text target is scored.
        every_sequence: also pass sequences that predict no speech through the output adapter.
    """
    speech = np.ascontiguousarray(np.asarray(speech_pred, dtype=bool).T)  # [T, B]
    text = np.ascontiguousarray(np.asarray(text_pred, dtype=bool).T)
    by_time = np.asarray(targets).transpose(2, 0, 1)  # [T, B, K]
    columns = np.arange(speech.shape[1]) if every_sequence else np.flatnonzero(speech.any(axis=0))
    speech_rows = np.flatnonzero(speech[:, columns])
    text_rows = np.flatnonzero(text)
    return ScoredRows(
        text=torch.from_numpy(text_rows),
        speech=torch.from_numpy(speech_rows),
        columns=torch.from_numpy(columns),
        text_targets=torch.from_numpy(by_time[:, :, 0][text]),
        speech_targets=torch.from_numpy(by_time[speech]),
        num_text=text_rows.size,
        num_speech=speech_rows.size,
        num_columns=columns.size,
    )
