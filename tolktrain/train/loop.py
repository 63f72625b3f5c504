"""The training loop of one stage."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from tolktrain.cluster.progress import Progress
from tolktrain.cluster.signals import StopRaised
from tolktrain.data.batch import Batch
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.loss import StepResult
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.optimizer import LearningRates, learning_rates_at
from tolktrain.train.rollback.divergence import Incident
from tolktrain.train.stages import StagePlan


@dataclass
class StageRun:
    """The state of a running stage. Callbacks read it, and may set `stop`."""

    plan: StagePlan
    engine: Engine
    step: int  # steps done since the beginning of the run
    stop: bool = False  # stop after this step; the same on all ranks
    incident: Incident | None = None  # training has diverged: stop at once; the same on all ranks
    seconds: float = 0.0  # of the last step, including waiting for data
    data_seconds: float = 0.0  # of the last step, waiting for this rank's own loader
    learning_rates: LearningRates = field(default_factory=lambda: LearningRates(0.0, 0.0))  # of the last step
    result: StepResult | None = None  # of the last step
    counts: StepCounts = StepCounts()  # of this rank's batches in the last step
    notes: dict[str, Any] = field(default_factory=dict)  # further entries of the last step's line of metrics
    progress: Progress = field(default_factory=Progress)  # of this rank, for its watchdog
    interrupting: Callable[[], AbstractContextManager[None]] = nullcontext  # in it, a request raises StopRaised

    @property
    def step_in_stage(self) -> int:
        """Steps done in this stage."""
        return self.step - self.plan.first_step

    @property
    def stage_complete(self) -> bool:
        """Whether all steps of the stage are done."""
        return self.step_in_stage == self.plan.num_steps

    @property
    def at_last_step(self) -> bool:
        """Whether this is the last step of this stage in this start."""
        return self.stop or self.step == self.plan.last_step


class Callback(Protocol):
    """Hooks into training. Called on all ranks, in the order of the list of callbacks."""

    def on_stage_start(self, run: StageRun) -> None:
        """Called before the first step of a stage, also if the stage is resumed."""

    def on_step(self, run: StageRun) -> None:
        """Called after each step."""

    def on_interrupt(self, run: StageRun) -> None:
        """Called when a request to stop has interrupted the run while it waited for the data of the next step."""

    def on_rollback(self, step: int) -> None:
        """Called when the run is rolled back to the checkpoint of `step`."""

    def close(self) -> None:
        """Called when training ends, also after an error."""


def run_stage(run: StageRun, batches: Iterator[list[Batch]], callbacks: Sequence[Callback]) -> None:
    """Run the steps of a stage from `run.step` on, until its end or until a callback asks to stop."""
    for callback in callbacks:
        callback.on_stage_start(run)
    while not run.at_last_step:
        started = time.perf_counter()
        run.progress.at_step(run.plan.name, run.step + 1, "waiting for data")
        run.learning_rates = learning_rates_at(run.plan.config, run.step_in_stage, run.plan.num_steps)
        try:
            with run.interrupting():
                batch = next(batches)
        except StopRaised:
            for callback in callbacks:
                callback.on_interrupt(run)
            return
        run.progress.at("forward, backward and update")
        run.result = run.engine.train_step(batch, run.learning_rates, must_score=run.step == 0)
        run.seconds = time.perf_counter() - started
        run.counts = StepCounts.of(batch)
        run.step += 1
        run.notes = {}
        run.progress.at("after the update")
        for callback in callbacks:
            callback.on_step(run)
            if run.incident is not None:
                return  # the following callbacks would validate and save a state that is rolled back


def timed(batches: Iterable[list[Batch]], run: StageRun) -> Iterator[list[Batch]]:
    """The same batches; sets `run.data_seconds` to the time spent waiting for the last ones."""
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        run.data_seconds = time.perf_counter() - started
        yield batch
