"""Runs one stage: creates its engine and data loader, and runs its steps."""

import contextlib
import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tolktrain.checkpoint.random_states import restore_random_states
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.signals import StopRaised
from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.data.batch import Batch
from tolktrain.data.identity import DataIdentity
from tolktrain.data.loader import StageLoader, validation_batches
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.rollbacks import Rollback, skipped_steps
from tolktrain.train.batch_consistency import consistent_batches
from tolktrain.train.callbacks.stopping import StopOnRequest
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.loop import Callback, StageRun, run_stage, timed
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.resume import Position
from tolktrain.train.rollback.divergence import Incident
from tolktrain.train.stages import StagePlan
from tolktrain.vocabulary import Vocabulary


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share."""

    config: Config
    layout: Layout
    model_builder: ModelBuilder
    vocabulary: Vocabulary
    data_identity: DataIdentity
    saver: CheckpointSaver
    settings: ResolvedSettings
    progress: Progress
    machines: str  # summary of the health check
    stopping: StopOnRequest


def run_one_stage(
    context: RunContext,
    plan: StagePlan,
    position: Position,
    rollbacks: Sequence[Rollback],
    built: list[SmolTolk],
    callbacks: Sequence[Callback],
) -> tuple[bool, Incident | None]:
    """Run a stage from `position` on; its model is removed from `built` if there is one.

    Returns whether it was stopped, and the incident if training has diverged.
    """
    with contextlib.ExitStack() as opened:
        try:
            # No step is lost: all that are done are in the checkpoint of `position`.
            with context.stopping.interrupting(unsaved=False):
                engine = _start_engine(context, plan, position, built)
                opened.callback(gc.collect)
                opened.callback(engine.close)
                loader = opened.enter_context(_open_loader(context, plan, position, rollbacks))
        except StopRaised:
            context.stopping.before_training()
            return True, None
        run = StageRun(plan, engine, position.step, progress=context.progress)
        run.interrupting = partial(context.stopping.interrupting, unsaved=True)
        with (
            context.progress.failing(),
            context.progress.hinting(loader.describe_wait),
            loader.naming_ended_processes(),
        ):
            _set_random_states(context.config, position)
            loader.start()
            batches = timed(loader, run)
            check_every = context.config.parallel.check_batches
            run_stage(run, consistent_batches(batches, context.layout, position.step, check_every), callbacks)
    return run.stop, run.incident


def _start_engine(context: RunContext, plan: StagePlan, position: Position, built: list[SmolTolk]) -> Engine:
    if not built:
        context.progress.at("building the model")
        built.append(context.model_builder.build(context.layout, position.folder, context.settings))
    model = built.pop()
    # A step may have many micro batches.
    model.register_forward_pre_hook(lambda *_: context.progress.touch())
    context.progress.at(f"setting up the stage {plan.name!r}")
    return context.model_builder.start(
        model, plan.config, context.layout, context.settings, position, position.is_inside(plan)
    )


def _open_loader(
    context: RunContext, plan: StagePlan, position: Position, rollbacks: Sequence[Rollback]
) -> StageLoader:
    config, layout = context.config, context.layout
    return StageLoader(
        config,
        plan.config.mixture,
        context.vocabulary,
        seed=config.run.seed + 1_000_003 * plan.index,  # so that later stages have other sequences
        data_rank=layout.data_rank,
        data_size=layout.data_size,
        step=position.step - plan.first_step,
        skipped=skipped_steps(rollbacks, plan.name),
        pin_memory=layout.device.type == "cuda",
    )


def _set_random_states(config: Config, position: Position) -> None:
    """Restore the random states of the checkpoint, after random numbers were drawn to set up the stage."""
    if position.folder is None:
        random.seed(config.run.seed)
        np.random.seed(config.run.seed % 2**32)
        torch.manual_seed(config.run.seed)
    else:
        restore_random_states(position.state["random_states"])


class ValidationSource:
    """This rank's validation batches, which are always the same and created once."""

    def __init__(self, context: RunContext) -> None:
        self._setting = context
        self._made: dict[tuple[str, Strategy], list[Batch]] = {}

    def __call__(self, dataset: str, strategy: Strategy) -> list[Batch]:
        if (dataset, strategy) not in self._made:
            config, layout = self._setting.config, self._setting.layout
            with self._setting.stopping.limited():
                batches = validation_batches(
                    config.data.sets[dataset],
                    strategy,
                    config.train.validation.sequences,
                    vocabulary=self._setting.vocabulary,
                    sequence_length=config.train.sequence_length,
                    interleaving=config.data.interleaving,
                    micro_batch_size=config.train.micro_batch_size,
                    data_rank=layout.data_rank,
                    data_size=layout.data_size,
                )
                self._made[dataset, strategy] = list(batches)
        return self._made[dataset, strategy]
