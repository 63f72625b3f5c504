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
from tolktrain.data.skipping import SkippedSteps
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.paths import RunPaths
from tolktrain.runs.rollbacks import Rollback, skipped_steps
from tolktrain.train.batch_consistency import consistent_batches
from tolktrain.train.callbacks.stopping import StopOnRequest
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.loop import Callback, StageRun, run_stage, timed
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.reference import STATE_KEY, ReferencePass, StoredReference, digest_of_initial
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
    step, skipped = position.step - plan.first_step, skipped_steps(rollbacks, plan.name)
    with contextlib.ExitStack() as opened:
        try:
            # No step is lost: all that are done are in the checkpoint of `position`.
            with context.stopping.interrupting(unsaved=False):
                engine = _start_engine(context, plan, position, built)
                opened.callback(gc.collect)
                opened.callback(engine.close)
                if plan.config.has_preferences and plan.config.preference.reference == "initial":
                    engine.reference = _reference(context, plan, position, rollbacks, engine)
                    if engine.reference is None:
                        return True, None
                loader = opened.enter_context(_open_loader(context, plan, step, skipped))
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


def _reference(
    context: RunContext, plan: StagePlan, position: Position, rollbacks: Sequence[Rollback], engine: Engine
) -> StoredReference | None:
    """The frozen reference of a stage of preferences; None if a stop was requested."""
    config, layout, beginning = context.config, context.layout, context.model_builder.beginning
    is_inside = position.is_inside(plan)
    if is_inside:
        digest = str(position.state.get(STATE_KEY))
    else:
        initial_digest = None if beginning is None else beginning.digest
        digest = digest_of_initial(config, position, initial_digest, layout)
    validation: list[Batch] = []
    if "preference" in config.train.validation.strategies:
        batches = ValidationSource(context)
        validation = [batch for name in config.train.validation.sets for batch in batches(name, "preference")]
    computing = ReferencePass(
        RunPaths.of(config).root,
        *(plan, engine, layout, digest, is_inside),
        *(context.progress, context.stopping.before_training, config.train.global_batch_size),
    )
    # A rollback moves the stage to later data.
    num_steps = skipped_steps(rollbacks, plan.name).data_step(plan.num_steps - 1) + 1
    return computing.run(num_steps, lambda step: _open_loader(context, plan, step), validation)


def _open_loader(context: RunContext, plan: StagePlan, step: int, skipped: SkippedSteps | None = None) -> StageLoader:
    """From a step of the stage on."""
    config, layout = context.config, context.layout
    return StageLoader(
        config,
        plan.config.mixture,
        context.vocabulary,
        seed=config.run.seed + 1_000_003 * plan.index,  # so that later stages have other sequences
        data_rank=layout.data_rank,
        data_size=layout.data_size,
        step=step,
        skipped=skipped,
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
