"""Speech positions packed by segment, the input of the input adapter (SmolTolk, arXiv 2503.06211, section 3.1).

A speech segment is a maximal sequence of consecutive speech positions. The adapter processes only speech, and each
position attends only to earlier positions of its own segment. So the work grows with the speech in a batch and the
lengths of its segments, never with T x T.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.backend import Backend


@dataclass(frozen=True)
class SpeechSegments:
    """The speech of a batch: N positions in R segments, ordered by segment. Created on the host by `pack_segments`.

    Row t * B + b of the time-major, flattened hidden states [T * B, D] is position t of sequence b.
    """

    rows: Tensor  # [N] int64: row of each speech position
    positions: Tensor  # [N] int64: its position t in the sequence, or in its document
    places: Tensor  # [T * B] int32: position of each row in the packed order, -1 for text
    cu_seqlens: Tensor  # [R + 1] int32: begin of each segment in the packed order, and N
    scatter: Tensor  # [N] int64: its place segment * max_segment + offset in the padded buffer [R * max_segment]
    max_segment: int  # length of the longest segment, 0 without speech

    @property
    def num_positions(self) -> int:
        """Speech positions in the batch (N)."""
        return self.rows.shape[0]

    @property
    def num_segments(self) -> int:
        """Speech segments in the batch (R)."""
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SpeechSegments":
        """The same segments with their tensors on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "SpeechSegments":
        """The same segments in page-locked memory, so that copies to a GPU are asynchronous."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> None:
        """Move the tensors to shared memory. Raises RuntimeError."""
        self._with_tensors(lambda tensor: tensor.share_memory_())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "SpeechSegments":
        return SpeechSegments(
            rows=change(self.rows),
            positions=change(self.positions),
            places=change(self.places),
            cu_seqlens=change(self.cu_seqlens),
            scatter=change(self.scatter),
            max_segment=self.max_segment,
        )


def pack_segments(speech_in: np.ndarray | Tensor, document_begins: np.ndarray | None = None) -> SpeechSegments:
    """Find the speech segments of a batch.

    Args:
        speech_in: bool [B, T] on the host, true where the input token is speech.
        document_begins: bool [B, T], true at the first position of each document, where a segment ends; None if each
            sequence is a single document.
    """
    mask = np.asarray(speech_in, dtype=bool)
    if mask.ndim != 2:
        raise ValueError(f"speech_in has shape {mask.shape}; expected [sequences, positions]")
    num_sequences = mask.shape[0]
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1] if document_begins is None else ~mask[:, :-1] | document_begins[:, 1:]
    sequence, position = np.nonzero(mask)
    is_start = starts[mask]
    segment = np.cumsum(is_start) - 1
    begins = np.flatnonzero(is_start)
    boundaries = np.append(begins, segment.size)
    offset = np.arange(segment.size) - begins[segment]
    max_segment = int(np.diff(boundaries).max()) if begins.size else 0
    rows = position * num_sequences + sequence
    places = np.full(mask.size, -1, dtype=np.int32)
    places[rows] = np.arange(rows.size)
    if document_begins is not None:
        first = np.maximum.accumulate(np.where(document_begins, np.arange(mask.shape[1]), 0), axis=1)
        position = position - first[mask]
    return SpeechSegments(
        rows=torch.from_numpy(rows),
        positions=torch.from_numpy(position),
        places=torch.from_numpy(places),
        cu_seqlens=torch.from_numpy(boundaries.astype(np.int32)),
        scatter=torch.from_numpy(segment * max_segment + offset),
        max_segment=max_segment,
    )


class _GatherRows(torch.autograd.Function):
    """Distinct rows of a matrix; the backward pass writes instead of adding, so it is deterministic without atomics."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, source: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = source.shape[0]  # type: ignore[attr-defined]
        return source.index_select(0, rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return place_rows(gradient, rows, ctx.num_rows), None  # type: ignore[attr-defined]


class _PlaceRows(torch.autograd.Function):
    """The adjoint of `_GatherRows`."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, source: Tensor, rows: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(rows)
        return source.new_zeros(num_rows, *source.shape[1:]).index_copy_(0, rows, source)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gather_rows(gradient, rows), None, None


def gather_rows(source: Tensor, rows: Tensor) -> Tensor:
    """`source[rows]` for rows that are all different. source: [M, ...], rows: [N] int64. Returns [N, ...]."""
    return _GatherRows.apply(source, rows)


def place_rows(source: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Zeros [num_rows, ...] with `source` [N, ...] written at `rows` [N], which are all different."""
    return _PlaceRows.apply(source, rows, num_rows)


class _ReplaceRows(torch.autograd.Function):
    """A copy of `base` in which some rows, each once, are replaced."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, base: Tensor, rows: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return base.index_copy(0, rows, source)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient.index_fill(0, rows, 0), None, gradient.index_select(0, rows)


def replace_rows(base: Tensor, rows: Tensor, source: Tensor) -> Tensor:
    """`base` [M, ...] with `source` [N, ...] in place of `rows` [N] (int64, all different)."""
    return _ReplaceRows.apply(base, rows, source)


def embed_tokens(
    tokens: Tensor,
    segments: SpeechSegments,
    text_table: Tensor,
    speech_tables: Sequence[Tensor],
    num_packed: int,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """Embed text by its table and speech by the sum of K tables, and pack the speech at the same time.

    Args:
        tokens: [M, K] int64, time-major rows; text has its id in column 0.
        segments: of the same rows.
        text_table: [V, D].
        speech_tables: K tensors [V_s, D].
        num_packed: rows of the packed speech, at least N; rows after the speech are 0.
        backend: from `backend.choose_backend`.

    Returns:
        Embeddings [M, D], and those of the speech positions in the order of `segments` [num_packed, D].
    """
    if backend == "triton":
        from tolktrain_kernels.speech_adapter_triton import embed

        return embed(tokens, segments, text_table, speech_tables, num_packed)
    # A speech id may lie outside the text table, so it is looked up as 0 there and then replaced.
    text = functional.embedding(tokens[:, 0].where(segments.places < 0, 0), text_table)
    ids = tokens.index_select(0, segments.rows)
    parts = [functional.embedding(ids[:, codebook], table) for codebook, table in enumerate(speech_tables)]
    speech = functools.reduce(torch.add, parts)
    return replace_rows(text, segments.rows, speech), functional.pad(speech, (0, 0, 0, num_packed - len(speech)))


def merge_speech(
    hidden: Tensor, segments: SpeechSegments, packed: Tensor, update: Tensor, backend: Backend = "torch"
) -> Tensor:
    """The last addition of the adapter's last layer, written to the rows of speech in `hidden`.

    Args:
        hidden: [M, D], time-major rows.
        segments: of the same rows.
        packed, update: [N or more, D], in the order of `segments`.
        backend: as in `embed_tokens`.

    Returns:
        [M, D]: `hidden` where there is text, `packed + update` where there is speech.
    """
    if backend == "triton":
        from tolktrain_kernels.speech_adapter_triton import merge

        return merge(hidden, segments, packed, update)
    return replace_rows(hidden, segments.rows, (packed + update)[: segments.num_positions])


class _SelectColumns(torch.autograd.Function):
    """Some sequences of time-major states, each once."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, states: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.width = states.shape[1]  # type: ignore[attr-defined]
        return states.index_select(1, columns)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors  # type: ignore[attr-defined]
        full = gradient.new_zeros(gradient.shape[0], ctx.width, *gradient.shape[2:])  # type: ignore[attr-defined]
        return full.index_copy_(1, columns, gradient), None


def select_columns(states: Tensor, columns: Tensor) -> Tensor:
    """`states[:, columns]` for columns that are all different. states: [T, B, ...], columns: [S] int64."""
    return _SelectColumns.apply(states, columns)
