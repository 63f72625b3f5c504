"""Weighted layer pooling in Triton: all the layers of one token per program, each state read from memory once.

The selector reads the average before any weight is known, so every state is needed twice. Few programs run at a time
(`Setting.programs_per_sm`), each over many tokens, so that the second read finds the token's states in the L2 cache.
States come as a list: the kernels read their addresses from a table. Layers are taken some at a time in rolled loops;
unrolled ones spill registers. Nothing is added atomically: results are the same from run to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tolktrain_kernels.rows import address_table, aligned_rows

MAX_LAYERS = 64


@triton.jit
def _addresses(table: tl.tensor, layers: tl.tensor, present: tl.tensor, pointer: tl.tensor) -> tl.tensor:
    """Where the states of some layers begin, typed as `pointer`; vector loads need to know that they are aligned."""
    return tl.multiple_of(tl.load(table + layers, mask=present, other=0).to(pointer.dtype), 16)


@triton.jit
def _load_states(
    table: tl.tensor, layers: tl.tensor, present: tl.tensor, offsets: tl.tensor, inside: tl.tensor, pointer: tl.tensor
) -> tl.tensor:
    """One token's states of some layers, float32. Past the L1 cache, which is for the selector's matrix."""
    pointers = _addresses(table, layers, present, pointer)[:, None] + offsets[None, :]
    tile = tl.load(pointers, mask=present[:, None] & inside[None, :], other=0.0, cache_modifier=".cg")
    return tile.to(tl.float32)


@triton.jit
def _load_selector(
    weight: tl.tensor, layers: tl.tensor, present: tl.tensor, columns: tl.tensor, inside: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """Rows of the selector's matrix, float32."""
    pointers = weight + layers[:, None] * WIDTH + columns[None, :]
    return tl.load(pointers, mask=present[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    table: tl.tensor,  # [LAYERS] int64: addresses of the states [num_rows, WIDTH]
    static_probs: tl.tensor,  # [LAYERS] float32, or None
    weight: tl.tensor,  # [LAYERS, WIDTH], or None
    bias: tl.tensor,  # [LAYERS], or None
    residual: tl.tensor,  # [num_rows, WIDTH], or None
    pooled: tl.tensor,  # [num_rows, WIDTH], or None where it would equal `static`
    static: tl.tensor,  # [num_rows, WIDTH], or None where h_L is read
    probs: tl.tensor,  # [num_rows, LAYERS] float32, or None
    entropy: tl.tensor,  # [num_rows] float32, or None
    num_rows: tl.tensor,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Average and choose; see `layer_pooling_op.pool_rows`."""
    output = static if pooled is None else pooled
    columns = tl.arange(0, BLOCK_WIDTH)
    inside = columns < WIDTH
    for row in tl.range(tl.program_id(0), num_rows, tl.num_programs(0)):
        offsets = tl.cast(row, tl.int64) * WIDTH + columns
        if static_probs is not None:
            read = tl.zeros([BLOCK_WIDTH], tl.float32)
            for first in tl.range(0, LAYERS, GROUP, num_stages=STAGES):
                layers = first + tl.arange(0, GROUP)
                present = layers < LAYERS
                share = tl.load(static_probs + layers, mask=present, other=0.0)
                tile = _load_states(table, layers, present, offsets, inside, output)
                read += tl.sum(tile * share[:, None], axis=0)
            tl.store(static + offsets, read, mask=inside)
        else:
            last = tl.multiple_of(tl.load(table + LAYERS - 1).to(output.dtype), 16)
            read = tl.load(last + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        average = read
        if weight is not None:
            # The softmax is computed online, so that each state is loaded together with its row of the matrix.
            peak = -1e30
            total = 0.0
            slope = 0.0  # sum of exp(z - peak) (z - peak): the entropy is log(total) - slope / total
            average = tl.zeros([BLOCK_WIDTH], tl.float32)
            for first in tl.range(0, LAYERS, GROUP):
                layers = first + tl.arange(0, GROUP)
                present = layers < LAYERS
                rows = _load_selector(weight, layers, present, columns, inside, WIDTH)
                tile = _load_states(table, layers, present, offsets, inside, output)
                logits = tl.sum(rows * read[None, :], axis=1)
                if bias is not None:
                    logits += tl.load(bias + layers, mask=present, other=0.0).to(tl.float32)
                tl.store(probs + row * LAYERS + layers, logits, mask=present)
                new_peak = tl.maximum(peak, tl.max(tl.where(present, logits, -1e30), axis=0))
                scale = tl.exp(peak - new_peak)
                below = tl.where(present, logits - new_peak, 0.0)
                shares = tl.where(present, tl.exp(below), 0.0)
                slope = scale * (slope + (peak - new_peak) * total) + tl.sum(shares * below, axis=0)
                total = total * scale + tl.sum(shares, axis=0)
                average = average * scale + tl.sum(tile * shares[:, None], axis=0)
                peak = new_peak
            average = average / total
            tl.store(entropy + row, tl.log(total) - slope / total)
            # Other threads than those that wrote the logits read them. Rewriting them in place is safe: of several
            # threads that hold one element only one stores, after its own load, and no other's value is used.
            tl.debug_barrier()
            layers = tl.arange(0, BLOCK_LAYERS)
            present = layers < LAYERS
            logits = tl.load(probs + row * LAYERS + layers, mask=present, other=0.0)
            tl.store(probs + row * LAYERS + layers, tl.exp(logits - peak) / total, mask=present)
        if residual is not None:
            average += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
        if pooled is not None:
            tl.store(pooled + offsets, average, mask=inside)


@triton.jit
def _logit_gradients(
    chosen: tl.tensor, products: tl.tensor, mean: tl.tensor, d_entropy: tl.tensor, entropy: tl.tensor
) -> tl.tensor:
    """dz_l = p_l (dp_l - sum p dp) - dH p_l (log p_l + H)."""
    logs = tl.log(tl.where(chosen > 0, chosen, 1.0))
    return chosen * (products - mean) - d_entropy * chosen * (logs + entropy)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    table: tl.tensor,  # [LAYERS] int64: addresses of the states [num_rows, WIDTH]
    d_table: tl.tensor,  # [LAYERS] int64: addresses of their gradients, or None
    like: tl.tensor,  # any tensor of the states' type
    static_probs: tl.tensor,  # [LAYERS] float32, or None
    weight: tl.tensor,  # [LAYERS, WIDTH], or None
    probs: tl.tensor,  # [num_rows, LAYERS] float32, or None
    entropy: tl.tensor,  # [num_rows] float32, or None
    d_pooled: tl.tensor,  # [num_rows, WIDTH], or None
    d_static: tl.tensor,  # [num_rows, WIDTH], or None
    d_probs: tl.tensor,  # [num_rows, LAYERS] float32, or None
    d_entropy: tl.tensor,  # [num_rows] float32, or None
    dots: tl.tensor,  # [num_rows, LAYERS] float32: products h_l g, at the end h_l dh_static if there is a static part
    d_logits: tl.tensor,  # [num_rows, LAYERS] float32, or None
    num_rows: tl.tensor,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """dh_l = p_l g + s_l dh_static, where dh_static = sum_l dz_l W_l."""
    columns = tl.arange(0, BLOCK_WIDTH)
    inside = columns < WIDTH
    for row in tl.range(tl.program_id(0), num_rows, tl.num_programs(0)):
        offsets = tl.cast(row, tl.int64) * WIDTH + columns
        gradient = tl.zeros([BLOCK_WIDTH], tl.float32)
        if d_pooled is not None:
            gradient = tl.load(d_pooled + offsets, mask=inside, other=0.0).to(tl.float32)
        d_read = tl.zeros([BLOCK_WIDTH], tl.float32)
        if d_static is not None:
            d_read = tl.load(d_static + offsets, mask=inside, other=0.0).to(tl.float32)
        if weight is None:
            d_read += gradient
        else:
            mean = 0.0
            for first in tl.range(0, LAYERS, GROUP, num_stages=STAGES):
                layers = first + tl.arange(0, GROUP)
                present = layers < LAYERS
                tile = _load_states(table, layers, present, offsets, inside, like)
                products = tl.sum(tile * gradient[None, :], axis=1)
                if d_probs is not None:
                    products += tl.load(d_probs + row * LAYERS + layers, mask=present, other=0.0)
                tl.store(dots + row * LAYERS + layers, products, mask=present)
                chosen = tl.load(probs + row * LAYERS + layers, mask=present, other=0.0)
                mean += tl.sum(chosen * products, axis=0)
            slope, nats = 0.0, 0.0
            if d_entropy is not None:
                slope = tl.load(d_entropy + row)
                nats = tl.load(entropy + row)
            # Other threads than those that wrote the products read them.
            tl.debug_barrier()
            for first in tl.range(0, LAYERS, GROUP):
                layers = first + tl.arange(0, GROUP)
                present = layers < LAYERS
                chosen = tl.load(probs + row * LAYERS + layers, mask=present, other=0.0)
                products = tl.load(dots + row * LAYERS + layers, mask=present, other=0.0)
                change = _logit_gradients(chosen, products, mean, slope, nats)
                tl.store(d_logits + row * LAYERS + layers, change, mask=present)
                rows = _load_selector(weight, layers, present, columns, inside, WIDTH)
                d_read += tl.sum(rows * change[:, None], axis=0)
            # All have read the products before they are overwritten below, and in the next turn.
            tl.debug_barrier()
        for first in tl.range(0, LAYERS, GROUP):
            layers = first + tl.arange(0, GROUP)
            present = layers < LAYERS
            if static_probs is not None:
                share = tl.load(static_probs + layers, mask=present, other=0.0)
                tile = _load_states(table, layers, present, offsets, inside, like)
                tl.store(dots + row * LAYERS + layers, tl.sum(tile * d_read[None, :], axis=1), mask=present)
            else:
                share = tl.where(layers == LAYERS - 1, 1.0, 0.0)
            if d_table is not None:
                change = share[:, None] * d_read[None, :]
                if weight is not None:
                    chosen = tl.load(probs + row * LAYERS + layers, mask=present, other=0.0)
                    change += chosen[:, None] * gradient[None, :]
                pointers = _addresses(d_table, layers, present, like)[:, None] + offsets[None, :]
                # First to leave the cache, which is for the states of the tokens at work.
                tl.store(pointers, change, mask=present[:, None] & inside[None, :], cache_modifier=".cs")


@triton.jit(do_not_specialize=["num_rows"])
def selector_kernel(
    d_logits: tl.tensor,  # [num_rows, LAYERS] float32
    read: tl.tensor,  # [num_rows, WIDTH]: what the selector reads
    partials: tl.tensor,  # [splits, LAYERS, WIDTH] float32
    num_rows: tl.tensor,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Each program's share of the selector's gradient d_logits^T read."""
    layers = tl.arange(0, BLOCK_LAYERS)
    columns = tl.program_id(0) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    split = tl.program_id(1)
    total = tl.zeros([BLOCK_LAYERS, BLOCK_WIDTH], tl.float32)
    for first in tl.range(split * BLOCK_ROWS, num_rows, tl.num_programs(1) * BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        there = rows < num_rows
        mask = (layers < LAYERS)[:, None] & there[None, :]
        left = tl.load(d_logits + rows[None, :] * LAYERS + layers[:, None], mask=mask, other=0.0)
        pointers = read + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        right = tl.load(pointers, mask=there[:, None] & (columns < WIDTH)[None, :], other=0.0).to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    pointers = partials + (split * LAYERS + layers)[:, None] * WIDTH + columns[None, :]
    tl.store(pointers, total, mask=(layers < LAYERS)[:, None] & (columns < WIDTH)[None, :])


@dataclass(frozen=True)
class Setting:
    """How a kernel is laid out on the GPU."""

    num_warps: int
    group: int  # layers taken at a time
    programs_per_sm: int  # as many as leave room in the L2 cache for the states of the tokens at work
    stages: int = 3  # groups of layers under way in the loop that reads the states from memory


# By (layers, width), for 16-bit states. Warps spread over the width alone, 256 columns each, so that a sum over layers
# stays in a thread; registers must let `programs_per_sm` of them run at once.
FORWARD_SETTINGS = {
    (24, 2048): Setting(num_warps=8, group=4, programs_per_sm=2),
    (32, 960): Setting(num_warps=4, group=4, programs_per_sm=5),
    (30, 576): Setting(num_warps=4, group=2, programs_per_sm=7, stages=4),
    (32, 4096): Setting(num_warps=16, group=4, programs_per_sm=1),
}
BACKWARD_SETTINGS = {
    (24, 2048): Setting(num_warps=8, group=4, programs_per_sm=2),
    (32, 960): Setting(num_warps=4, group=4, programs_per_sm=4),
    (30, 576): Setting(num_warps=4, group=4, programs_per_sm=6),
    (32, 4096): Setting(num_warps=16, group=4, programs_per_sm=1),
}
L2_BYTES_PER_SM = 310_000  # of the states of the tokens at work: three quarters of a Hopper GPU's cache
SELECTOR_WIDTH, SELECTOR_ROWS = 64, 32  # columns and rows of one step of `selector_kernel`
SELECTOR_WARPS = 8
MAX_SPLITS = 32  # programs that share the rows of one block of columns


def choose_setting(table: dict[tuple[int, int], Setting], num_layers: int, width: int, element_size: int) -> Setting:
    """The table's setting, or one by the same rule if the shape is not in the table.

    Args:
        table: `FORWARD_SETTINGS` or `BACKWARD_SETTINGS`.
        element_size: bytes of an element of the states.
    """
    if element_size == 2 and (num_layers, width) in table:
        return table[num_layers, width]
    warps = min(16, max(1, triton.next_power_of_2(width) // 256))
    fitting = L2_BYTES_PER_SM // (num_layers * width * element_size)
    group = 4 if element_size == 2 and warps < 16 else 2
    programs = min(fitting, 16 // warps if warps > 4 else 5)
    return Setting(num_warps=warps, group=group, programs_per_sm=max(1, programs))


def run_forward(
    states: Sequence[Tensor],
    static_probs: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Launch `forward_kernel`. Arguments and results as in `pool_rows`; what equals `static` is not made twice."""
    states = [aligned_rows(state) for state in states]
    last = states[-1]
    num_rows, width = last.shape
    pooled = None if weight is None and residual is None else torch.empty_like(last)
    static = None if static_probs is None else torch.empty_like(last)
    probs = entropy = None
    if weight is not None:
        probs = last.new_empty(num_rows, len(states), dtype=torch.float32)
        entropy = last.new_empty(num_rows, dtype=torch.float32)
    if num_rows:
        setting = choose_setting(FORWARD_SETTINGS, len(states), width, last.element_size())
        with torch.cuda.device_of(last):
            forward_kernel[(_num_programs(setting, last),)](
                address_table(states, states[-1].device),
                _contiguous(static_probs),
                None if weight is None else aligned_rows(weight),
                _contiguous(bias),
                None if residual is None else aligned_rows(residual),
                pooled,
                static,
                probs,
                entropy,
                num_rows,
                LAYERS=len(states),
                WIDTH=width,
                BLOCK_LAYERS=triton.next_power_of_2(len(states)),
                BLOCK_WIDTH=triton.next_power_of_2(width),
                GROUP=setting.group,
                STAGES=setting.stages,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    return pooled, static, probs, entropy


@dataclass(frozen=True)
class OutputGradients:
    """Gradients of `run_forward`'s results, None where there is none. Shapes and types are those of the results."""

    pooled: Tensor | None
    static: Tensor | None
    probs: Tensor | None
    entropy: Tensor | None


def run_backward(
    states: Sequence[Tensor],
    static_probs: Tensor | None,
    weight: Tensor | None,
    static: Tensor | None,
    probs: Tensor | None,
    entropy: Tensor | None,
    gradients: OutputGradients,
    writes_states: bool,
) -> tuple[list[Tensor], Tensor | None, Tensor | None, Tensor | None]:
    """Launch `backward_kernel`, and `selector_kernel` where there is a selector.

    Returns:
        Gradients of the states [N, D], none unless `writes_states`; of the static weights s [L]; of W [L, D]; of b [L].
        The last three are float32.
    """
    states = [aligned_rows(state) for state in states]
    last = states[-1]
    num_rows, width = last.shape
    d_states = [torch.empty_like(last) for _ in states] if writes_states else []
    dots = last.new_empty(num_rows, len(states), dtype=torch.float32)
    d_logits = None if weight is None else torch.empty_like(dots)
    if num_rows:
        setting = choose_setting(BACKWARD_SETTINGS, len(states), width, last.element_size())
        with torch.cuda.device_of(last):
            backward_kernel[(_num_programs(setting, last),)](
                address_table(states, states[-1].device),
                address_table(d_states, states[-1].device) if writes_states else None,
                last,
                _contiguous(static_probs),
                None if weight is None else aligned_rows(weight),
                probs,
                entropy,
                None if gradients.pooled is None else aligned_rows(gradients.pooled),
                None if gradients.static is None else aligned_rows(gradients.static),
                _contiguous(gradients.probs),
                _contiguous(gradients.entropy),
                dots,
                d_logits,
                num_rows,
                LAYERS=len(states),
                WIDTH=width,
                BLOCK_WIDTH=triton.next_power_of_2(width),
                GROUP=setting.group,
                STAGES=setting.stages,
                num_warps=setting.num_warps,
                enable_fp_fusion=True,
            )
    d_weight = d_bias = None
    if d_logits is not None:
        d_weight = _selector_gradient(d_logits, last if static is None else aligned_rows(static))
        d_bias = d_logits.sum(dim=0)
    return d_states, None if static_probs is None else dots.sum(dim=0), d_weight, d_bias


def _selector_gradient(d_logits: Tensor, read: Tensor) -> Tensor:
    num_rows, width = read.shape
    num_layers = d_logits.shape[1]
    splits = min(MAX_SPLITS, triton.cdiv(num_rows, SELECTOR_ROWS))
    partials = d_logits.new_empty(splits, num_layers, width)
    if splits:
        with torch.cuda.device_of(read):
            selector_kernel[(triton.cdiv(width, SELECTOR_WIDTH), splits)](
                d_logits,
                read,
                partials,
                num_rows,
                LAYERS=num_layers,
                WIDTH=width,
                BLOCK_LAYERS=max(16, triton.next_power_of_2(num_layers)),
                BLOCK_WIDTH=SELECTOR_WIDTH,
                BLOCK_ROWS=SELECTOR_ROWS,
                PRECISION=selector_precision(read.dtype),
                num_warps=SELECTOR_WARPS,
                enable_fp_fusion=True,
            )
    return partials.sum(dim=0)


def selector_precision(dtype: torch.dtype) -> str:
    """How `selector_kernel` multiplies: for states of 16 bits on tensor cores, three products for one; else exactly."""
    return "ieee" if dtype == torch.float32 else "tf32x3"


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _num_programs(setting: Setting, rows: Tensor) -> int:
    if rows.device.type != "cuda":
        return min(2, rows.shape[0])  # the interpreter runs them in turn
    num_sms = torch.cuda.get_device_properties(rows.device).multi_processor_count
    return min(setting.programs_per_sm * num_sms, rows.shape[0])
