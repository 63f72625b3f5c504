"""A training run from its configuration to its exit code."""

import contextlib
import gc
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tolktrain.checkpoint.random_states import restore_random_states
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.environment import ProcessEnvironment
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
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.parallel.together import on_rank_zero
from tolktrain.train.agreement import agreed_batches
from tolktrain.train.build import Blueprint, count_parameters, go_on_inside
from tolktrain.train.callbacks.checkpointing import Checkpointing
from tolktrain.train.callbacks.guard import DivergenceGuard
from tolktrain.train.callbacks.progress import Display
from tolktrain.train.callbacks.stopping import Stop, StopOnRequest
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.callbacks.validation import Validation
from tolktrain.train.divergence import Incident
from tolktrain.train.going_back import go_back
from tolktrain.train.groups import check_same_groups
from tolktrain.train.kernels import KernelChoice, choose_kernels
from tolktrain.train.loop import Callback, StageRun, run_stage
from tolktrain.train.process import logging_to, set_threads
from tolktrain.train.resume import Position, find_position
from tolktrain.train.rollback import Rollback, read_rollbacks, skipped_steps
from tolktrain.train.rundir import RunDirectory, run_path
from tolktrain.train.stages import StagePlan, plan_stages, remaining
from tolktrain.train.utilization import Utilization

EXIT_DONE = 0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What all stages of a run share."""

    config: Config
    layout: Layout
    blueprint: Blueprint
    vocabulary: Vocabulary
    store: CheckpointStore
    kernels: KernelChoice
    progress: Progress


def train(config: Config, stop: Stop | None = None, progress: Progress | None = None) -> int:
    """Train from the beginning, or go on from the newest sound checkpoint; collective under torchrun or srun.

    Args:
        config: the run.
        stop: asked after each step whether to save and leave.
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
    with _run_folder(config, layout) as folder:
        folder.position.check_architecture(architecture)
        if not remaining(plans, folder.position.step):
            folder.begin()
            if layout.rank == 0:
                print(f"{folder.path} is complete: {folder.position.step} steps are done; nothing to train")
            return EXIT_DONE
        progress.at("checking the data")
        vocabulary = check_data(config, architecture.text_vocab_size, verify_files=layout.local_rank == 0)
        store = CheckpointStore(folder.path, config.checkpoint.keep_last, layout.rank)
        setting = Setting(config, layout, blueprint, vocabulary, store, choice, progress)
        return _run_stages(setting, plans, folder, stop)


@dataclass(frozen=True)
class _Folder:
    """The run's folder as all ranks see it."""

    path: Path
    position: Position
    begin: Callable[[], None]  # collective: from here on the folder is this run's; nothing was changed before


@contextlib.contextmanager
def _run_folder(config: Config, layout: Layout) -> Iterator[_Folder]:
    """The run's folder, locked and with this rank's log open, and where the run goes on."""
    run_dir = run_path(config)
    store = CheckpointStore(run_dir, config.checkpoint.keep_last)
    directory: list[RunDirectory] = []  # of rank 0

    def open_directory() -> None:
        directory.append(RunDirectory.open(config))

    def find() -> Path | None:
        return None if directory[0].starts_anew else find_position(run_dir, store, directory[0].previous)

    def begin() -> None:
        directory[0].begin()
        store.prepare()

    try:
        on_rank_zero(layout.rank, open_directory)
        with logging_to(run_dir, layout.rank):
            try:
                position = Position.of(on_rank_zero(layout.rank, find))
                yield _Folder(run_dir, position, lambda: on_rank_zero(layout.rank, begin))
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


def _run_stages(setting: Setting, plans: Sequence[StagePlan], folder: _Folder, stop: Stop | None) -> int:
    config, layout, position = setting.config, setting.layout, folder.position
    setting.progress.at("building the model")
    # Notices a backbone that cannot be read.
    model: SmolTolk | None = setting.blueprint.build(layout, position.folder)
    assert model is not None
    folder.begin()
    rollbacks = on_rank_zero(layout.rank, lambda: read_rollbacks(folder.path))
    utilization = Utilization.of(setting.blueprint.architecture, config, layout)
    metrics = MetricsLog(config, folder.path, position.step, layout.rank, utilization)
    display = Display(config, plans, metrics, layout)
    # In this order: a checkpoint comes after all lines of its step are written and all ranks know whether to stop, and
    # none is written of a step after which the run goes back.
    callbacks: list[Callback] = [
        metrics,
        StopOnRequest(stop, layout),
        DivergenceGuard(config, folder.path, metrics, setting.store, layout),
        Validation(config, _ValidationSource(setting), metrics),
        display,
        Checkpointing(setting.store, metrics, config, setting.blueprint.architecture),
    ]
    stopped = False
    try:
        zero_stage = build_deepspeed_config(config, layout.data_size)["zero_optimization"]["stage"]
        logger.info("kernels: %s", setting.kernels.description)
        display.show_header(
            folder.path,
            count_parameters(model, layout),
            zero_stage,
            position.step,
            setting.kernels.description,
            setting.blueprint.cut,
        )
        while not stopped and (stages := remaining(plans, position.step)):
            stopped, incident = _run_one_stage(setting, stages[0], position, rollbacks, model, callbacks)
            model = None
            gc.collect()  # the next model needs the memory
            if incident is None:
                position = Position.of(setting.store.newest())
                continue
            setting.progress.at("going back")
            position = Position.of(go_back(config, folder.path, setting.store, layout, stages[0], incident))
            rollbacks = on_rank_zero(layout.rank, lambda: read_rollbacks(folder.path))
            for callback in callbacks:
                callback.on_return(position.step)
    finally:
        for callback in reversed(callbacks):
            callback.close()
    if stopped and remaining(plans, position.step):
        display.say(f"stopped after step {position.step} with a checkpoint; the same command goes on from there")
        return EXIT_PREEMPTED
    display.say(f"trained: {position.step:,} steps, in {folder.path}")
    return EXIT_DONE


def _run_one_stage(
    setting: Setting,
    plan: StagePlan,
    position: Position,
    rollbacks: Sequence[Rollback],
    model: SmolTolk | None,
    callbacks: Sequence[Callback],
) -> tuple[bool, Incident | None]:
    """Run a stage from `position` on, of which `model` is made, if given; returns whether it was stopped, and what
    makes the run go back."""
    config, layout = setting.config, setting.layout
    if model is None:
        setting.progress.at("building the model")
        model = setting.blueprint.build(layout, position.folder)
    setting.progress.at(f"setting up the stage {plan.name!r}")
    engine = setting.blueprint.start(model, plan.config, layout)
    if position.is_inside(plan):
        go_on_inside(engine, position)
    loader = StageLoader(
        config,
        plan.config.mixture,
        setting.vocabulary,
        seed=config.run.seed + 1_000_003 * plan.index,  # later stages must not meet the same sequences again
        data_rank=layout.data_rank,
        data_size=layout.data_size,
        step=position.step - plan.first_step,
        skipped=skipped_steps(rollbacks, plan.name),
        pin_memory=layout.device.type == "cuda",
    )
    run = StageRun(plan, engine, position.step, progress=setting.progress)
    try:
        with loader, setting.progress.failing():
            _set_random_states(config, position)
            batches = agreed_batches(loader, layout, position.step, config.parallel.check_batches)
            run_stage(run, batches, callbacks)
    finally:
        engine.close()
    return run.stop, run.incident


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
