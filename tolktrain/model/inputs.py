"""The inputs of the model from a batch. All indices are computed on the host, so that a GPU never waits for a count."""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tolktrain_kernels.speech_adapter import SpeechSegments, pack_segments


class HasModelInputs(Protocol):
    """Anything with the tensors of a batch, on the host."""

    tokens: Tensor
    targets: Tensor
    speech_in: Tensor
    speech_pred: Tensor
    text_pred: Tensor
    segments: SpeechSegments


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


@dataclass(frozen=True)
class ModelInputs:
    """The tensors of one micro batch: B sequences of T positions. Made by `from_batch`."""

    tokens: Tensor  # [B, K, T] int64; a text position holds its id in row 0
    speech_in: Tensor  # [B, T] bool: the input token is speech
    segments: SpeechSegments
    scored: ScoredRows

    @classmethod
    def from_batch(cls, batch: HasModelInputs, every_sequence: bool = False) -> "ModelInputs":
        """Take the tensors of a batch on the host and index its scored positions.

        Args:
            batch: tokens and targets int64 [B, K, T]; speech_in, speech_pred and text_pred bool [B, T]; segments.
            every_sequence: also pass sequences that predict no speech through the output adapter (for inspection).
        """
        rows = _scored_rows(batch.targets, batch.speech_pred, batch.text_pred, every_sequence)
        return cls(batch.tokens, batch.speech_in, batch.segments, rows)

    @classmethod
    def for_next(cls, tokens: Tensor, speech_in: Tensor, lengths: Tensor | None = None) -> "ModelInputs":
        """Inputs to continue each sequence after its last position, for `SmolTolk.next_logits`.

        Args:
            tokens: int64 [B, K, T] on the host.
            speech_in: bool [B, T] on the host.
            lengths: int64 [B], positions of each sequence before the padding; T if not given.
        """
        last = torch.zeros_like(speech_in)
        ends = torch.full((tokens.shape[0],), tokens.shape[2]) if lengths is None else lengths
        last[torch.arange(tokens.shape[0]), ends - 1] = True
        # Time-major rows are sorted by position; sequences of unequal length would be in another order.
        rows = _scored_rows(torch.zeros_like(tokens), last, last, every_sequence=True)
        order = (ends - 1) * tokens.shape[0] + torch.arange(tokens.shape[0])
        return cls(tokens, speech_in, pack_segments(speech_in), replace(rows, text=order, speech=order))

    @property
    def num_sequences(self) -> int:
        """Sequences in the micro batch (B)."""
        return self.tokens.shape[0]

    @property
    def sequence_length(self) -> int:
        """Positions of each sequence (T)."""
        return self.tokens.shape[2]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ModelInputs":
        """The same inputs on another device.

        With `non_blocking`, copies to a GPU are asynchronous if the batch is in page-locked memory.
        """
        scored = {f.name: getattr(self.scored, f.name) for f in fields(self.scored)}
        tensors: dict[str, Tensor] = {name: value for name, value in scored.items() if isinstance(value, Tensor)}
        if non_blocking and torch.device(device).type == "cuda":
            # These are no part of the batch. Pageable, their copies would wait for all earlier work of the GPU.
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        moved: dict[str, Any] = {name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()}
        return ModelInputs(
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            speech_in=self.speech_in.to(device, non_blocking=non_blocking),
            segments=self.segments.to(device, non_blocking=non_blocking),
            scored=replace(self.scored, **moved),
        )


def _scored_rows(targets: Tensor, speech_pred: Tensor, text_pred: Tensor, every_sequence: bool) -> ScoredRows:
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
