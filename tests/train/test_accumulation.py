"""Gradients that are accumulated in few passes, and updates with them, are those of DeepSpeed, bit by bit."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import MIXED, RATES, cut_batch, make_batch, small_config, tensors_of

from tolktrain.config.data import Strategy
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed import sequential
from tolktrain.train.deepspeed.bf16_update import accumulate_in_few_passes
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resolved import ResolvedSettings

CLIP = 0.5


@pytest.fixture
def engines(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Engine]]:
    """Two engines with the same weights: as DeepSpeed accumulates and updates, and as we do."""

    def make() -> list[Engine]:
        config = small_config(
            *(tmp_path, sets, "train.micro_batch_size=2", "train.precision=bf16", "deepspeed.zero_stage=1"),
            f"train.optimizer.clip_grad_norm={CLIP}",
        )
        made = []
        for ours in (False, True):
            with monkeypatch.context() as patch:
                if not ours:
                    patch.setattr(sequential, "accumulate_in_few_passes", lambda engine: None)
                    patch.setattr(sequential, "update_in_few_passes", lambda *_: None)
                model = SmolTolk(Architecture.from_config(config.model), seed=0)
                settings = ResolvedSettings.of(config, model.architecture, initialize())
                made.append(Engine(model, config.train.stages[2], config, initialize(), settings))
        return made

    return make


@pytest.mark.slow
def test_the_same_training(engines: Callable[[], list[Engine]]) -> None:
    """Steps in which a part gets no gradient at all, or from one micro batch only, and a step that is skipped. Some
    gradients are clipped, and some are not."""
    pair = engines()
    clipped = []
    text: list[Strategy] = ["text"] * 8
    late: list[Strategy] = [*text[:6], "speech", "speech"]
    for seed, strategies in enumerate((MIXED, text, late, MIXED, text)):
        batches = cut_batch(make_batch(strategies, seed), 4)
        hooks = []
        if seed == 3:
            hooks = [p.register_hook(lambda grad: grad * math.nan) for e in pair for p in e.model.parameters()]
        results = [engine.train_step(batches, RATES) for engine in pair]
        for hook in hooks:
            hook.remove()
        assert results[0].skipped == results[1].skipped == (seed == 3)
        if seed != 3:
            assert results[0] == results[1]
            clipped.append(results[0].grad_norm > CLIP)
    assert set(clipped) == {True, False}
    theirs, ours = (tensors_of(engine.snapshot()) for engine in pair)
    for kind, tensors in theirs.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, ours[kind][name]), (kind, name)


def test_a_parameter_without_a_gradient_gets_none_of_the_last_step() -> None:
    """Its sum is applied too, because all sums of a group are one flat buffer."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16)) for _ in range(2)]
    flat = torch.zeros(12)
    optimizer = SimpleNamespace(
        bf16_groups=[parameters],
        fp32_groups_gradients=[[flat[:6], flat[6:]]],
        fp32_groups_has_gradients=[[False, False]],
        immediate_grad_update=False,
        update_hp_grads=None,
    )
    accumulate_in_few_passes(SimpleNamespace(optimizer=optimizer))

    def add(*gradients: float | None) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = torch.full_like(parameter, gradient)
        optimizer.update_hp_grads()  # type: ignore[misc]

    add(1.0, 2.0)
    add(None, 3.0)
    assert flat.tolist() == [1.0] * 6 + [5.0] * 6 and optimizer.fp32_groups_has_gradients == [[True, True]]
    optimizer.clear_hp_grads()
    assert optimizer.fp32_groups_has_gradients == [[False, False]]
    add(None, 4.0)
    assert flat.tolist() == [0.0] * 6 + [4.0] * 6 and optimizer.fp32_groups_has_gradients == [[False, True]]
    add(0.5, None)
    assert flat.tolist() == [0.5] * 6 + [4.0] * 6 and optimizer.fp32_groups_has_gradients == [[True, True]]
    assert all(parameter.grad is None for parameter in parameters)
