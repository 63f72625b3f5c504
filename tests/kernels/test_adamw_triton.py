"""AdamW in Triton: compiled for GPUs that are not there."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels.adamw_triton import BLOCK, WARPS, adamw_kernel, squares_kernel  # noqa: E402
from tolktrain_kernels.compilation import Build, compile_for, missing_tool  # noqa: E402

MISSING = missing_tool()
TYPES = {
    **dict.fromkeys(("master", "gradient", "first", "second", "updates", "factor"), "*fp32"),
    **{"low": "*bf16", "size": "i64"},
    **dict.fromkeys(("rate", "kept", "beta1", "rest1", "log1", "beta2", "rest2", "log2", "eps"), "fp32"),
}


LAST = {"blocks": "*i64", "addresses": "*i64"}


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
def test_compiles_without_spilling() -> None:
    usage = compile_for(Build("AdamW", adamw_kernel, TYPES, {"BLOCK": BLOCK}, WARPS), 90)
    assert usage.stack_bytes == 0
    assert usage.registers <= 64


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
@pytest.mark.parametrize("has_sums", [False, True])
def test_compiles_with_last_gradients(has_sums: bool) -> None:
    constants = {"BLOCK": BLOCK, "VECTOR": 8}
    types = {name: kind for name, kind in TYPES.items() if has_sums or name != "gradient"} | LAST
    squares = LAST | {"size": "i64", "squares": "*fp32"} | ({"sums": "*fp32"} if has_sums else {})
    for kernel, of_kernel in ((adamw_kernel, types), (squares_kernel, squares)):
        usage = compile_for(Build("last gradients", kernel, of_kernel, constants, WARPS), 90)
        assert usage.stack_bytes == 0
        assert usage.registers <= 72
