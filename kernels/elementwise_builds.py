"""Every shipped setting of the elementwise kernels, to be compiled and inspected without a GPU."""

import torch

from tolktrain_kernels.compilation import Build
from tolktrain_kernels.elementwise_triton import (
    NORM_BACKWARD_SETTINGS,
    SHARES_ROWS,
    SHARES_WIDTH,
    TILE_WARPS,
    forked_stages,
    gate_setting,
    join_heads_kernel,
    norm_backward_kernel,
    norm_kernel,
    norm_setting,
    rotation_setting,
    split_heads_kernel,
    sum_shares_kernel,
    swiglu_backward_kernel,
    swiglu_kernel,
)
from tolktrain_kernels.rotation_triton import rotate_heads_kernel

# The models' first, then odd and other widths.
NORM_WIDTHS = (576, 960, 2048, 72, 96, 4096, 6144, 8192)
GATE_WIDTHS = (1536, 2560, 8192, 36, 100)
HEADS = ((3, 3, 64), (32, 1, 64), (2, 4, 128), (1, 4, 72), (2, 1, 16))  # groups, queries of each, width
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_MODELS = 3


def builds() -> list[Build]:
    """Settings by width, direction and type; norms with a residual, and in bf16 at the models' widths without."""
    found = []
    for dtype in _TYPES:
        for width in NORM_WIDTHS:
            found += [*norm_builds(width, dtype, residual=True), _shares(width, dtype)]
        for width in GATE_WIDTHS:
            found += gate_builds(width, dtype)
        for shape in HEADS:
            found += _heads(*shape, dtype)
    for width in NORM_WIDTHS[:_MODELS]:
        found += norm_builds(width, torch.bfloat16, residual=False)
    return found


def norm_builds(width: int, dtype: torch.dtype, residual: bool) -> list[Build]:
    """The forward and the backward kernel of a norm."""
    rows = f"*{_TYPES[dtype]}"
    types = dict.fromkeys(("hidden", "weight", "normed"), rows) | {"rstds": "*fp32", "num_rows": "i32", "eps": "fp32"}
    back = dict.fromkeys(("hidden", "weight", "d_normed", "d_hidden"), rows)
    back |= {"rstds": "*fp32", "partials": "*fp32", "num_rows": "i32"}
    if residual:
        types |= {"update": rows, "total": rows}
        back |= {"d_total": rows}
    setting = norm_setting(width)
    constants = {"WIDTH": width, "BLOCK_WIDTH": setting.block_width, "BLOCK_ROWS": setting.block_rows}
    name = f"{'norm and residual' if residual else 'norm'} {width} {_TYPES[dtype]}"
    back_setting = norm_setting(width, NORM_BACKWARD_SETTINGS)
    back_constants = {**constants, "BLOCK_ROWS": back_setting.block_rows, "STAGES": back_setting.stages}
    found = [
        Build(f"forward {name}", norm_kernel, types, constants, setting.num_warps),
        Build(f"backward {name}", norm_backward_kernel, back, back_constants, back_setting.num_warps),
    ]
    if residual:
        kept = back | {"d_kept": rows}
        forked = {**back_constants, "STAGES": forked_stages(back_setting, dtype)}
        found.append(Build(f"backward forked {name}", norm_backward_kernel, kept, forked, back_setting.num_warps))
    return found


def _shares(width: int, dtype: torch.dtype) -> Build:
    types = {"shares": "*fp32", "total": f"*{_TYPES[dtype]}", "num_shares": "i32"}
    constants: dict[str, int | str] = {"WIDTH": width, "BLOCK_WIDTH": SHARES_WIDTH, "BLOCK_ROWS": SHARES_ROWS}
    return Build(f"sum of shares {width} {_TYPES[dtype]}", sum_shares_kernel, types, constants, TILE_WARPS)


def gate_builds(width: int, dtype: torch.dtype) -> list[Build]:
    """The forward and the backward kernel of a gated activation."""
    rows = f"*{_TYPES[dtype]}"
    setting = gate_setting(width)
    constants = {"WIDTH": width, "BLOCK_WIDTH": setting.block_width, "BLOCK_ROWS": setting.block_rows}
    types = {"gate_up": rows, "output": rows, "num_rows": "i32"}
    back = dict.fromkeys(("gate_up", "d_output", "d_gate_up"), rows) | {"num_rows": "i32"}
    name = f"swiglu {width} {_TYPES[dtype]}"
    return [
        Build(f"forward {name}", swiglu_kernel, types, constants, setting.num_warps),
        Build(f"backward {name}", swiglu_backward_kernel, back, constants, setting.num_warps),
    ]


def _heads(groups: int, queries: int, width: int, dtype: torch.dtype) -> list[Build]:
    rows = f"*{_TYPES[dtype]}"
    types = {"product": rows, "cos": "*fp32", "sin": "*fp32", "queries": rows, "keys": rows, "values": rows}
    back = {"d_queries": rows, "d_keys": rows, "d_values": rows, "cos": "*fp32", "sin": "*fp32", "d_product": rows}
    turned = {name: types[name] for name in ("product", "cos", "sin", *(("queries",) if queries > 1 else ()))}
    sizes = ("num_rows", "batch_size")
    strides = tuple(f"{tensor}_{dimension}" for tensor in "qkv" for dimension in ("position", "batch", "head"))
    setting = rotation_setting(width // 2)
    constants: dict[str, int | str] = {
        "GROUPS": groups,
        "QUERIES": queries,
        "HALF": width // 2,
        "BLOCK_HALF": setting.block_width,
        "BLOCK_ROWS": setting.block_rows,
    }
    name = f"heads {groups} x {queries} x {width} {_TYPES[dtype]}"
    return [
        Build(f"forward {name}", split_heads_kernel, types | dict.fromkeys(sizes, "i32"), constants, setting.num_warps),
        Build(
            f"forward in place {name}",
            rotate_heads_kernel,
            turned | dict.fromkeys(sizes, "i32"),
            constants,
            setting.num_warps,
        ),
        Build(
            f"backward {name}",
            join_heads_kernel,
            back | dict.fromkeys((*sizes, *strides), "i32"),
            {**constants, "VECTOR": 16 // dtype.itemsize},
            setting.num_warps,
        ),
    ]
