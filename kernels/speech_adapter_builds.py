"""Every setting of the speech adapter's kernels, to be compiled and inspected without a GPU."""

import torch

from tolktrain_kernels.compilation import Build
from tolktrain_kernels.speech_adapter_triton import (
    collect_kernel,
    embed_kernel,
    launch_options,
    merge_kernel,
    split_kernel,
)

# The models' first, then odd and other widths.
WIDTHS = (576, 960, 2048, 72, 4096)
CODEBOOKS = (1, 8)
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def builds() -> list[Build]:
    """Settings by width and type, embeddings of one codebook and of several."""
    return [build for dtype in _TYPES for width in WIDTHS for build in _builds(width, dtype)]


def _builds(width: int, dtype: torch.dtype) -> list[Build]:
    rows, name = f"*{_TYPES[dtype]}", f"{width} {_TYPES[dtype]}"
    options = launch_options(width)
    constants, num_warps = {"WIDTH": width, "BLOCK": options["BLOCK"]}, options["num_warps"]
    places = {"places": "*i32"}
    embed = {**places, "tokens": "*i64", "speech_tables": "*i64"}
    embed |= dict.fromkeys(("text_table", "hidden", "packed"), rows)
    return [
        *(Build(f"embed {k} {name}", embed_kernel, embed, {**constants, "CODEBOOKS": k}, num_warps) for k in CODEBOOKS),
        *(
            Build(f"{verb} {name}", kernel, places | dict.fromkeys(tensors, rows), constants, num_warps)
            for verb, kernel, tensors in (
                ("collect", collect_kernel, ("d_hidden", "d_packed", "d_speech")),
                ("merge", merge_kernel, ("hidden", "packed", "update", "merged")),
                ("split", split_kernel, ("d_merged", "d_hidden", "d_packed")),
            )
        ),
    ]
