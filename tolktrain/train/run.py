"""A training run from its configuration to its exit code."""

import contextlib
import gc
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tolktrain.checkpoint.random_states import restore_random_states
from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver, Fence
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.heartbeat import Heartbeat
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.signals import EXIT_PREEMPTED
from tolktrain.cluster.watch import collective_timeout
from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.config.deepspeed import build_deepspeed_config
from tolktrain.data.batch import Batch
from tolktrain.data.checks import check_data
from tolktrain.data.loader import StageLoader, validation_batches
from tolktrain.data.sequences import Vocabulary
from tolktrain.model.counts import count_by_group
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.parallel.together import on_rank_zero
from tolktrain.train.agreement import agreed_batches
from tolktrain.train.build import Blueprint, count_parameters
from tolktrain.train.callbacks.checkpointing import Checkpointing
from tolktrain.train.callbacks.guard import DivergenceGuard
from tolktrain.train.callbacks.heartbeat import HeartbeatNotes
from tolktrain.train.callbacks.progress import Display
from tolktrain.train.callbacks.stopping import Stop, StopOnRequest
from tolktrain.train.callbacks.straggler import Straggler
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.callbacks.validation import Validation
from tolktrain.train.groups import check_same_groups
from tolktrain.train.health.check import check_health
from tolktrain.train.kernels import KernelChoice, choose_kernels
from tolktrain.train.loop import Callback, StageRun, run_stage, timed
from tolktrain.train.process import dumping_to, log_path, logging_to, set_threads
from tolktrain.train.remote import uploads_of
from tolktrain.train.resume import Position, find_position
from tolktrain.train.rundir import RunDirectory, run_path
from tolktrain.train.stages import StagePlan, plan_stages, remaining
from tolktrain.train.utilization import Utilization

EXIT_DONE = 0

# Until ranks that have written their part give up on one that has not. The watch notices the main threads that wait.
_LONGEST_SAVE = timedelta(hours=6)
_LONGEST_LAST_COPY = 60.0  # seconds that leaving waits for copies in a bucket; the next start makes up for them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What all stages of a run share."""

    config: Config
    layout: Layout
    blueprint: Blueprint
    vocabulary: Vocabulary
    store: CheckpointStore
    saver: CheckpointSaver
    kernels: KernelChoice
    progress: Progress
    machines: str  # what the health check has found


def train(config: Config, stop: Stop | None = None, progress: Progress | None = None) -> int:
    """Train from the beginning, or go on from the newest sound checkpoint; collective under torchrun or srun.

    Args:
        config: the run.
        stop: asked after each step whether to save and leave, and on the way to the first one whether to leave.
        progress: told what this rank is doing, for its watch.

    Returns:
        0 when the run is complete, 75 when it was stopped and is to be started again.

    Raises:
        UserError: bad input, a run folder of another configuration, lost or foreign checkpoints, divergence.
    """
    plans = plan_stages(config)
    ProcessEnvironment.detect().export()
    progress = progress or Progress()
    blueprint = Blueprint.of(config)
    progress.at("joining the other processes")
    parallel = config.parallel
    layout = initialize(
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        parallel.sequence_parallel,
        timeout=collective_timeout(parallel.hang_timeout_seconds),
    )
    progress.settle(f"pipeline {layout.pipeline_rank}, tensor {layout.tensor_rank}, data {layout.data_rank}")
    progress.at("opening the run's folder")
    set_threads(layout, config.train.cpu_threads)
    build_deepspeed_config(config, layout.data_size)  # for its complaints, before a folder exists
    check_same_groups(layout)
    architecture = blueprint.architecture
    choice = choose_kernels(config, architecture, layout.device.type)
    leaving = StopOnRequest(stop, layout)
    with _run_folder(config, layout, progress) as folder:
        folder.position.check_architecture(architecture)
        if not remaining(plans, folder.position.step):
            folder.begin()
            if layout.rank == 0:
                print(f"{folder.path} is complete: {folder.position.step} steps are done; nothing to train")
            return EXIT_DONE
        if leaving.before_training():
            return EXIT_PREEMPTED
        anew = config.run.restart and folder.position.folder is None
        machines = check_health(config, layout, folder.path, count_by_group(architecture), anew, progress)
        progress.at("checking the data")
        vocabulary = check_data(config, architecture.text_vocab_size, verify_files=layout.local_rank == 0)
        with _saver(config, layout, CheckpointStore(folder.path), folder.fence) as (store, saver):
            setting = Setting(config, layout, blueprint, vocabulary, store, saver, choice, progress, machines)
            return _run_stages(setting, plans, folder, leaving)


