"""The cross-entropy kernel in Triton: compiled for GPUs that are not there."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels.compilation import ARCHITECTURES, compile_for, missing_tool  # noqa: E402
from tolktrain_kernels.cross_entropy_builds import builds  # noqa: E402
from tolktrain_kernels.cross_entropy_triton import choose_block  # noqa: E402

MISSING = missing_tool()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
BUILDS = {build.name: build for build in builds()}


@needs_compiler
@pytest.mark.parametrize("name", BUILDS)
def test_compiles_without_spilling(name: str) -> None:
    usage = compile_for(BUILDS[name], 90)
    assert usage.stack_bytes == 0
    assert usage.registers <= 128


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for_other_gpus(architecture: int) -> None:
    assert compile_for(BUILDS["loss and gradient 49152 bf16"], architecture).stack_bytes == 0


def test_blocks_give_each_thread_what_its_registers_hold() -> None:
    for vocabulary in (1, 5, 502, 513, 4096, 4097, 49152):
        block, num_warps = choose_block(vocabulary)
        assert num_warps in (1, 2, 4, 8)
        assert block <= 16 * 32 * num_warps
        assert block < 2 * vocabulary


def test_names_of_the_builds_are_theirs_alone() -> None:
    assert len(BUILDS) == len(builds())
