"""Queries and keys of the fused product, rotated where they are, in Triton: values are neither read nor written.

With one query to a key, nothing else is allocated. With more, the queries are written to memory of their own: attention
takes heads that are equally far apart.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tolktrain_kernels.elementwise_triton import rotation_setting
from tolktrain_kernels.rows import aligned_rows


@triton.jit(do_not_specialize=["num_rows", "batch_size"])
def rotate_heads_kernel(
    product: tl.tensor,  # [T, batch_size, GROUPS, QUERIES + 2, 2 HALF]: queries, key and value of each group
    cos: tl.tensor,  # [T or more, 2 HALF] float32; the first half of each row is read
    sin: tl.tensor,  # [T or more, 2 HALF] float32, the first half negated
    queries: tl.tensor,  # [T, batch_size, GROUPS QUERIES, 2 HALF], or None: they stay in the product
    num_rows: tl.tensor,  # T batch_size GROUPS (QUERIES + 1)
    batch_size: tl.tensor,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """(x, y) to (x cos - y sin, y cos + x sin)."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (rows < num_rows)[:, None] & (columns < HALF)
    groups = (rows // (QUERIES + 1)).to(tl.int64)
    places = rows % (QUERIES + 1)
    angles = (groups // GROUPS // batch_size)[:, None] * (2 * HALF) + columns
    along = tl.load(cos + angles, mask=inside, other=0.0).to(tl.float32)
    across = tl.load(sin + angles, mask=inside, other=0.0).to(tl.float32)
    pointers = product + (groups * (QUERIES + 2) + places)[:, None] * (2 * HALF) + columns
    first = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(pointers + HALF, mask=inside, other=0.0).to(tl.float32)
    left, right = first * along + second * across, second * along - first * across
    in_place = inside
    if queries is not None:
        in_place = inside & (places == QUERIES)[:, None]
        is_query = inside & (places < QUERIES)[:, None]
        own = queries + (groups * QUERIES + places)[:, None] * (2 * HALF) + columns
        tl.store(own, left, mask=is_query)
        tl.store(own + HALF, right, mask=is_query)
    tl.store(pointers, left, mask=in_place)
    tl.store(pointers + HALF, right, mask=in_place)


def run_rotate_heads(product: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """Launch `rotate_heads_kernel`.

    Args:
        product: [T, B, G, (r + 2) d] without gaps at an aligned address; changed.
        cos, sin: [T or more, 1, 1, d].

    Returns:
        Rotated queries [T, B, G r, d] without gaps; None with r = 1, where they are in the product.
    """
    *outer, groups, total = product.shape
    width = cos.shape[-1]
    num_queries = total // width - 2
    queries = None if num_queries == 1 else product.new_empty(*outer, groups * num_queries, width)
    if product.numel():
        setting = rotation_setting(width // 2)
        num_rows = product.numel() // total * (num_queries + 1)
        with torch.cuda.device_of(product):
            rotate_heads_kernel[(triton.cdiv(num_rows, setting.block_rows),)](
                product,
                aligned_rows(cos),
                aligned_rows(sin),
                queries,
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
    return queries
