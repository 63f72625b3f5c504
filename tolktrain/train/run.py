"""Runs a training from its configuration to its exit code."""

import contextlib
import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.health.check import check_health
from tolktrain.cluster.heartbeat import Heartbeat
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.signals import EXIT_PREEMPTED, StopRaised
from tolktrain.cluster.watch.watchdog import collective_timeout
from tolktrain.config import Config
from tolktrain.data.capacity import check_capacity
from tolktrain.data.checks import check_data
from tolktrain.data.identity import DataIdentity
from tolktrain.model.counts import count_by_group
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.runs.changes import Change
from tolktrain.runs.rollbacks import read_rollbacks
from tolktrain.train.callbacks.checkpointing import Checkpointing
from tolktrain.train.callbacks.guard import DivergenceGuard
from tolktrain.train.callbacks.heartbeat import HeartbeatNotes, beating
from tolktrain.train.callbacks.learning import LearningCheck
from tolktrain.train.callbacks.progress import Display
from tolktrain.train.callbacks.stopping import Stop, StopOnRequest
from tolktrain.train.callbacks.straggler import Straggler
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.callbacks.validation import Validation
from tolktrain.train.deepspeed.groups import check_same_groups
from tolktrain.train.determinism import set_determinism
from tolktrain.train.disk_space import needed_space
from tolktrain.train.identity import architecture_of, check_data_identity, text_eos_of
from tolktrain.train.initial_weights import Beginning, refuse_other_beginning
from tolktrain.train.loop import Callback
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.open_run import OpenRun, open_run, saving
from tolktrain.train.process import set_threads
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.resume import Position
from tolktrain.train.rollback.roll_back import roll_back
from tolktrain.train.stage_runner import RunContext, ValidationSource, run_one_stage
from tolktrain.train.stages import StagePlan, beyond_stages, how_to_extend, plan_stages, remaining
from tolktrain.train.utilization import Utilization

EXIT_DONE = 0

logger = logging.getLogger(__name__)


def train(config: Config, stop: Stop | None = None, progress: Progress | None = None) -> int:
    """Train from the beginning, or continue from the latest valid checkpoint; collective under torchrun or srun.

    Args:
        config: of the run.
        stop: a request to stop, read after each step and several times before the first one. In a single process, a
            `StopRequest` also interrupts waiting for data.
        progress: where this rank's progress is reported, for its watchdog.

    Returns:
        0 if the run is complete, 75 if it was stopped and must be started again.

    Raises:
        UserError: bad input, a run directory of another configuration, lost or foreign checkpoints, divergence.
    """
    plans = plan_stages(config)
    ProcessEnvironment.detect().export()
    set_determinism(config.train)
    progress = progress or Progress()
    layout = _join(config, progress)
    progress.at("opening the run directory")
    set_threads(layout, config.train.cpu_threads)
    check_same_groups(layout)
    stopping = StopOnRequest(stop, layout)
    with open_run(config, layout, progress) as directory:
        if layout.rank == 0 and (message := beyond_stages(config)) is not None:
            logger.warning("%s", message)
        architecture = architecture_of(config, directory.position, directory.previous, layout)
        model_builder = ModelBuilder.of(config, architecture)
        settings = ResolvedSettings.of(config, architecture, layout, directory.deepspeed)
        if directory.position.folder is not None:
            refuse_other_beginning(config, directory.path, layout)
        copying = saving(config, layout, directory, progress, lambda: stopping.must_stop)
        if not remaining(plans, directory.position.step):
            _log(directory.begin(settings.deepspeed))
            if layout.rank == 0:
                done = f"{directory.path} is complete: {directory.position.step} steps are done; nothing to train"
                print(f"{done}; to continue it: {how_to_extend(config)}")
            with stopping.noted(), copying:  # the last checkpoint, if its copy was interrupted
                return EXIT_DONE
        with beating(config, layout, progress, directory) as heartbeat:
            try:
                if stopping.before_training():
                    return _stop_early(stopping, heartbeat)
                restarts = config.run.restart and directory.position.folder is None
                space = partial(
                    needed_space,
                    count_by_group(architecture),
                    config,
                    layout.world_size,
                    directory.store.folder,
                    restarts,
                )
                machines = check_health(config, layout, directory.path, space, progress)
                progress.at("checking the data")
                vocabulary = check_data(config, architecture.text_vocab_size, text_eos=text_eos_of(directory.position))
                identity = DataIdentity.of(config, vocabulary.text_eos)
                check_data_identity(config, identity, directory.position, directory.previous, layout)
                check_capacity(config, layout.data_rank, layout.data_size)
                beginning = Beginning(config, directory.path, vocabulary.tokenizers, directory.is_new)
                model_builder = replace(model_builder, beginning=beginning)
                # After the last step, copies of checkpoints are waited for with signals noted, too.
                with contextlib.ExitStack() as steps, copying as saver:
                    context = RunContext(
                        *(config, layout, model_builder, vocabulary, identity),
                        *(saver, settings, progress, machines, stopping),
                    )
                    return _run_stages(context, plans, directory, heartbeat, steps)
            except StopRaised:
                if not stopping.is_alone:
                    raise  # the watchdog ends the other ranks
                stopping.before_training()
                return _stop_early(stopping, heartbeat)


def _join(config: Config, progress: Progress) -> Layout:
    """Join the other processes."""
    progress.at("joining the other processes")
    parallel = config.parallel
    layout = initialize(
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        parallel.sequence_parallel,
        timeout=collective_timeout(parallel.hang_timeout_seconds),
    )
    progress.settle(f"pipeline {layout.pipeline_rank}, tensor {layout.tensor_rank}, data {layout.data_rank}")
    return layout


