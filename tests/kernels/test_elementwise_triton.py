"""The elementwise kernels in Triton: compiled for GPUs that are not there."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels import elementwise_triton as kernels  # noqa: E402
from tolktrain_kernels.compilation import ARCHITECTURES, compile_for, missing_tool  # noqa: E402
from tolktrain_kernels.elementwise_builds import builds  # noqa: E402
from tolktrain_kernels.rotation_triton import rotate_heads_kernel  # noqa: E402

MISSING = missing_tool()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is missing from Triton's package")
BUILDS = {build.name: build for build in builds()}


@needs_compiler
@pytest.mark.parametrize("name", BUILDS)
def test_compiles_without_spilling_and_fits(name: str) -> None:
    build = BUILDS[name]
    usage = compile_for(build, 90)
    assert usage.stack_bytes == 0
    assert usage.registers <= 128
    if build.kernel is kernels.norm_backward_kernel:
        # As many programs run at once as are started.
        programs = kernels.norm_setting(int(build.constants["WIDTH"]), kernels.NORM_BACKWARD_SETTINGS).programs_per_sm
        registers = -(-usage.registers // 8) * 8 * 32 * build.num_warps  # given out by eights
        assert registers * programs <= 64 * 1024
        assert (usage.shared_bytes + 1024) * programs <= 228 * 1024


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "name", [name for name in BUILDS if any(width in name for width in (" 576 bf16", " 3 x 3 x 64 bf16"))]
)
def test_compiles_for_other_gpus(name: str, architecture: int) -> None:
    assert compile_for(BUILDS[name], architecture).stack_bytes == 0


def test_settings_cover_what_they_should() -> None:
    for width in (1, 6, 72, 576, 960, 1000, 2048, 4096, 6144, kernels.MAX_NORM_WIDTH):
        setting = kernels.norm_setting(width)
        assert setting.block_width >= width
        assert setting.num_warps in (1, 2, 4, 8, 16)
        # Sixteen elements a thread are what the registers hold.
        assert setting.block_rows * setting.block_width == 512 * setting.num_warps
        assert setting.programs_per_sm * setting.num_warps == 16
    for setting in (kernels.gate_setting(1), kernels.gate_setting(8192), kernels.rotation_setting(4096)):
        assert setting.block_rows >= 1


def test_kernels_are_those_of_the_builds() -> None:
    assert {build.kernel for build in BUILDS.values()} == {
        kernels.norm_kernel,
        kernels.norm_backward_kernel,
        kernels.sum_shares_kernel,
        kernels.swiglu_kernel,
        kernels.swiglu_backward_kernel,
        kernels.split_heads_kernel,
        kernels.join_heads_kernel,
        rotate_heads_kernel,
    }
    assert len(BUILDS) == len(builds())
