"""The microbenchmark of the loss: what it counts and what it measures."""

import dataclasses
import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import tolktrain_kernels.bench.__main__ as bench
from tolktrain_kernels import cross_entropy
from tolktrain_kernels.bench import loss
from tolktrain_kernels.bench.loss_check import Case, deviations, make_case
from tolktrain_kernels.bench.measure import Plan

QUICK = Plan("cpu", quick=True, copy_rate=1e9)


def test_least_bytes_are_those_of_inputs_and_outputs() -> None:
    case = Case(10, 100, 4, torch.bfloat16)
    tensors, ids, terms = (10 + 100) * 4 * 2, 10 * 8, 10 * 4
    assert loss.least_bytes("forward", case) == tensors + ids + terms
    assert loss.least_bytes("both", case) == 2 * tensors + ids + terms


def test_heads_of_every_model_are_measured() -> None:
    heads = {(case.vocabulary, case.width) for case in loss.cases(Plan("cuda", quick=False, copy_rate=1e9))}
    assert heads == {(ids, width) for ids in (49152, 502) for width in (576, 960, 2048)}
    quick, full = (loss.cases(dataclasses.replace(QUICK, quick=quick)) for quick in (True, False))
    assert [case.num_rows * 16 for case in quick] == [case.num_rows for case in full]


def test_chunks_take_less_memory_than_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(256, 1000, 16, torch.float32)
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 32 * 1000)
    found = {
        (row.provider, row.mode): row
        for name, provider in loss.providers("cpu").items()
        for row in loss.measure_provider(QUICK, name, provider, case)
    }
    assert list(found) == [(name, mode) for name in ("full logits", "chunks") for mode in ("forward", "both")]
    logits = 256 * 1000 * 4
    assert found["full logits", "forward"].peak_bytes >= 2 * logits  # and their logarithms
    assert found["full logits", "both"].peak_bytes >= 2 * logits
    # A chunk's logits and their logarithms, and some numbers for each row; both gradients, and both scaled.
    chunk, numbers, gradients = logits / 8, 32 * 256, 4 * (256 + 1000) * 16
    assert 2 * chunk < found["chunks", "forward"].peak_bytes < 2 * chunk + numbers
    assert 2 * chunk + gradients < found["chunks", "both"].peak_bytes < 2 * chunk + 2 * gradients + numbers


def test_liger_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "input weight target bias ce_weight ignore_index lse_square_scale label_smoothing reduction softcap"
    names += " return_z_loss accum_dtype"
    given: dict[str, Any] = {}

    class LigerFusedLinearCrossEntropyFunction:
        @staticmethod
        def apply(*arguments: Any) -> tuple[Tensor, None]:
            given.update(zip(names.split(), arguments, strict=True))
            return torch.zeros(()), None

    module = ModuleType("liger_kernel.ops")
    module.LigerFusedLinearCrossEntropyFunction = LigerFusedLinearCrossEntropyFunction  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", module)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    hidden, weight, targets = make_case(Case(3, 5, 4, torch.float32))
    assert loss._liger(hidden, weight, targets)[0] == 0
    assert given["input"] is hidden and given["weight"] is weight and given["target"] is targets
    assert given["reduction"] == "sum" and given["accum_dtype"] == torch.float32 and given["softcap"] is None


def test_a_case_says_what_it_is() -> None:
    case = Case(4, 9, 2, torch.bfloat16, ignored=True)
    assert str(case) == "4 x 2 over 9, bfloat16, some ignored"
    assert make_case(case)[2].tolist()[::3] == [8, 8]
    assert all(deviation.ours == deviation.eager for deviation in deviations(case, "cpu", "torch")[:2])


def test_it_is_one_of_the_benchmarks() -> None:
    assert "loss" in bench.MODULES and importlib.import_module("tolktrain_kernels.bench.loss").NOTE
