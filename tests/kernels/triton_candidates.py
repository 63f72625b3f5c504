"""Settings that a GPU may choose compute the same as the present ones. Run by test_in_triton.py, as the other programs.

In the interpreter, only the shape of a tile matters, so that one setting of each shape is tried.
"""

import os
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from tolktrain_kernels import cross_entropy_triton, elementwise_triton
from tolktrain_kernels.bench import loss_check
from tolktrain_kernels.bench.candidates import Family, families
from tolktrain_kernels.bench.elementwise_check import Case, deviations
from tolktrain_kernels.bench.tune_rows import tune_rows
from tolktrain_kernels.elementwise_triton import Setting

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
ROWS = 5  # not a multiple of the rows of a program
WIDTHS = (576, 1536)  # of the smallest model
LOSS = (5, 4097, 64)  # rows, ids, width: the text head is slow in the interpreter
KEPT_LOSS = (3, 16384, 16)  # of whole blocks


def tile_of(setting: Any) -> Any:
    return replace(setting, num_warps=1, programs_per_sm=0, stages=3) if isinstance(setting, Setting) else setting[0]


CASES = [
    (family, setting)
    for family in families()
    if family.key in WIDTHS
    for setting in {tile_of(setting): setting for setting in family.settings}.values()
]


@pytest.mark.parametrize(("family", "setting"), CASES, ids=lambda item: getattr(item, "name", None) or str(item))
def test_a_candidate_equals_float64(family: Family, setting: Setting) -> None:
    kernel = "swiglu" if family.name.startswith("gate") else "norm and residual"
    found = []
    with mock.patch.dict(family.table, {family.key: setting}):
        for dtype in (torch.float32, torch.bfloat16):
            case = Case(kernel, (ROWS, family.key), dtype)
            found += [d for d in deviations(case, DEVICE) if not d.is_within(dtype)]
    assert not found


@pytest.mark.parametrize(
    ("block", "keeps"), sorted({(s.block, s.keeps) for f in families() if f.name[:4] == "loss" for s in f.settings})
)
def test_a_block_of_the_loss_equals_float64(block: int, keeps: bool) -> None:
    rows, ids, width = KEPT_LOSS if keeps else LOSS
    with mock.patch.dict(cross_entropy_triton.BLOCKS, {ids: cross_entropy_triton.Setting(block, 4, keeps)}):
        for dtype in (torch.bfloat16,) if keeps else (torch.float32, torch.bfloat16):
            case = loss_check.Case(rows, ids, width, dtype)
            found = loss_check.deviations(case, DEVICE, "triton")
            assert not [deviation for deviation in found if not deviation.is_within(dtype)]


def test_tuning_tries_the_usable_settings_and_names_one_for_the_table() -> None:
    tried = []
    present, other = Setting(2, 64, 1), Setting(4, 64, 1)
    table = elementwise_triton.NORM_SETTINGS
    family = Family("norm forward", 64, table, present, (other, Setting(8, 64, 1)), lambda: pytest.fail("built"))

    def usable(_: Family, setting: Setting) -> bool:
        tried.append(setting)
        return setting == other

    (line,) = tune_rows(DEVICE, 16, [family], usable)
    assert line.startswith((f"NORM_SETTINGS: 64: {present},", f"NORM_SETTINGS: 64: {other},")), line
    assert tried == list(family.settings) and not table
