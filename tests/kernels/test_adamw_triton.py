"""AdamW in Triton: compiled for GPUs that are not there."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels.adamw_triton import BLOCK, WARPS, adamw_kernel  # noqa: E402
from tolktrain_kernels.compilation import Build, compile_for, missing_tool  # noqa: E402

MISSING = missing_tool()
TYPES = {
    **dict.fromkeys(("master", "gradient", "first", "second", "updates", "factor"), "*fp32"),
    **{"low": "*bf16", "size": "i64"},
    **dict.fromkeys(("rate", "kept", "beta1", "rest1", "log1", "beta2", "rest2", "log2", "eps"), "fp32"),
}


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
def test_compiles_without_spilling() -> None:
    usage = compile_for(Build("AdamW", adamw_kernel, TYPES, {"BLOCK": BLOCK}, WARPS), 90)
    assert usage.stack_bytes == 0
    assert usage.registers <= 64