@dataclass(frozen=True)
class _Folder:
    """The run's folder as all ranks see it."""

    path: Path
    position: Position
    fence: Fence
    begin: Callable[[], None]  # collective: from here on the folder is this run's; nothing was changed before


@contextlib.contextmanager
def _run_folder(config: Config, layout: Layout, progress: Progress) -> Iterator[_Folder]:
    """The run's folder, locked and with this rank's log open, and where the run goes on."""
    run_dir = run_path(config)
    store = CheckpointStore(run_dir)
    directory: list[RunDirectory] = []  # of rank 0

    def open_directory() -> None:
        directory.append(RunDirectory.open(config))

    def earlier_start() -> tuple[int, bool, dict[str, Any] | None]:
        return directory[0].lease.token, directory[0].starts_anew, directory[0].previous

    def begin() -> None:
        directory[0].begin()
        store.prepare()

    try:
        on_rank_zero(layout.rank, open_directory)
        with logging_to(run_dir, layout.rank), dumping_to(log_path(run_dir, layout.rank), progress):
            try:
                token, starts_anew, previous = on_rank_zero(layout.rank, earlier_start)
                fence = (
                    Fence(token, directory[0].lease.check, lambda: directory[0].lease.lost)
                    if directory
                    else Fence(token)
                )
                position = Position.of(None if starts_anew else find_position(run_dir, store, previous, layout))
                yield _Folder(run_dir, position, fence, lambda: on_rank_zero(layout.rank, begin))
            except Exception:
                logger.info("training ends with an error", exc_info=True)  # for the file; the caller reports it
                raise
    except BaseException:
        for opened in directory:
            opened.discard_unused()
        raise
    finally:
        for opened in directory:
            opened.close()


@contextlib.contextmanager
def _saver(
    config: Config, layout: Layout, store: CheckpointStore, fence: Fence
) -> Iterator[tuple[CheckpointStore, CheckpointSaver]]:
    """What writes this run's checkpoints, with a group of its own: it talks while the main thread does too."""
    settings = config.checkpoint
    retention = Retention(settings.keep_last, settings.keep_every_steps, settings.keep_best)
    group: Any = dist.new_group(backend="gloo", timeout=_LONGEST_SAVE) if layout.world_size > 1 else None
    uploads = uploads_of(config) if layout.rank == 0 else None
    saver = CheckpointSaver(
        store,
        retention,
        rank=layout.rank,
        group=group,
        fence=fence,
        on_saved=(lambda _: None) if uploads is None else uploads.submit,
        best_metric=settings.best_metric,
    )
    finished = False
    try:
        yield store, saver
        finished = True
    finally:
        if uploads is not None:
            uploads.close(_LONGEST_LAST_COPY if finished else 0.0)
        if group is not None:
            dist.destroy_process_group(group)


def _run_stages(setting: Setting, plans: Sequence[StagePlan], folder: _Folder, leaving: StopOnRequest) -> int:
    config, layout, position = setting.config, setting.layout, folder.position
    setting.progress.at("building the model")
    model = setting.blueprint.build(layout, position.folder)  # notices a backbone that cannot be read
    if leaving.before_training():
        return EXIT_PREEMPTED
    folder.begin()
    with _beating(setting, folder) as heartbeat:
        utilization = Utilization.of(setting.blueprint.architecture, config, layout)
        metrics = MetricsLog(config, folder.path, position.step, layout.rank, utilization)
        display = Display(config, plans, metrics, layout)
        zero_stage = build_deepspeed_config(config, layout.data_size)["zero_optimization"]["stage"]
        # In this order: what is noted on a step comes before its line is written; a checkpoint comes after all lines of
        # its step are written and all ranks know whether to stop.
        callbacks: list[Callback] = [
            Straggler(config.logging.straggler_steps, layout, gathers_parameters=zero_stage == 3),
            metrics,
            HeartbeatNotes(heartbeat, metrics),
            DivergenceGuard(),
            leaving,
            Validation(config, _ValidationSource(setting), metrics),
            display,
            Checkpointing(
                setting.saver, metrics, config, setting.blueprint.architecture, layout, position.state.get("metrics")
            ),
        ]
        stopped = False
        try:
            logger.info("kernels: %s", setting.kernels.description)
            display.show_header(
                folder.path,
                count_parameters(model, layout),
                zero_stage,
                position.step,
                setting.kernels.description,
                setting.blueprint.cut,
                setting.machines,
            )
            stages = remaining(plans, position.step)
            for plan in stages:
                if plan is not stages[0]:
                    setting.progress.at("building the model")
                    model = setting.blueprint.build(layout, position.folder)
                stopped = _run_one_stage(setting, plan, position, model, callbacks)
                position = Position.of(setting.store.newest())
                if stopped:
                    break
        finally:
            for callback in reversed(callbacks):
                callback.close()
        if stopped and remaining(plans, position.step):
            _say_stopped(display, position.step, leaving, heartbeat)
            return EXIT_PREEMPTED
        display.say(f"trained: {position.step:,} steps, in {folder.path}")
        heartbeat.end("done")
    return EXIT_DONE


