"""Norm, gated activation and rotated heads in Triton: one pass over memory each way, arithmetic in float32.

A norm takes whole rows into registers. Its backward pass runs few programs over many rows each, so that a program sums
its share of the weight's gradient in registers; a second kernel adds the shares, never atomically: results
are the same from run to run. Gated activation and heads go in tiles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tolktrain_kernels.rows import ALIGNMENT, aligned_rows

MAX_NORM_WIDTH = 8192  # a row of more columns would spill registers


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    hidden: tl.tensor,  # [num_rows, WIDTH]
    update: tl.tensor,  # [num_rows, WIDTH], or None
    weight: tl.tensor,  # [WIDTH]
    total: tl.tensor,  # [num_rows, WIDTH], or None without `update`
    normed: tl.tensor,  # [num_rows, WIDTH]
    rstds: tl.tensor,  # [num_rows] float32: 1 / sqrt(mean + eps)
    num_rows: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """See `elementwise_op.normalize`."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_WIDTH)
    there = rows < num_rows
    inside = there[:, None] & (columns < WIDTH)[None, :]
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    scale = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    # Past the L1 cache, which is for the weight.
    values = tl.load(hidden + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    if update is not None:
        values += tl.load(update + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + offsets, rounded, mask=inside)
        values = rounded.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(values * values, axis=1) / WIDTH + eps)
    tl.store(rstds + rows, rstd, mask=there)
    tl.store(normed + offsets, values * rstd[:, None] * scale[None, :], mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def norm_backward_kernel(
    hidden: tl.tensor,  # [num_rows, WIDTH]: what was normed
    weight: tl.tensor,  # [WIDTH]
    rstds: tl.tensor,  # [num_rows] float32
    d_normed: tl.tensor,  # [num_rows, WIDTH]
    d_total: tl.tensor,  # [num_rows, WIDTH]: a gradient that passes by the norm, or None
    d_kept: tl.tensor,  # [num_rows, WIDTH]: another one, or None
    d_hidden: tl.tensor,  # [num_rows, WIDTH]
    partials: tl.tensor,  # [programs, WIDTH] float32: shares of the weight's gradient, or None
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """dx = rstd (g w - n mean(g w n)) where n = rstd x; dw = sum of g n over the rows."""
    columns = tl.arange(0, BLOCK_WIDTH)
    scale = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BLOCK_WIDTH], tl.float32)
    step = tl.num_programs(0) * BLOCK_ROWS
    for first in tl.range(tl.program_id(0) * BLOCK_ROWS, num_rows, step, num_stages=STAGES):
        rows = first + tl.arange(0, BLOCK_ROWS)
        there = rows < num_rows
        inside = there[:, None] & (columns < WIDTH)[None, :]
        offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        rstd = tl.load(rstds + rows, mask=there, other=0.0)
        unit = tl.load(hidden + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32) * rstd[:, None]
        gradient = tl.load(d_normed + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        if partials is not None:
            d_weight += tl.sum(gradient * unit, axis=0)
        slope = gradient * scale[None, :]
        mean = tl.sum(slope * unit, axis=1) / WIDTH
        result = rstd[:, None] * (slope - unit * mean[:, None])
        if d_total is not None:
            result += tl.load(d_total + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        if d_kept is not None:
            result += tl.load(d_kept + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        tl.store(d_hidden + offsets, result, mask=inside)
    if partials is not None:
        tl.store(partials + tl.program_id(0) * WIDTH + columns, d_weight, mask=columns < WIDTH)


@triton.jit(do_not_specialize=["num_shares"])
def sum_shares_kernel(
    shares: tl.tensor,  # [num_shares, WIDTH] float32
    total: tl.tensor,  # [WIDTH]
    num_shares: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """The sum of all rows, rounded once."""
    columns = tl.program_id(0) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    rows = tl.arange(0, BLOCK_ROWS)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), dtype=tl.float32)
    for start in range(0, num_shares, BLOCK_ROWS):
        inside = (start + rows < num_shares)[:, None] & (columns < WIDTH)[None, :]
        sums += tl.load(shares + (start + rows)[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
    tl.store(total + columns, tl.sum(sums, axis=0), mask=columns < WIDTH)


@triton.jit
def _gate_tile(
    num_rows: tl.tensor, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Rows and columns of a program's tile, and which of its elements exist; neighbours are in the same rows."""
    across = tl.cdiv(WIDTH, BLOCK_WIDTH)
    tile = tl.program_id(0)
    rows = (tile // across) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = (tile % across) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    return rows.to(tl.int64)[:, None], columns[None, :], (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_kernel(
    gate_up: tl.tensor,  # [num_rows, 2 WIDTH]
    output: tl.tensor,  # [num_rows, WIDTH]
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """silu(gate) * up."""
    rows, columns, inside = _gate_tile(num_rows, WIDTH, BLOCK_WIDTH, BLOCK_ROWS)
    pointers = gate_up + rows * (2 * WIDTH) + columns
    gate = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pointers + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + rows * WIDTH + columns, gate / (1.0 + tl.exp(-gate)) * up, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_backward_kernel(
    gate_up: tl.tensor,  # [num_rows, 2 WIDTH]
    d_output: tl.tensor,  # [num_rows, WIDTH]
    d_gate_up: tl.tensor,  # [num_rows, 2 WIDTH]
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """With s = sigmoid(gate): d_gate = g up s (1 + gate (1 - s)), d_up = g gate s."""
    rows, columns, inside = _gate_tile(num_rows, WIDTH, BLOCK_WIDTH, BLOCK_ROWS)
    offsets = rows * (2 * WIDTH) + columns
    gate = tl.load(gate_up + offsets, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + offsets + WIDTH, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(d_output + rows * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    open_ = 1.0 / (1.0 + tl.exp(-gate))
    slope = open_ * (1.0 + gate * (1.0 - open_))
    tl.store(d_gate_up + offsets, gradient * up * slope, mask=inside)
    tl.store(d_gate_up + offsets + WIDTH, gradient * gate * open_, mask=inside)


@triton.jit
def _heads_tile(
    num_rows: tl.tensor,
    batch_size: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Of the heads of a program: rows, groups of all positions, places in the group, positions, columns, which elements
    exist, and the angles' cosines and sines: 1 and 0 for values, which are not rotated."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (rows < num_rows)[:, None] & (columns < HALF)
    groups = (rows // (QUERIES + 2)).to(tl.int64)
    places = rows % (QUERIES + 2)
    positions = groups // GROUPS // batch_size
    turned = inside & (places <= QUERIES)[:, None]
    angles = positions[:, None] * (2 * HALF) + columns
    along = tl.load(cos + angles, mask=turned, other=1.0).to(tl.float32)
    across = tl.load(sin + angles, mask=turned, other=0.0).to(tl.float32)
    return rows.to(tl.int64), groups, places, positions, columns, inside, along, across


@triton.jit(do_not_specialize=["num_rows", "batch_size"])
def split_heads_kernel(
    product: tl.tensor,  # [T, batch_size, GROUPS, QUERIES + 2, 2 HALF]: queries, key and value of each group
    cos: tl.tensor,  # [T or more, 2 HALF] float32; the first half of each row is read
    sin: tl.tensor,  # [T or more, 2 HALF] float32, the first half negated
    queries: tl.tensor,  # [T, batch_size, GROUPS QUERIES, 2 HALF]
    keys: tl.tensor,  # [T, batch_size, GROUPS, 2 HALF]
    values: tl.tensor,  # the same
    num_rows: tl.tensor,  # T batch_size GROUPS (QUERIES + 2)
    batch_size: tl.tensor,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """(x, y) to (x cos - y sin, y cos + x sin) for queries and keys."""
    rows, groups, places, _, columns, inside, along, across = _heads_tile(
        num_rows, batch_size, cos, sin, GROUPS, QUERIES, HALF, BLOCK_HALF, BLOCK_ROWS
    )
    pointers = product + rows[:, None] * (2 * HALF) + columns
    first = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(pointers + HALF, mask=inside, other=0.0).to(tl.float32)
    is_query, is_key = (places < QUERIES)[:, None], (places == QUERIES)[:, None]
    is_value = (places > QUERIES)[:, None]
    # Not by the angles of values: zero times an infinity is no number.
    left = tl.where(is_value, first, first * along + second * across)
    right = tl.where(is_value, second, second * along - first * across)
    own = queries + (groups * QUERIES + places)[:, None] * (2 * HALF) + columns
    shared = groups[:, None] * (2 * HALF) + columns
    tl.store(own, left, mask=inside & is_query)
    tl.store(own + HALF, right, mask=inside & is_query)
    tl.store(keys + shared, left, mask=inside & is_key)
    tl.store(keys + shared + HALF, right, mask=inside & is_key)
    tl.store(values + shared, left, mask=inside & is_value)
    tl.store(values + shared + HALF, right, mask=inside & is_value)


@triton.jit(
    do_not_specialize=[
        *("num_rows", "batch_size", "q_position", "q_batch", "q_head", "k_position", "k_batch", "k_head"),
        *("v_position", "v_batch", "v_head"),
    ]
)
def join_heads_kernel(
    d_queries: tl.tensor,  # [T, batch_size, GROUPS QUERIES, 2 HALF]; strides in units of VECTOR elements, the last is 1
    d_keys: tl.tensor,  # [T, batch_size, GROUPS, 2 HALF]
    d_values: tl.tensor,  # the same
    cos: tl.tensor,
    sin: tl.tensor,
    d_product: tl.tensor,  # [T, batch_size, GROUPS, QUERIES + 2, 2 HALF]
    num_rows: tl.tensor,
    batch_size: tl.tensor,
    q_position: tl.tensor,
    q_batch: tl.tensor,
    q_head: tl.tensor,
    k_position: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    v_position: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    HALF: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """The gradients of `split_heads_kernel`, turned back, in the places of the product."""
    rows, groups, places, positions, columns, inside, along, across = _heads_tile(
        num_rows, batch_size, cos, sin, GROUPS, QUERIES, HALF, BLOCK_HALF, BLOCK_ROWS
    )
    sequences, group = groups // GROUPS % batch_size, groups % GROUPS
    is_query, is_key = (places < QUERIES)[:, None], (places == QUERIES)[:, None]
    is_value = (places > QUERIES)[:, None]
    # Neither the strides nor their products are known to be even: the factor is what lets vectors be loaded.
    q_offsets = positions * q_position + sequences * q_batch + (group * QUERIES + places) * q_head
    k_offsets = positions * k_position + sequences * k_batch + group * k_head
    v_offsets = positions * v_position + sequences * v_batch + group * v_head
    q_pointers = d_queries + q_offsets[:, None] * VECTOR + columns
    k_pointers = d_keys + k_offsets[:, None] * VECTOR + columns
    v_pointers = d_values + v_offsets[:, None] * VECTOR + columns
    # Each row is in one of the three.
    first = tl.load(q_pointers, mask=inside & is_query, other=0.0).to(tl.float32)
    first += tl.load(k_pointers, mask=inside & is_key, other=0.0).to(tl.float32)
    first += tl.load(v_pointers, mask=inside & is_value, other=0.0).to(tl.float32)
    second = tl.load(q_pointers + HALF, mask=inside & is_query, other=0.0).to(tl.float32)
    second += tl.load(k_pointers + HALF, mask=inside & is_key, other=0.0).to(tl.float32)
    second += tl.load(v_pointers + HALF, mask=inside & is_value, other=0.0).to(tl.float32)
    targets = d_product + rows[:, None] * (2 * HALF) + columns
    left = tl.where(is_value, first, first * along - second * across)
    right = tl.where(is_value, second, second * along + first * across)
    tl.store(targets, left, mask=inside)
    tl.store(targets + HALF, right, mask=inside)


@dataclass(frozen=True)
class Setting:
    """How a kernel is laid out on the GPU."""

    block_rows: int  # of one program (one step of it in the norm's backward pass)
    block_width: int
    num_warps: int
    programs_per_sm: int = 0  # of the norm's backward pass; registers must let all of them run at once
    stages: int = 3  # of the same: steps whose loads are under way


# Measured settings by width (of a row; of the gated output), by `python -m tolktrain_kernels.bench --tune`. Widths that
# are not listed follow the rules below.
NORM_SETTINGS: dict[int, Setting] = {}
NORM_BACKWARD_SETTINGS: dict[int, Setting] = {}
GATE_SETTINGS: dict[int, Setting] = {}

GATE_TILE = 2048  # elements of the output
ROTATION_TILE = 1024  # pairs
TILE_WARPS = 4
SHARES_ROWS, SHARES_WIDTH = 64, 32  # few columns, so that there are many programs


def norm_setting(width: int, table: Mapping[int, Setting] = NORM_SETTINGS) -> Setting:
    """Whole rows, several where they are short, at sixteen elements a thread; sixteen warps on each multiprocessor.

    `table`: `NORM_SETTINGS` or `NORM_BACKWARD_SETTINGS`.
    """
    if width in table:
        return table[width]
    block_width = triton.next_power_of_2(width)
    block_rows = max(1, 1024 // block_width)
    num_warps = min(16, max(1, block_rows * block_width // 512))
    return Setting(block_rows, block_width, num_warps, programs_per_sm=16 // num_warps)


def forked_stages(setting: Setting, dtype: torch.dtype) -> int:
    """Stages of the norm's backward pass with both `d_total` and `d_kept`, which need shared memory and registers."""
    return max(1, setting.stages - (1 if dtype.itemsize == 2 else 2))


def gate_setting(width: int) -> Setting:
    """Tiles of up to 512 columns: the widths of the models are multiples of that."""
    if width in GATE_SETTINGS:
        return GATE_SETTINGS[width]
    block_width = min(512, triton.next_power_of_2(width))
    return Setting(GATE_TILE // block_width, block_width, TILE_WARPS)


def rotation_setting(half: int) -> Setting:
    """Tiles of whole heads; `half` is half of their width."""
    block_half = triton.next_power_of_2(half)
    return Setting(max(1, ROTATION_TILE // block_half), block_half, TILE_WARPS)


def run_norm(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor | None, Tensor, Tensor]:
    """Launch `norm_kernel`.

    Args:
        hidden, update: [..., D].
        weight: [D].

    Returns:
        hidden + update [N, D], or None without an update; its norm [N, D]; 1 / sqrt(mean + eps) [N] float32.
    """
    hidden = aligned_rows(hidden)
    num_rows, width = hidden.shape
    normed = torch.empty_like(hidden)
    total = None if update is None else torch.empty_like(hidden)
    rstds = hidden.new_empty(num_rows, dtype=torch.float32)
    if num_rows:
        setting = norm_setting(width)
        with torch.cuda.device_of(hidden):
            norm_kernel[(triton.cdiv(num_rows, setting.block_rows),)](
                hidden,
                None if update is None else aligned_rows(update),
                aligned_rows(weight),
                total,
                normed,
                rstds,
                num_rows,
                eps,
                WIDTH=width,
                BLOCK_WIDTH=setting.block_width,
                BLOCK_ROWS=setting.block_rows,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    return total, normed, rstds


def run_norm_backward(
    hidden: Tensor,
    weight: Tensor,
    rstds: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    d_kept: Tensor | None,
    writes_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Launch `norm_backward_kernel`.

    Args:
        hidden: [..., D], what was normed.
        d_normed: [..., D], the gradient of the norm.
        d_total, d_kept: [..., D], gradients of what was normed; their sum is never rounded.

    Returns:
        Gradients of what was normed [N, D], and of the weight [D] in its type if `writes_weight`.
    """
    hidden = aligned_rows(hidden)
    num_rows, width = hidden.shape
    setting = norm_setting(width, NORM_BACKWARD_SETTINGS)
    is_forked = d_total is not None and d_kept is not None
    d_hidden = torch.empty_like(hidden)
    programs = _num_programs(setting, hidden)
    partials = hidden.new_empty(programs, width, dtype=torch.float32) if writes_weight else None
    if num_rows:
        with torch.cuda.device_of(hidden):
            norm_backward_kernel[(programs,)](
                hidden,
                aligned_rows(weight),
                rstds,
                aligned_rows(d_normed),
                None if d_total is None else aligned_rows(d_total),
                None if d_kept is None else aligned_rows(d_kept),
                d_hidden,
                partials,
                num_rows,
                WIDTH=width,
                BLOCK_WIDTH=setting.block_width,
                BLOCK_ROWS=setting.block_rows,
                STAGES=forked_stages(setting, hidden.dtype) if is_forked else setting.stages,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    return d_hidden, None if partials is None else _sum_shares(partials, weight.dtype)


def _sum_shares(shares: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch `sum_shares_kernel`: [n, D] float32 to [D]."""
    width = shares.shape[1]
    total = shares.new_empty(width, dtype=dtype)
    with torch.cuda.device_of(shares):
        sum_shares_kernel[(triton.cdiv(width, SHARES_WIDTH),)](
            shares,
            total,
            shares.shape[0],
            WIDTH=width,
            BLOCK_WIDTH=SHARES_WIDTH,
            BLOCK_ROWS=SHARES_ROWS,
            num_warps=TILE_WARPS,
            enable_fp_fusion=True,
        )
    return total


def run_swiglu(gate_up: Tensor, d_output: Tensor | None = None) -> Tensor:
    """Launch `swiglu_kernel`, or with a gradient `swiglu_backward_kernel`.

    Args:
        gate_up: [..., 2 F].
        d_output: [..., F].

    Returns:
        The output [N, F], or with its gradient that of `gate_up` [N, 2 F].
    """
    gate_up = aligned_rows(gate_up)
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    result = gate_up.new_empty(num_rows, width) if d_output is None else torch.empty_like(gate_up)
    if num_rows:
        setting = gate_setting(width)
        kernel = swiglu_kernel if d_output is None else swiglu_backward_kernel
        with torch.cuda.device_of(gate_up):
            kernel[(triton.cdiv(num_rows, setting.block_rows) * triton.cdiv(width, setting.block_width),)](
                gate_up,
                *(() if d_output is None else (aligned_rows(d_output),)),
                result,
                num_rows,
                WIDTH=width,
                BLOCK_WIDTH=setting.block_width,
                BLOCK_ROWS=setting.block_rows,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    return result


def run_split_heads(product: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `split_heads_kernel`.

    Args:
        product: [T, B, G, (r + 2) d].
        cos, sin: [T or more, 1, 1, d].

    Returns:
        Rotated queries [T, B, G r, d] and keys [T, B, G, d], and values of the same shape, without gaps.
    """
    *outer, groups, total = product.shape
    width = cos.shape[-1]
    num_queries = total // width - 2
    queries = product.new_empty(*outer, groups * num_queries, width)
    keys, values = product.new_empty(*outer, groups, width), product.new_empty(*outer, groups, width)
    if product.numel():
        setting = rotation_setting(width // 2)
        num_rows = product.numel() // width
        with torch.cuda.device_of(product):
            split_heads_kernel[(triton.cdiv(num_rows, setting.block_rows),)](
                aligned_rows(product),
                aligned_rows(cos),
                aligned_rows(sin),
                queries,
                keys,
                values,
                num_rows,
                outer[1],
                GROUPS=groups,
                QUERIES=num_queries,
                HALF=width // 2,
                BLOCK_HALF=setting.block_width,
                BLOCK_ROWS=setting.block_rows,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    return queries, keys, values


def run_join_heads(d_queries: Tensor, d_keys: Tensor, d_values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Launch `join_heads_kernel`; arguments are of the shapes that `run_split_heads` returns, any strides.

    Returns:
        [T, B, G, (r + 2) d] without gaps.
    """
    num_positions, batch_size, num_heads, width = d_queries.shape
    groups = d_keys.shape[2]
    num_queries = num_heads // groups
    d_product = d_queries.new_empty(num_positions, batch_size, groups, (num_queries + 2) * width)
    if d_product.numel():
        gradients = [_plain_heads(gradient) for gradient in (d_queries, d_keys, d_values)]
        strides = [stride for gradient in gradients for stride in gradient.stride()[:3]]
        vector = math.gcd(*strides, ALIGNMENT // d_product.element_size())
        setting = rotation_setting(width // 2)
        num_rows = d_product.numel() // width
        with torch.cuda.device_of(d_product):
            join_heads_kernel[(triton.cdiv(num_rows, setting.block_rows),)](
                *gradients,
                aligned_rows(cos),
                aligned_rows(sin),
                d_product,
                num_rows,
                batch_size,
                *(stride // vector for stride in strides),
                GROUPS=groups,
                QUERIES=num_queries,
                HALF=width // 2,
                VECTOR=vector,
                BLOCK_HALF=setting.block_width,
                BLOCK_ROWS=setting.block_rows,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    return d_product


def _plain_heads(heads: Tensor) -> Tensor:
    """Heads [T, B, H, d] whose elements follow each other, at an aligned address; a copy only if necessary."""
    if heads.stride(-1) != 1 or heads.data_ptr() % ALIGNMENT:
        return heads.clone(memory_format=torch.contiguous_format)
    return heads


def _num_programs(setting: Setting, rows: Tensor) -> int:
    steps = triton.cdiv(rows.shape[0], setting.block_rows)
    if rows.device.type != "cuda":
        return min(2, steps)  # the interpreter runs them in turn
    num_sms = torch.cuda.get_device_properties(rows.device).multi_processor_count
    return min(setting.programs_per_sm * num_sms, steps)
