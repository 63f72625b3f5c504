"""The plan of a run: its stages with their first and last steps, counted over the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tolktrain.config import Config
from tolktrain.config.training import StageConfig, TrainConfig


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
    limit = math.inf if train.max_steps is None else train.max_steps
    plans: list[StagePlan] = []
    first = 0
    for index, stage in enumerate(train.stages):
        num_steps = math.ceil(stage.tokens / train.tokens_per_step)
        if first < limit:
            plans.append(StagePlan(index, stage, first, num_steps, int(min(first + num_steps, limit))))
        first += num_steps
        if stage.name == train.last_stage:
            break
    return plans


def remaining(plans: Sequence[StagePlan], step: int) -> list[StagePlan]:
    """The stages that still have steps to run after `step` steps."""
    return [plan for plan in plans if plan.last_step > step]


def beyond_stages(config: Config) -> str | None:
    """The message if `train.max_steps` is beyond the stages; None if it is not."""
    train = config.train
    total = _end(train, len(train.stages))
    if train.max_steps is None or train.max_steps <= total:
        return None
    missing, last = train.max_steps - total, len(train.stages) - 1
    tokens = (total - _end(train, last) + missing) * train.tokens_per_step
    return (
        f"train.max_steps {train.max_steps:,} is beyond the stages, which end after step {total:,}; to train"
        f" {missing:,} more steps, set train.stages.{last}.tokens to {tokens}, or append a stage"
    )


def how_to_extend(config: Config) -> str:
    """What to change so that a complete run continues."""
    train = config.train
    last = [stage.name for stage in train.stages].index(train.last_stage or train.stages[-1].name)
    if train.max_steps is not None and train.max_steps < _end(train, last + 1):
        return f"train.max_steps {train.max_steps:,} ends it before its stages do; raise it, or set it to null"
    if last + 1 < len(train.stages):
        return f"train.last_stage {train.last_stage!r} ends it; name a later stage, or set it to null"
    return f"raise train.stages.{last}.tokens ({train.stages[last].tokens} now), or append a stage"


def _end(train: TrainConfig, count: int) -> int:
    """Number of steps of the first `count` stages."""
    return sum(math.ceil(stage.tokens / train.tokens_per_step) for stage in train.stages[:count])
