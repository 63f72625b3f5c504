"""Tunes the settings of the layer pooling on the present GPU."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from unittest import mock

import torch

from tolktrain_kernels import layer_pooling_triton
from tolktrain_kernels.bench.measure import Plan
from tolktrain_kernels.bench.pooling import Shape, measure_provider
from tolktrain_kernels.compilation import Build, compile_for
from tolktrain_kernels.layer_pooling import pool_layers
from tolktrain_kernels.layer_pooling_builds import backward_build, forward_build
from tolktrain_kernels.layer_pooling_triton import Setting

REGISTERS_PER_SM = 64 * 1024
CANDIDATES = tuple(
    Setting(num_warps, group, programs_per_sm, stages)
    for num_warps, group, programs_per_sm, stages in itertools.product((4, 8, 16), (2, 4, 8), range(1, 9), (2, 3, 4))
)


def tune_pooling(
    device: str,
    shapes: Sequence[Shape],
    candidates: Sequence[Setting] = CANDIDATES,
    usable: Callable[[Build, Setting], bool] | None = None,
) -> Iterator[str]:
    """Time every candidate that spills no registers, in bf16 with both averages.

    Args:
        device: "cuda", or "cpu" under Triton's interpreter, whose times mean nothing.
        shapes: what is pooled.
        candidates: settings that are tried in addition to the present one.
        usable: whether a compiled kernel is worth a trial; by default what `fits` says of this GPU.

    Yields:
        Lines for the tables of `layer_pooling_triton`: the fastest setting of each shape, and its time.
    """
    usable = fits if usable is None else usable
    plan = Plan(device, quick=True, copy_rate=1.0)
    for direction, build in (("forward", forward_build), ("backward", backward_build)):
        name = f"{direction.upper()}_SETTINGS"
        table = getattr(layer_pooling_triton, name)
        yield f"{name}:"
        for shape in shapes:
            key = (shape.num_layers, shape.width)
            times: dict[Setting, float] = {}
            present = layer_pooling_triton.choose_setting(table, *key, element_size=2)
            for setting in dict.fromkeys((present, *candidates)):
                with mock.patch.dict(table, {key: setting}):
                    if setting == present or usable(build(*key, "both", torch.bfloat16), setting):
                        times[setting] = _milliseconds(plan, shape, direction)
            best = min(times, key=times.__getitem__)
            yield f"    {key}: {best},  # {times[best]:.3f} ms; {times[present]:.3f} ms at present"


def fits(build: Build, setting: Setting) -> bool:
    """Whether a kernel keeps to its registers, and as many programs run at once as are started."""
    major, minor = torch.cuda.get_device_capability()
    usage = compile_for(build, 10 * major + minor)
    registers = -(-usage.registers // 8) * 8 * 32 * setting.num_warps * setting.programs_per_sm
    return usage.stack_bytes == 0 and registers <= REGISTERS_PER_SM


def _milliseconds(plan: Plan, shape: Shape, direction: str) -> float:
    pool = partial(pool_layers, backend="triton")
    rows = measure_provider(plan, "triton", pool, shape, torch.bfloat16)
    return next(row.ms_50 for row in rows if row.mode == direction)
