"""The Triton layer pooling: compiled for GPUs that are not there."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels.compilation import ARCHITECTURES, Build, compile_for, missing_tool  # noqa: E402
from tolktrain_kernels.layer_pooling_builds import builds  # noqa: E402
from tolktrain_kernels.layer_pooling_triton import (  # noqa: E402
    BACKWARD_SETTINGS,
    FORWARD_SETTINGS,
    L2_BYTES_PER_SM,
    Setting,
    backward_kernel,
    choose_setting,
    forward_kernel,
)

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
@pytest.mark.parametrize(
    "name", ["forward both 30 x 576 bf16", "backward both 30 x 576 bf16", "selector 30 x 576 bf16"]
)
def test_compiles_for_other_gpus(name: str, architecture: int) -> None:
    assert compile_for(BUILDS[name], architecture).stack_bytes == 0


@needs_compiler
@pytest.mark.parametrize("name", [name for name in BUILDS if not name.startswith("selector")])
def test_as_many_programs_fit_as_are_started(name: str) -> None:
    build = BUILDS[name]
    setting = setting_of(build)
    usage = compile_for(build, 90)
    registers = -(-usage.registers // 8) * 8 * 32 * setting.num_warps  # given out by eights
    assert registers * setting.programs_per_sm <= 64 * 1024
    assert (usage.shared_bytes + 1024) * setting.programs_per_sm <= 228 * 1024


def setting_of(build: Build) -> Setting:
    table = FORWARD_SETTINGS if build.kernel is forward_kernel else BACKWARD_SETTINGS
    element_size = 2 if build.types["residual" if build.kernel is forward_kernel else "like"] == "*bf16" else 4
    return choose_setting(table, int(build.constants["LAYERS"]), int(build.constants["WIDTH"]), element_size)


def test_settings_leave_the_states_room_in_the_cache() -> None:
    for table in (FORWARD_SETTINGS, BACKWARD_SETTINGS):
        for num_layers, width in [*table, (1, 72), (64, 576), (12, 8192)]:
            for element_size in (2, 4):
                setting = choose_setting(table, num_layers, width, element_size)
                at_work = setting.programs_per_sm * num_layers * width * element_size
                assert setting.programs_per_sm == 1 or at_work <= L2_BYTES_PER_SM
                assert setting.num_warps in (1, 2, 4, 8, 16)


def test_kernels_are_those_of_the_builds() -> None:
    assert {build.kernel for build in BUILDS.values()} > {forward_kernel, backward_kernel}
    assert len(BUILDS) == len(builds())
