"""AdamW groups and the schedule of their learning rates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tolktrain.config.training import OptimizerConfig, ScheduleConfig, StageConfig
from tolktrain.libraries.compiler import spare_optimizers
from tolktrain.model.parameter_layout import ParameterView


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of one step."""

    backbone: float  # backbone, text tables and pooling
    speech: float  # speech tables and adapters
    lora: float | None = None  # low-rank updates; as the backbone's if None

    def of(self, group: str) -> float:
        """Learning rate of a parameter group."""
        if group == "lora" and self.lora is not None:
            return self.lora
        return self.speech if group == "speech" else self.backbone


def schedule_factor(schedule: ScheduleConfig, step: int, num_steps: int) -> float:
    """Fraction of the full learning rate at `step` (from 0) of a stage of `num_steps`: a trapezoid.

    The factor of the first step is 1 / warmup_steps; that of the last is final_fraction if the stage has a decay.
    """
    assert 0 <= step < num_steps
    rising = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    into_decay = step + 1 - (num_steps - schedule.decay_steps)
    if into_decay <= 0:
        return rising
    falling = 1.0 - (1.0 - schedule.final_fraction) * into_decay / schedule.decay_steps
    return min(rising, falling)


def learning_rates_at(stage: StageConfig, step: int, num_steps: int) -> LearningRates:
    """All learning rates at `step` (from 0) of the stage: a pure function, so nothing needs to be saved."""
    factor = schedule_factor(stage.schedule, step, num_steps)
    speech = stage.learning_rate if stage.speech_learning_rate is None else stage.speech_learning_rate
    lora = stage.lora_learning_rate
    return LearningRates(stage.learning_rate * factor, speech * factor, None if lora is None else lora * factor)


def freeze(model: nn.Module, views: Mapping[str, ParameterView], trainable: Iterable[str]) -> None:
    """Freeze all parameters except those of the groups `trainable`."""
    groups = set(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(views[name].group in groups)


GroupKey = tuple[str, bool]
"""The learning rate of a parameter ("backbone", "speech" or "lora"), and whether it decays."""


def group_keys(stage: StageConfig) -> list[GroupKey]:
    """The groups of a stage, the same on all pipeline stages."""
    keys: list[GroupKey] = [("backbone", False), ("backbone", True), ("speech", False), ("speech", True)]
    return [*keys, ("lora", True)] if "lora" in stage.trainable else keys


def trained_groups(model: nn.Module, views: Mapping[str, ParameterView]) -> dict[GroupKey, list[nn.Parameter]]:
    """The trained parameters by group; groups without any are omitted."""
    members: dict[GroupKey, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            view = views[name]
            rate = view.group if view.group in ("speech", "lora") else "backbone"
            members.setdefault((rate, view.decays), []).append(parameter)
    return members


def in_buckets(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Consecutive parameters together, as many as have at most `size` elements, but at least one.

    Buckets are filled from the end, where the backward pass begins: the first one, which nothing hides, is not full.
    """
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        if not buckets or parameter.numel() > room:
            buckets.append([])
            room = size
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return [bucket[::-1] for bucket in reversed(buckets)]


def build_optimizer(
    members: Mapping[GroupKey, list[nn.Parameter]], config: OptimizerConfig, bucket_size: int | None = None
) -> torch.optim.AdamW:
    """AdamW over groups of parameters; the "rate" entry of a group names its learning rate.

    With `bucket_size`, consecutive parameters of a group form groups of at most that many elements, or one parameter.
    """
    assert members, "a stage without trainable parameters"
    groups: list[dict[str, Any]] = [
        {"params": bucket, "rate": rate, "weight_decay": _decay(config, rate) if decays else 0.0}
        for (rate, decays), parameters in sorted(members.items())
        for bucket in ([parameters] if bucket_size is None else in_buckets(parameters, bucket_size))
    ]
    spare_optimizers()
    first, second = config.betas
    return torch.optim.AdamW(groups, lr=0.0, betas=(first, second), eps=config.eps, fused=True)


def _decay(config: OptimizerConfig, rate: str) -> float:
    return config.lora_weight_decay if rate == "lora" else config.weight_decay


def set_learning_rates(optimizer: torch.optim.Optimizer, learning_rates: LearningRates) -> None:
    """Set the learning rate of every group for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rates.of(group["rate"])
