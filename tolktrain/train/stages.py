"""The plan of a run: its stages with their first and last steps, counted over the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tolktrain.config import Config
from tolktrain.config.training import StageConfig


@dataclass(frozen=True)
class StagePlan:
    """One stage with its position in the run. Steps are counted over the whole run, from 0."""

    index: int
    config: StageConfig
    first_step: int
    num_steps: int  # of the whole stage; the schedule spans them even if the run ends earlier
    last_step: int  # the first step that is not run any more, by the stage's or the run's end

    @property
    def name(self) -> str:
        """Name in metrics."""
        return self.config.name


def plan_stages(config: Config) -> list[StagePlan]:
    """The stages of the run; `train.last_stage` omits later stages, `train.max_steps` may also shorten one."""
    train = config.train
    tokens_per_step = train.global_batch_size * train.sequence_length
    limit = math.inf if train.max_steps is None else train.max_steps
    plans: list[StagePlan] = []
    first = 0
    for index, stage in enumerate(train.stages):
        num_steps = math.ceil(stage.tokens / tokens_per_step)
        if first < limit:
            plans.append(StagePlan(index, stage, first, num_steps, int(min(first + num_steps, limit))))
        first += num_steps
        if stage.name == train.last_stage:
            break
    return plans


def remaining(plans: Sequence[StagePlan], step: int) -> list[StagePlan]:
    """The stages that still have steps to run after `step` steps."""
    return [plan for plan in plans if plan.last_step > step]
