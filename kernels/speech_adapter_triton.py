"""The begin and end of the input adapter in Triton: embed and pack; add the last residual and unpack.

One program per row of the batch, with separate branches for text and speech, so that every row is read and written
once. No gradient is added atomically: those of the tables come from PyTorch's sorted reduction.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tolktrain_kernels.rows import address_table, aligned_rows
from tolktrain_kernels.speech_adapter import SpeechSegments

SPREAD = 1024  # rows beyond the text table's gradient that take those of speech


@triton.jit
def embed_kernel(
    tokens: tl.tensor,  # [M, CODEBOOKS] int64
    places: tl.tensor,  # [M] int32
    text_table: tl.tensor,  # [V, WIDTH]
    speech_tables: tl.tensor,  # [CODEBOOKS] int64: addresses of [V_s, WIDTH]
    hidden: tl.tensor,  # [M, WIDTH]
    packed: tl.tensor,  # [N, WIDTH]
    CODEBOOKS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """See `speech_adapter.embed_tokens`."""
    row = tl.cast(tl.program_id(0), tl.int64)
    place = tl.cast(tl.load(places + row), tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if place < 0:
        text = tl.load(tokens + row * CODEBOOKS)
        values = tl.load(text_table + text * WIDTH + columns, mask=inside, other=0.0)
        tl.store(hidden + row * WIDTH + columns, values, mask=inside)
    else:
        total = tl.zeros([BLOCK], tl.float32)
        for codebook in tl.static_range(CODEBOOKS):
            unit = tl.load(tokens + row * CODEBOOKS + codebook)
            table = tl.multiple_of(tl.load(speech_tables + codebook).to(text_table.dtype), 16)
            total += tl.load(table + unit * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + row * WIDTH + columns, total, mask=inside)
        tl.store(packed + place * WIDTH + columns, total, mask=inside)


@triton.jit
def collect_kernel(
    places: tl.tensor,  # [M] int32
    d_hidden: tl.tensor,  # [M, WIDTH]
    d_packed: tl.tensor,  # [N, WIDTH]
    d_speech: tl.tensor,  # [N, WIDTH]: the sum of both at the rows of speech
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradient of the speech embeddings, which `embed_kernel` writes twice."""
    row = tl.cast(tl.program_id(0), tl.int64)
    place = tl.cast(tl.load(places + row), tl.int64)
    if place >= 0:
        columns = tl.arange(0, BLOCK)
        inside = columns < WIDTH
        total = tl.load(d_hidden + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(d_packed + place * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_speech + place * WIDTH + columns, total, mask=inside)


@triton.jit
def merge_kernel(
    places: tl.tensor,  # [M] int32
    hidden: tl.tensor,  # [M, WIDTH]
    packed: tl.tensor,  # [N, WIDTH]
    update: tl.tensor,  # [N, WIDTH]
    merged: tl.tensor,  # [M, WIDTH]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """See `speech_adapter.merge_speech`."""
    row = tl.cast(tl.program_id(0), tl.int64)
    place = tl.cast(tl.load(places + row), tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if place < 0:
        values = tl.load(hidden + row * WIDTH + columns, mask=inside, other=0.0)
        tl.store(merged + row * WIDTH + columns, values, mask=inside)
    else:
        total = tl.load(packed + place * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(update + place * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(merged + row * WIDTH + columns, total, mask=inside)


@triton.jit
def split_kernel(
    places: tl.tensor,  # [M] int32
    d_merged: tl.tensor,  # [M, WIDTH]
    d_hidden: tl.tensor,  # [M, WIDTH]: 0 at the rows of speech
    d_packed: tl.tensor,  # [N, WIDTH]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The backward pass of `merge_kernel`."""
    row = tl.cast(tl.program_id(0), tl.int64)
    place = tl.cast(tl.load(places + row), tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gradient = tl.load(d_merged + row * WIDTH + columns, mask=inside, other=0.0)
    tl.store(d_hidden + row * WIDTH + columns, tl.where(place < 0, gradient, 0.0), mask=inside)
    if place >= 0:
        tl.store(d_packed + place * WIDTH + columns, gradient, mask=inside)


def embed(
    tokens: Tensor, segments: SpeechSegments, text_table: Tensor, speech_tables: Sequence[Tensor], num_packed: int
) -> tuple[Tensor, Tensor]:
    """`speech_adapter.embed_tokens` in Triton. All tables are of one type."""
    found: tuple[Tensor, Tensor] = torch.ops.tolktrain.embed_tokens(
        tokens, segments.places, segments.rows, num_packed, text_table, list(speech_tables)
    )
    return found


def merge(hidden: Tensor, segments: SpeechSegments, packed: Tensor, update: Tensor) -> Tensor:
    """`speech_adapter.merge_speech` in Triton. All states are of one type."""
    merged: Tensor = torch.ops.tolktrain.merge_speech(hidden, segments.places, packed, update, segments.num_positions)
    return merged


@torch.library.custom_op("tolktrain::embed_tokens", mutates_args=())
def _embed(
    tokens: Tensor, places: Tensor, rows: Tensor, num_packed: int, text_table: Tensor, speech_tables: list[Tensor]
) -> tuple[Tensor, Tensor]:
    tables = [aligned_rows(table) for table in speech_tables]
    num_rows, width = len(tokens), text_table.shape[1]
    hidden = text_table.new_empty(num_rows, width)
    packed = text_table.new_empty(num_packed, width)
    packed[len(rows) :].zero_()
    if num_rows:
        with torch.cuda.device_of(hidden):
            embed_kernel[(num_rows,)](
                tokens.contiguous(),
                places,
                aligned_rows(text_table),
                address_table(tables, tables[0].device),
                hidden,
                packed,
                CODEBOOKS=len(tables),
                **launch_options(width),
            )
    return hidden, packed


@_embed.register_fake
def _(
    tokens: Tensor, places: Tensor, rows: Tensor, num_packed: int, text_table: Tensor, speech_tables: list[Tensor]
) -> tuple[Tensor, Tensor]:
    width = text_table.shape[1]
    return text_table.new_empty(len(tokens), width), text_table.new_empty(num_packed, width)


@torch.library.custom_op("tolktrain::collect_speech", mutates_args=())
def _collect(places: Tensor, d_hidden: Tensor, d_packed: Tensor, num_positions: int) -> Tensor:
    """Gradients of the speech embeddings, [num_positions, D], in packed order."""
    d_hidden, d_packed = aligned_rows(d_hidden), aligned_rows(d_packed)
    d_speech = d_packed.new_empty(num_positions, d_packed.shape[1])
    if num_positions:
        with torch.cuda.device_of(d_speech):
            launch = launch_options(d_packed.shape[1])
            collect_kernel[(len(places),)](places, d_hidden, d_packed, d_speech, **launch)
    return d_speech


@_collect.register_fake
def _(places: Tensor, d_hidden: Tensor, d_packed: Tensor, num_positions: int) -> Tensor:
    return d_packed.new_empty(num_positions, d_packed.shape[1])


def _keep_for_embed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, places, rows, _, text_table, speech_tables = inputs
    ctx.save_for_backward(tokens, places, rows)
    ctx.sizes = (len(text_table), [len(table) for table in speech_tables])
    ctx.trains_text, ctx.trains_speech = text_table.requires_grad, any(table.requires_grad for table in speech_tables)


def _derive_embed(ctx: Any, d_hidden: Tensor, d_packed: Tensor) -> tuple[Any, ...]:
    tokens, places, rows = ctx.saved_tensors
    text_size, speech_sizes = ctx.sizes
    d_text = None
    if ctx.trains_text:
        # Speech counts as further text ids, whose rows are then left out. With one, PyTorch's kernel would add up all
        # speech in a single thread for each column.
        ids = torch.where(places < 0, tokens[:, 0], text_size + places % SPREAD)
        d_text = torch.ops.aten.embedding_dense_backward(d_hidden, ids, text_size + SPREAD, -1, False)[:text_size]
    d_tables: list[Tensor | None] = [None] * len(speech_sizes)
    if ctx.trains_speech:
        d_speech = torch.ops.tolktrain.collect_speech(places, d_hidden, d_packed, len(rows))
        ids = tokens.index_select(0, rows)
        d_tables = [
            torch.ops.aten.embedding_dense_backward(d_speech, ids[:, codebook].contiguous(), size, -1, False)
            for codebook, size in enumerate(speech_sizes)
        ]
    return None, None, None, None, d_text, d_tables


_embed.register_autograd(_derive_embed, setup_context=_keep_for_embed)


@torch.library.custom_op("tolktrain::merge_speech", mutates_args=())
def _merge(hidden: Tensor, places: Tensor, packed: Tensor, update: Tensor, num_positions: int) -> Tensor:
    merged = hidden.new_empty(hidden.shape)
    if len(hidden):
        with torch.cuda.device_of(hidden):
            merge_kernel[(len(hidden),)](
                places,
                aligned_rows(hidden),
                aligned_rows(packed),
                aligned_rows(update),
                merged,
                **launch_options(hidden.shape[1]),
            )
    return merged


@_merge.register_fake
def _(hidden: Tensor, places: Tensor, packed: Tensor, update: Tensor, num_positions: int) -> Tensor:
    return hidden.new_empty(hidden.shape)


@torch.library.custom_op("tolktrain::split_speech", mutates_args=())
def _split(places: Tensor, d_merged: Tensor, num_packed: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Gradients of `hidden` [M, D] and of the packed states [num_packed, D]."""
    d_merged = aligned_rows(d_merged)
    d_hidden = d_merged.new_empty(d_merged.shape)
    d_packed = d_merged.new_empty(num_packed, d_merged.shape[1])
    d_packed[num_positions:].zero_()
    if len(d_merged):
        with torch.cuda.device_of(d_merged):
            launch = launch_options(d_merged.shape[1])
            split_kernel[(len(d_merged),)](places, d_merged, d_hidden, d_packed, **launch)
    return d_hidden, d_packed


@_split.register_fake
def _(places: Tensor, d_merged: Tensor, num_packed: int, num_positions: int) -> tuple[Tensor, Tensor]:
    return d_merged.new_empty(d_merged.shape), d_merged.new_empty(num_packed, d_merged.shape[1])


def _keep_for_merge(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, places, packed, _, ctx.num_positions = inputs
    ctx.save_for_backward(places)
    ctx.num_packed = len(packed)


def _derive_merge(ctx: Any, d_merged: Tensor) -> tuple[Tensor | None, ...]:
    (places,) = ctx.saved_tensors
    d_hidden, d_packed = torch.ops.tolktrain.split_speech(places, d_merged, ctx.num_packed, ctx.num_positions)
    return d_hidden, None, d_packed, d_packed, None


_merge.register_autograd(_derive_merge, setup_context=_keep_for_merge)


def launch_options(width: int) -> dict[str, int]:
    """Constants of a launch: a program spans a row."""
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(8, max(1, block // 512))}