def _run_stages(
    context: RunContext,
    plans: Sequence[StagePlan],
    directory: OpenRun,
    heartbeat: Heartbeat,
    steps: contextlib.ExitStack,
) -> int:
    layout, position, stopping = context.layout, directory.position, context.stopping
    context.progress.at("building the model")
    # Raises if the backbone cannot be read. Passed in a list, because any other reference would keep its memory.
    built = [context.model_builder.build(layout, position.folder, context.settings)]
    if stopping.before_training():
        return _stop_early(stopping, heartbeat)
    steps.enter_context(stopping.noted())
    changes = directory.begin(context.settings.deepspeed)
    beginning = context.model_builder.beginning
    if beginning is not None:
        on_rank_zero(layout.rank, beginning.write)
    utilization = Utilization.of(context.model_builder.architecture, context.config, layout)
    metrics = MetricsLog(context.config, directory.path, position.step, layout.rank, utilization)
    display = Display(context.config, plans, metrics, layout)
    callbacks = _callbacks(context, directory, metrics, display, heartbeat)
    try:
        _show_header(context, display, directory, changes)
        stopped, position = _run_all(context, plans, directory, built, callbacks)
    finally:
        for callback in reversed(callbacks):
            callback.close()
    if stopped and remaining(plans, position.step):
        _say_stopped(display, position.step, stopping, heartbeat)
        return EXIT_PREEMPTED
    display.say(f"trained: {position.step:,} steps, in {directory.path}")
    heartbeat.end("done")
    return EXIT_DONE


def _run_all(
    context: RunContext,
    plans: Sequence[StagePlan],
    directory: OpenRun,
    built: list[SmolTolk],
    callbacks: Sequence[Callback],
) -> tuple[bool, Position]:
    """Run stages until all are done or a callback requests a stop; roll back after a divergence.

    The first model is removed from `built`. Returns whether the run was stopped, and the position.
    """
    config, layout, position = context.config, context.layout, directory.position
    stopped = False
    while not stopped and (stages := remaining(plans, position.step)):
        rollbacks = on_rank_zero(layout.rank, lambda: read_rollbacks(directory.path))
        stopped, incident = run_one_stage(context, stages[0], position, rollbacks, built, callbacks)
        gc.collect()  # the next model needs the memory
        context.saver.wait()
        if incident is None:
            # As rank 0 sees the folder: other nodes may be shown an old listing of it.
            position = Position.shared(on_rank_zero(layout.rank, directory.store.latest), layout)
            continue
        context.progress.at("rolling back")
        position = Position.shared(roll_back(config, directory, layout, stages[0], incident), layout)
        for callback in callbacks:
            callback.on_rollback(position.step)
    return stopped, position


def _callbacks(
    context: RunContext,
    directory: OpenRun,
    metrics: MetricsLog,
    display: Display,
    heartbeat: Heartbeat,
) -> list[Callback]:
    """The callbacks in order: callbacks that add to a step's line come before the line is written; checkpoints come
    after all lines of their step are written, the ranks have agreed whether to stop, and divergence was checked."""
    config, layout = context.config, context.layout
    zero_stage = context.settings.deepspeed.zero_stage
    return [
        Straggler(config.logging.straggler_steps, layout, gathers_parameters=zero_stage == 3),
        metrics,
        HeartbeatNotes(heartbeat, metrics),
        context.stopping,
        LearningCheck(config, layout),
        DivergenceGuard(config, directory.path, metrics, context.saver, layout),
        Validation(config, ValidationSource(context), metrics, context.stopping.after_validation),
        display,
        Checkpointing(context, metrics, directory.position.state.get("metrics")),
    ]


def _show_header(context: RunContext, display: Display, directory: OpenRun, changes: Sequence[Change]) -> None:
    settings = context.settings
    begun = f"continuing after step {directory.position.step}" if directory.position.step else "beginning"
    logger.info("%s: %s; kernels: %s", begun, context.layout.describe(), settings.kernels.description)
    display.show_header(
        directory.path,
        count_by_group(context.model_builder.architecture),
        settings.deepspeed.zero_stage,
        directory.position.step,
        settings.kernels.description,
        context.model_builder.cut,
        context.machines,
    )
    _log(changes)
    for line in [] if context.model_builder.beginning is None else context.model_builder.beginning.lines:
        display.say(line)
    for change in changes:
        display.say(f"changed: {change}")


def _log(changes: Sequence[Change]) -> None:
    for change in changes:
        logger.info("changed: %s", change)


def _stop_early(stopping: StopOnRequest, heartbeat: Heartbeat) -> int:
    """Stop before the first step, without a checkpoint."""
    heartbeat.end("stopped", f"{stopping.duration()['signal']}: start it again to continue")
    logger.info("stopped while starting; the same command continues the run")
    return EXIT_PREEMPTED


def _say_stopped(display: Display, step: int, stopping: StopOnRequest, heartbeat: Heartbeat) -> None:
    duration = stopping.duration()
    heartbeat.note(leaving=duration)
    heartbeat.end("stopped", f"{duration['signal']}: start it again to continue")
    done = f"stopped after step {step} with a checkpoint" if step else "stopped before the first step"
    display.say(f"{done}; the same command continues from there")
    text = (
        f"left {duration['seconds']:.1f} s after {duration['signal']}: {duration['seconds_to_step_end']:.1f} s to the"
        f" end of the step, {duration['seconds_to_save']:.1f} s to save"
    )
    if not stopping.asked_at_terminal:  # for choosing the time that a signal comes before the end
        display.say(text)
    logger.info("%s", text)
