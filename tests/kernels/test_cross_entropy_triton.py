"""The cross-entropy kernel in Triton: compiled for GPUs that are not there."""

import pytest

pytest.importorskip("triton")

from tolktrain_kernels.compilation import ARCHITECTURES, compile_for, missing_tool  # noqa: E402
from tolktrain_kernels.cross_entropy import MAX_KEPT  # noqa: E402
from tolktrain_kernels.cross_entropy_builds import builds  # noqa: E402
from tolktrain_kernels.cross_entropy_triton import BLOCKS, Setting, choose_setting  # noqa: E402

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


@needs_compiler
def test_two_programs_that_keep_their_rows_have_room() -> None:
    """On a multiprocessor with 64 K registers, so that one reads while the other writes."""
    build = BUILDS[f"loss and gradient {MAX_KEPT} bf16"]
    assert build.kernel.__name__ == "kept_softmax_terms_kernel"
    assert 2 * 32 * build.num_warps * compile_for(build, 90).registers <= 64 * 1024


def test_blocks_give_each_thread_what_its_registers_hold() -> None:
    for vocabulary in (1, 5, 502, 513, 4096, 4097, 49152):
        block, num_warps, keeps = choose_setting(vocabulary, may_keep=False)
        assert num_warps in (1, 2, 4, 8) and not keeps
        assert block <= 16 * 32 * num_warps
        assert block < 2 * vocabulary


def test_rows_of_whole_blocks_are_kept_if_registers_hold_them() -> None:
    assert [ids for ids in (502, 4096, 4097, 49152, 53248) if choose_setting(ids, may_keep=True).keeps] == [4096, 49152]


def test_a_measured_setting_holds_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, streamed = Setting(8192, 16, keeps=True), Setting(2048, 4)
    monkeypatch.setitem(BLOCKS, 49152, kept)
    assert choose_setting(49152, may_keep=True) == kept
    assert not choose_setting(49152, may_keep=False).keeps
    monkeypatch.setitem(BLOCKS, 49152, streamed)
    assert choose_setting(49152, may_keep=True) == choose_setting(49152, may_keep=False) == streamed


def test_names_of_the_builds_are_theirs_alone() -> None:
    assert len(BUILDS) == len(builds())
