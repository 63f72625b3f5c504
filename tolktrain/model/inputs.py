"""The inputs of the model from a batch. All indices are computed on the host, so that a GPU never waits for a count."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tolktrain.model.preference import Preference
from tolktrain_kernels.documents import PackedDocuments
from tolktrain_kernels.scored_rows import ScoredRows, index_scored
from tolktrain_kernels.speech_adapter import SpeechSegments, pack_segments


class HasModelInputs(Protocol):
    """Anything with the tensors of a batch, on the host."""

    tokens: Tensor
    targets: Tensor
    speech_in: Tensor
    speech_pred: Tensor
    text_pred: Tensor
    segments: SpeechSegments
    scored: ScoredRows
    documents: PackedDocuments | None


@dataclass(frozen=True)
class ModelInputs:
    """The tensors of one micro batch: B sequences of T positions. Made by `from_batch`."""

    tokens: Tensor  # [B, K, T] int64; a text position holds its id in row 0
    speech_in: Tensor  # [B, T] bool: the input token is speech
    segments: SpeechSegments
    scored: ScoredRows
    documents: PackedDocuments | None = None  # None if each sequence is a single document
    preference: Preference | None = None  # given if the loss compares pairs of documents

    @classmethod
    def from_batch(cls, batch: HasModelInputs, every_sequence: bool = False) -> "ModelInputs":
        """Take the tensors of a batch on the host.

        Args:
            batch: tokens and targets int64 [B, K, T]; speech_in, speech_pred and text_pred bool [B, T]; and what
                follows from them.
            every_sequence: also pass sequences that predict no speech through the output adapter (for inspection).
        """
        scored, documents = batch.scored, batch.documents
        if every_sequence:
            scored = index_scored(batch.targets, batch.speech_pred, batch.text_pred, every_sequence=True)
            documents = None if documents is None else documents.with_every_sequence()
        return cls(batch.tokens, batch.speech_in, batch.segments, scored, documents)

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
        rows = index_scored(torch.zeros_like(tokens), last, last, every_sequence=True)
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
        return ModelInputs(
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            speech_in=self.speech_in.to(device, non_blocking=non_blocking),
            segments=self.segments.to(device, non_blocking=non_blocking),
            scored=self.scored.to(device, non_blocking=non_blocking),
            documents=None if self.documents is None else self.documents.to(device, non_blocking=non_blocking),
            preference=None if self.preference is None else self.preference.to(device, non_blocking=non_blocking),
        )
