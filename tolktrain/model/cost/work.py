"""Counts of the rows and pairs that parts of the model process, and their cost."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from tolktrain.config.training import ParameterGroup
from tolktrain_kernels.documents import PackedDocuments
from tolktrain_kernels.speech_adapter import SpeechSegments


class HasCounts(Protocol):
    """A micro batch on the host, with its counts."""

    tokens: Tensor  # [B, K, T]
    segments: SpeechSegments
    num_text_scored: int
    num_speech_scored: int
    num_entropy_positions: int  # T times the sequences that predict speech, if there are no documents
    documents: PackedDocuments | None


@dataclass(frozen=True)
class StepCounts:
    """Rows and query-key pairs that parts of the model process, summed over micro batches.

    Whole numbers, except in averages.
    """

    positions: float = 0
    causal_pairs: float = 0  # of a query and a key it sees, over whole sequences or inside their documents
    speech_positions: float = 0  # those that the input adapter works on
    segment_pairs: float = 0  # inside speech segments
    predicting_positions: float = 0  # of the sequences that predict speech
    predicting_pairs: float = 0
    text_scored: float = 0
    speech_scored: float = 0

    @classmethod
    def of(cls, batches: Iterable[HasCounts]) -> "StepCounts":
        """Counts of micro batches, without access to tensors on a GPU."""
        return sum((cls._of_one(batch) for batch in batches), cls())

    @classmethod
    def _of_one(cls, batch: HasCounts) -> "StepCounts":
        num_sequences, _, length = batch.tokens.shape
        pairs = length * (length + 1) // 2
        segments = np.diff(batch.segments.cu_seqlens.numpy()).astype(np.int64)
        causal, predicting = num_sequences * pairs, batch.num_entropy_positions
        predicting_pairs = predicting // length * pairs
        if batch.documents is not None:
            predicting, causal = batch.documents.counted.numel(), batch.documents.every.num_pairs
            inside = batch.documents.predicting
            predicting_pairs = 0 if inside is None else inside.num_pairs
        return cls(
            positions=num_sequences * length,
            causal_pairs=causal,
            speech_positions=batch.segments.num_positions,
            segment_pairs=int((segments * (segments + 1) // 2).sum()),
            predicting_positions=predicting,
            predicting_pairs=predicting_pairs,
            text_scored=batch.num_text_scored,
            speech_scored=batch.num_speech_scored,
        )

    @classmethod
    def average(
        cls,
        sequence_length: int,
        speech_share: float = 0.5,
        pooled_share: float = 1.0,
        segment_length: int | None = None,
    ) -> "StepCounts":
        """Average counts of one position of a batch.

        Args:
            sequence_length: positions of a sequence (T).
            speech_share: fraction of the positions whose token is speech; as many predict speech, the others text.
            pooled_share: fraction of the positions in sequences that predict speech; 1 in interleaved data.
            segment_length: positions of a speech segment; a whole sequence if not given, which is the maximum.
        """
        causal = (sequence_length + 1) / 2
        run = sequence_length if segment_length is None else min(segment_length, sequence_length)
        return cls(
            positions=1,
            causal_pairs=causal,
            speech_positions=speech_share,
            segment_pairs=speech_share * (run + 1) / 2,
            predicting_positions=pooled_share,
            predicting_pairs=pooled_share * causal,
            text_scored=1 - speech_share,
            speech_scored=speech_share,
        )

    def __add__(self, other: "StepCounts") -> "StepCounts":
        return StepCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class LayerCost:
    """One entry of the list of layers (`tolktrain.model.parts`).

    FLOPs are those of the forward pass, in whole numbers. The backward pass takes twice as many in every layer, so that
    shares of the forward pass are shares of the step.
    """

    kind: str  # "embedding", "input adapter", "backbone", "final norm", "pooling", "output adapter" or "heads"
    index: int | None  # among its kind, from 0; None where there is only one
    sizes: Mapping[ParameterGroup, int]  # elements of its parameters; a tied table counts in the embedding
    matrices: int  # FLOPs of products with weights
    attention: int  # FLOPs of scores and weighted values
    elementwise: int = 0  # FLOPs of additions and scalings, counted where a layer consists of nothing else

    @property
    def name(self) -> str:
        """For display: "backbone 7"."""
        return self.kind if self.index is None else f"{self.kind} {self.index}"

    @property
    def parameters(self) -> int:
        """Elements of its parameters."""
        return sum(self.sizes.values())

    @property
    def flops(self) -> int:
        """Of the forward pass."""
        return self.matrices + self.attention + self.elementwise
