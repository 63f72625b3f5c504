"""Tunes the settings of norms, gated activation and the loss on the present GPU."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from tolktrain_kernels.bench import elementwise, loss
from tolktrain_kernels.bench.candidates import Family, describe, families, inspect
from tolktrain_kernels.bench.elementwise_check import Case
from tolktrain_kernels.bench.loss_check import Case as LossCase
from tolktrain_kernels.bench.measure import Plan

_TABLES = {
    "norm forward": "NORM_SETTINGS",
    "norm backward": "NORM_BACKWARD_SETTINGS",
    "gate forward": "GATE_SETTINGS",
    "gate backward": "GATE_SETTINGS",
    "loss and gradient": "BLOCKS",
}


def tune_rows(
    device: str,
    num_tokens: int = elementwise.NUM_TOKENS,
    chosen: Sequence[Family] | None = None,
    usable: Callable[[Family, Any], bool] | None = None,
) -> Iterator[str]:
    """Time every candidate that can run, in bf16. Forward and backward pass of the gated activation share a setting.

    Args:
        device: "cuda", or "cpu" under Triton's interpreter, whose times mean nothing.
        num_tokens: rows.
        chosen: kernels; all by default.
        usable: whether a setting is worth a trial; by default if it compiles for this GPU without spilled registers.

    Yields:
        Lines for the tables of `elementwise_triton` and `cross_entropy_triton`: the fastest setting of each width.
    """
    usable = _compiles if usable is None else usable
    plan = Plan(device, quick=True, copy_rate=1.0)
    for family in families() if chosen is None else chosen:
        times: dict[Any, float] = {}
        for setting in dict.fromkeys((family.present, *family.settings)):
            if setting == family.present or usable(family, setting):
                with mock.patch.dict(family.table, {family.key: setting}):
                    times[setting] = _milliseconds(plan, family, num_tokens)
        best = min(times, key=times.__getitem__)
        yield (
            f"{_TABLES[family.name]}: {family.key}: {best},  # {family.name}: {times[best]:.3f} ms;"
            f" {times[family.present]:.3f} ms with {describe(family.present)}"
        )


def _compiles(family: Family, setting: Any) -> bool:
    major, minor = torch.cuda.get_device_capability()
    return inspect(family, setting, 10 * major + minor) is not None


def _milliseconds(plan: Plan, family: Family, num_tokens: int) -> float:
    kind, _, direction = family.name.partition(" ")
    if kind == "loss":
        case = LossCase(num_tokens // 2, family.key, 576, torch.bfloat16)
        provider = loss.triton_provider()
        return next(row.ms_50 for row in loss.measure_provider(plan, "triton", provider, case) if row.mode == "both")
    name = {"norm": "norm and residual", "gate": "swiglu"}[kind]
    own = Case(name, (num_tokens, family.key), torch.bfloat16)
    rows = elementwise.measure_provider(plan, "triton", elementwise.triton_provider(name), own)
    return next(row.ms_50 for row in rows if row.mode == direction)
