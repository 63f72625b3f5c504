"""Collates sequences into a micro batch. All counts that the model needs are computed on the host."""

import copy
import hashlib
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tolktrain.data.sequences import Sequence
from tolktrain.errors import UserError
from tolktrain_kernels.documents import PackedDocuments, mark_starts, pack_documents
from tolktrain_kernels.preference_pairs import PreferencePairs, pack_pairs
from tolktrain_kernels.scored_rows import ScoredRows, index_scored
from tolktrain_kernels.speech_adapter import SpeechSegments, pack_segments


@dataclass
class Batch:
    """One micro batch of B sequences with T positions and K codebooks, on the host."""

    tokens: Tensor  # [B, K, T] int64; a text position holds its id in row 0
    targets: Tensor  # [B, K, T] int64: the tokens one position later
    speech_in: Tensor  # [B, T] bool: the input token is speech
    speech_pred: Tensor  # [B, T] bool: a speech target is scored
    text_pred: Tensor  # [B, T] bool: a text target is scored
    segments: SpeechSegments  # of `speech_in`
    record_ids: list[str]
    strategies: list[str]
    num_text_scored: int  # positions with a scored text target
    num_speech_scored: int  # positions with a scored speech target
    num_entropy_positions: int  # of the documents that score speech, with the padding of the last one
    documents: PackedDocuments | None = None  # None if each sequence is a single document
    pairs: PreferencePairs | None = None  # of chosen and rejected answers, if the sequences are preferences
    pair_keys: tuple[str, ...] = ()  # of each sequence with pairs: a digest of its tokens and documents
    pair_counts: tuple[int, ...] = ()  # documents of each of these sequences
    scored: ScoredRows = field(init=False)  # of `targets`, `speech_pred` and `text_pred`

    def __post_init__(self) -> None:
        self.scored = index_scored(self.targets, self.speech_pred, self.text_pred)

    @property
    def num_pairs(self) -> int:
        """Pairs of a chosen and a rejected answer."""
        return 0 if self.pairs is None else self.pairs.num_pairs

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, so that copies to a GPU are asynchronous."""
        pinned = copy.copy(self)
        for name in (*_TENSORS, *_INDICES):
            setattr(pinned, name, getattr(self, name).pin_memory())
        if self.documents is not None:
            pinned.documents = self.documents.pin_memory()
        if self.pairs is not None:
            pinned.pairs = self.pairs.pin_memory()
        return pinned

    def share_memory(self) -> None:
        """Move the tensors to shared memory, from which another process can read them. Raises RuntimeError."""
        for name in _TENSORS:
            getattr(self, name).share_memory_()
        for name in _INDICES:
            getattr(self, name).share_memory()
        if self.documents is not None:
            self.documents.share_memory()
        if self.pairs is not None:
            self.pairs.share_memory()


_TENSORS = ("tokens", "targets", "speech_in", "speech_pred", "text_pred")
_INDICES = ("segments", "scored")


def collate(sequences: AbstractSequence[Sequence]) -> Batch:
    """Collate sequences of one length into a batch. The first token of a later document is not scored.

    Raises `UserError` if sequences of preferences are not pairs of documents that score something, or are mixed with
    others.
    """
    tokens = np.stack([sequence.tokens for sequence in sequences])
    is_speech = np.stack([sequence.is_speech for sequence in sequences])
    scored = np.stack([sequence.scored for sequence in sequences])
    starts = [sequence.document_starts for sequence in sequences]
    for row, places in enumerate(starts):
        scored[row, list(places[1:])] = False
    speech_in = np.ascontiguousarray(is_speech[:, :-1])
    speech_pred = is_speech[:, 1:] & scored[:, 1:]
    text_pred = ~is_speech[:, 1:] & scored[:, 1:]
    documents = pack_documents(starts, speech_pred)
    if documents is None:
        num_entropy_positions = speech_pred.shape[1] * int(speech_pred.any(axis=1).sum())
    else:
        num_entropy_positions = documents.num_counted
    return Batch(
        tokens=torch.from_numpy(np.ascontiguousarray(tokens[:, :, :-1])),
        targets=torch.from_numpy(np.ascontiguousarray(tokens[:, :, 1:])),
        speech_in=torch.from_numpy(speech_in),
        speech_pred=torch.from_numpy(speech_pred),
        text_pred=torch.from_numpy(text_pred),
        segments=pack_segments(speech_in, None if documents is None else mark_starts(starts, speech_in.shape[1])),
        record_ids=[sequence.record_id for sequence in sequences],
        strategies=[sequence.strategy for sequence in sequences],
        num_text_scored=int(text_pred.sum()),
        num_speech_scored=int(speech_pred.sum()),
        num_entropy_positions=num_entropy_positions,
        documents=documents,
        pairs=_pairs(sequences, starts, text_pred, speech_pred),
        pair_keys=tuple(_key(sequence) for sequence in sequences if _has_pairs(sequence)),
        pair_counts=tuple(len(sequence.document_starts) for sequence in sequences if _has_pairs(sequence)),
    )


def _has_pairs(sequence: Sequence) -> bool:
    return sequence.strategy == "preference" and bool(sequence.scored.any())


def _pairs(
    sequences: AbstractSequence[Sequence],
    starts: AbstractSequence[tuple[int, ...]],
    text_pred: np.ndarray,
    speech_pred: np.ndarray,
) -> PreferencePairs | None:
    if all(sequence.strategy != "preference" for sequence in sequences):
        return None
    assert all(sequence.strategy == "preference" for sequence in sequences), "stages do not mix them"
    try:
        return pack_pairs(starts, text_pred, speech_pred)
    except ValueError as error:
        names = ", ".join(sequence.record_id for sequence in sequences)
        raise UserError(
            f"preferences: one of the records {names} is not pairs of a chosen and a rejected answer ({error}); prepare"
            " the data set again, or set train.sequence_length to that for which it was prepared"
        ) from None


def _key(sequence: Sequence) -> str:
    """A digest of what the log-probabilities of the documents depend on, in addition to the model."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (sequence.tokens, sequence.is_speech, sequence.scored):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(str([int(start) for start in sequence.document_starts]).encode())
    return digest.hexdigest()
