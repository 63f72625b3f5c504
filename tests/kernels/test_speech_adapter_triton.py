"""The speech adapter's kernels in Triton: compiled for GPUs that are absent."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels.compilation import ARCHITECTURES, compile_for, missing_tool  # noqa: E402
from tolktrain_kernels.speech_adapter_builds import builds  # noqa: E402

MISSING = missing_tool()
BUILDS = {build.name: build for build in builds()}


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
@pytest.mark.parametrize("name", BUILDS)
def test_compiles_without_spilling(name: str) -> None:
    usage = compile_for(BUILDS[name], 90)
    assert usage.stack_bytes == 0
    assert usage.registers <= 128


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in BUILDS if name.endswith(" 576 bf16")])
def test_compiles_for_other_gpus(name: str, architecture: int) -> None:
    assert compile_for(BUILDS[name], architecture).stack_bytes == 0
