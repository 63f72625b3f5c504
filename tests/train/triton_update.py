"""The update of a single rank in Triton, which reads the last gradients where they are, is that in PyTorch.

Run by test_in_triton.py, as the programs in tests/kernels.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MIXED, RATES, cut_batch, make_batch, small_config, tensors_of

from tolktrain.config.data import Strategy
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed import sequential
from tolktrain.train.deepspeed.bf16_update import update_in_few_passes
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resolved import ResolvedSettings

CLIP = 0.5
TEXT: list[Strategy] = ["text"] * 8
LATE: list[Strategy] = [*TEXT[:6], "speech", "speech"]

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the model is on the CPU: the kernels need the interpreter"
)


@pytest.fixture
def engines(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Engine]]:
    """Two engines with the same weights, whose models are computed by PyTorch; only the update of one is in Triton."""

    def in_triton(engine: Any, _: object, lone: Any) -> None:
        assert lone is not None
        update_in_few_passes(engine, "triton", lone)

    def make(micro_batch_size: int) -> list[Engine]:
        config = small_config(
            *(tmp_path, sets, f"train.micro_batch_size={micro_batch_size}", "train.precision=bf16"),
            *("deepspeed.zero_stage=1", f"train.optimizer.clip_grad_norm={CLIP}", "kernels.backend=torch"),
        )
        made = []
        for update in (update_in_few_passes, in_triton):
            with monkeypatch.context() as patch:
                patch.setattr(sequential, "update_in_few_passes", update)
                model = SmolTolk(Architecture.from_config(config.model), seed=0)
                settings = ResolvedSettings.of(config, model.architecture, initialize())
                made.append(Engine(model, config.train.stages[2], config, initialize(), settings))
        return made

    return make


@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_the_same_updates(engines: Callable[[int], list[Engine]], num_micro_batches: int) -> None:
    """Steps in which a part gets no gradient at all, or from the last micro batch only, and a step that is skipped.
    Some gradients are clipped, and some are not."""
    pair = engines(8 // num_micro_batches)
    clipped = []
    for seed, strategies in enumerate((MIXED, TEXT, LATE, MIXED, TEXT)):
        batches = cut_batch(make_batch(strategies, seed), num_micro_batches)
        hooks = []
        if seed == 3:
            hooks = [p.register_hook(lambda grad: grad * math.nan) for e in pair for p in e.model.parameters()]
        torch_result, triton_result = (engine.train_step(batches, RATES) for engine in pair)
        for hook in hooks:
            hook.remove()
        assert torch_result.skipped == triton_result.skipped == (seed == 3)
        assert all(parameter.grad is None for parameter in pair[1].model.parameters())
        if seed != 3:
            assert triton_result.grad_norm == pytest.approx(torch_result.grad_norm, rel=1e-6)
            clipped.append(torch_result.grad_norm > CLIP)
        expected, found = (tensors_of(engine.snapshot()) for engine in pair)
        for kind, tensors in expected.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(found[kind][name], tensor, rtol=1e-5, atol=1e-7, msg=f"{kind} {name}")
        with torch.no_grad():  # the interpreter cuts off where it should round
            for own, other in zip(pair[1].model.parameters(), pair[0].model.parameters(), strict=True):
                own.copy_(other)
    assert set(clipped) == {True, False}
