"""Every shipped setting of the layer pooling, to be compiled and inspected without a GPU."""

import torch
import triton

from tolktrain_kernels.compilation import Build
from tolktrain_kernels.layer_pooling_triton import (
    BACKWARD_SETTINGS,
    FORWARD_SETTINGS,
    SELECTOR_ROWS,
    SELECTOR_WARPS,
    SELECTOR_WIDTH,
    backward_kernel,
    choose_setting,
    forward_kernel,
    selector_kernel,
    selector_precision,
)

# In addition to the shapes of the settings: odd widths, and more and fewer layers, by the rule.
RULED_SHAPES = ((1, 72), (64, 100), (40, 1536), (64, 4096))
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def builds() -> list[Build]:
    """Settings by shape, mode, direction and type of the states: all modes in bf16, both averages in float32."""
    shapes = (*FORWARD_SETTINGS, *RULED_SHAPES)
    cases = [(shape, "both", dtype) for shape in shapes for dtype in _TYPES]
    cases += [(shape, mode, torch.bfloat16) for shape in FORWARD_SETTINGS for mode in ("static", "dynamic")]
    found = []
    for (num_layers, width), mode, dtype in cases:
        found += [forward_build(num_layers, width, mode, dtype), backward_build(num_layers, width, mode, dtype)]
        if mode == "both":
            found.append(_selector(num_layers, width, dtype))
    return found


def forward_build(num_layers: int, width: int, mode: str, dtype: torch.dtype) -> Build:
    """The forward kernel of a shape in its setting; mode is "static", "dynamic" or "both"."""
    state = f"*{_TYPES[dtype]}"
    types = {"table": "*i64", "residual": state, "pooled": state, "num_rows": "i32"}
    if mode != "dynamic":
        types |= {"static_probs": "*fp32", "static": state}
    if mode != "static":
        types |= {"weight": state, "bias": state, "probs": "*fp32", "entropy": "*fp32"}
    setting = choose_setting(FORWARD_SETTINGS, num_layers, width, dtype.itemsize)
    constants = {
        "LAYERS": num_layers,
        "WIDTH": width,
        "BLOCK_LAYERS": triton.next_power_of_2(num_layers),
        "BLOCK_WIDTH": triton.next_power_of_2(width),
        "GROUP": setting.group,
        "STAGES": setting.stages,
    }
    name = f"forward {mode} {num_layers} x {width} {_TYPES[dtype]}"
    return Build(name, forward_kernel, types, constants, setting.num_warps)


def backward_build(num_layers: int, width: int, mode: str, dtype: torch.dtype) -> Build:
    """The backward kernel of a shape in its setting; mode is "static", "dynamic" or "both"."""
    state = f"*{_TYPES[dtype]}"
    types = {"table": "*i64", "d_table": "*i64", "like": state, "d_pooled": state, "dots": "*fp32", "num_rows": "i32"}
    if mode != "dynamic":
        types |= {"static_probs": "*fp32"}
    if mode != "static":
        types |= dict.fromkeys(("probs", "entropy", "d_entropy", "d_logits"), "*fp32") | {"weight": state}
    setting = choose_setting(BACKWARD_SETTINGS, num_layers, width, dtype.itemsize)
    constants = {
        "LAYERS": num_layers,
        "WIDTH": width,
        "BLOCK_WIDTH": triton.next_power_of_2(width),
        "GROUP": setting.group,
        "STAGES": setting.stages,
    }
    name = f"backward {mode} {num_layers} x {width} {_TYPES[dtype]}"
    return Build(name, backward_kernel, types, constants, setting.num_warps)


def _selector(num_layers: int, width: int, dtype: torch.dtype) -> Build:
    types = {"d_logits": "*fp32", "read": f"*{_TYPES[dtype]}", "partials": "*fp32", "num_rows": "i32"}
    constants: dict[str, int | str] = {
        "LAYERS": num_layers,
        "WIDTH": width,
        "BLOCK_LAYERS": max(16, triton.next_power_of_2(num_layers)),
        "BLOCK_WIDTH": SELECTOR_WIDTH,
        "BLOCK_ROWS": SELECTOR_ROWS,
        "PRECISION": selector_precision(dtype),
    }
    return Build(f"selector {num_layers} x {width} {_TYPES[dtype]}", selector_kernel, types, constants, SELECTOR_WARPS)
