"""The training loop of one stage."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tolktrain.cluster.progress import Progress
from tolktrain.data.batch import Batch
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.loss import StepResult
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.optimizer import LearningRates, learning_rates_at
from tolktrain.train.rollback.divergence import Incident
from tolktrain.train.stages import StagePlan


@dataclass
class StageRun:
    """A stage while it runs; callbacks read it, and may set `stop`."""

    plan: StagePlan
    engine: Engine
    step: int  # steps done since the beginning of the run
    stop: bool = False  # leave after this step; the same on all ranks
    incident: Incident | None = None  # training has diverged: leave at once; the same on all ranks
    seconds: float = 0.0  # of the last step, waiting for data included
    data_seconds: float = 0.0  # of the last step, waiting for this rank's own loader
    learning_rates: LearningRates = field(default_factory=lambda: LearningRates(0.0, 0.0))  # of the last step
    result: StepResult | None = None  # of the last step
    counts: StepCounts = StepCounts()  # of this rank's batches in the last step
    notes: dict[str, Any] = field(default_factory=dict)  # what else the last step's line of metrics is to say
    progress: Progress = field(default_factory=Progress)  # what this rank is doing, for its watch

    @property
    def step_in_stage(self) -> int:
        """Steps done in this stage."""
        return self.step - self.plan.first_step

    @property
    def stage_complete(self) -> bool:
        """Whether the stage has been run in full length."""
        return self.step_in_stage == self.plan.num_steps

    @property
    def at_last_step(self) -> bool:
        """Whether no further step of this stage will be run now."""
        return self.stop or self.step == self.plan.last_step


class Callback(Protocol):
    """Something that happens along the way. Called on all ranks, in the order of the list of callbacks."""

    def on_stage_start(self, run: StageRun) -> None:
        """Before the first step of a stage, also when it is resumed in its middle."""

    def on_step(self, run: StageRun) -> None:
        """After each step."""

    def on_rollback(self, step: int) -> None:
        """When the run goes back to the checkpoint of `step`."""

    def close(self) -> None:
        """When training ends, also by an error."""


def run_stage(run: StageRun, batches: Iterator[list[Batch]], callbacks: Sequence[Callback]) -> None:
    """Run the steps of a stage from `run.step` on, until its end or until a callback asks to stop."""
    for callback in callbacks:
        callback.on_stage_start(run)
    while not run.at_last_step:
        started = time.perf_counter()
        run.progress.at_step(run.plan.name, run.step + 1, "waiting for data")
        run.learning_rates = learning_rates_at(run.plan.config, run.step_in_stage, run.plan.num_steps)
        batch = next(batches)
        run.progress.at("forward, backward and update")
        run.result = run.engine.train_step(batch, run.learning_rates)
        run.seconds = time.perf_counter() - started
        run.counts = StepCounts.of(batch)
        run.step += 1
        run.notes = {}
        run.progress.at("after the update")
        for callback in callbacks:
            callback.on_step(run)
            if run.incident is not None:
                return  # the callbacks after this one would validate and save what is to be undone


def timed(batches: Iterable[list[Batch]], run: StageRun) -> Iterator[list[Batch]]:
    """The same batches, while `run.data_seconds` says how long the last ones were waited for."""
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        run.data_seconds = time.perf_counter() - started
        yield batch