@contextlib.contextmanager
def _beating(setting: Setting, folder: _Folder) -> Iterator[Heartbeat]:
    """The run's heartbeat; rank 0's is written."""
    layout, progress = setting.layout, setting.progress
    facts = {"world_size": layout.world_size, "layout": layout.describe()}
    heartbeat = Heartbeat(folder.path, progress, setting.config.logging.heartbeat_seconds, facts)
    heartbeat.note(step=folder.position.step)
    progress.on_end = lambda reason: heartbeat.end("failed", reason)
    if layout.rank == 0:
        heartbeat.start()
    try:
        yield heartbeat
    except BaseException as error:
        heartbeat.end("failed", f"{type(error).__name__}: {error}")
        raise


def _say_stopped(display: Display, step: int, leaving: StopOnRequest, heartbeat: Heartbeat) -> None:
    duration = leaving.duration()
    heartbeat.note(leaving=duration)
    heartbeat.end("stopped", f"{duration['signal']}: start it again to go on")
    done = f"stopped after step {step} with a checkpoint" if step else "stopped before the first step"
    display.say(f"{done}; the same command goes on from there")
    text = (
        f"left {duration['seconds']:.1f} s after {duration['signal']}: {duration['seconds_to_step_end']:.1f} s to the"
        f" end of the step, {duration['seconds_to_save']:.1f} s to save"
    )
    display.say(text)
    logger.info("%s", text)


def _run_one_stage(
    setting: Setting, plan: StagePlan, position: Position, model: SmolTolk, callbacks: Sequence[Callback]
) -> bool:
    """Run a stage from `position` on; returns whether it was stopped."""
    config, layout = setting.config, setting.layout
    setting.progress.at(f"setting up the stage {plan.name!r}")
    engine = setting.blueprint.start(model, plan.config, layout, position, position.is_inside(plan))
    loader = StageLoader(
        config,
        plan.config.mixture,
        setting.vocabulary,
        seed=config.run.seed + 1_000_003 * plan.index,  # later stages must not meet the same sequences again
        data_rank=layout.data_rank,
        data_size=layout.data_size,
        step=position.step - plan.first_step,
        pin_memory=layout.device.type == "cuda",
    )
    run = StageRun(plan, engine, position.step, progress=setting.progress)
    try:
        with loader, setting.progress.failing():
            _set_random_states(config, position)
            batches = agreed_batches(timed(loader, run), layout, position.step, config.parallel.check_batches)
            run_stage(run, batches, callbacks)
    finally:
        engine.close()
        del engine
        gc.collect()
    return run.stop


def _set_random_states(config: Config, position: Position) -> None:
    """As they were when the checkpoint was written, whatever was drawn since to set up the stage."""
    if position.folder is None:
        random.seed(config.run.seed)
        np.random.seed(config.run.seed % 2**32)
        torch.manual_seed(config.run.seed)
    else:
        restore_random_states(position.state["random_states"])


class _ValidationSource:
    """This rank's validation batches, made once: they are always the same."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._made: dict[tuple[str, Strategy], list[Batch]] = {}

    def __call__(self, dataset: str, strategy: Strategy) -> list[Batch]:
        if (dataset, strategy) not in self._made:
            config, layout = self._setting.config, self._setting.layout
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
