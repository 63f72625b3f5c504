"""Opens the run directory on all ranks: takes its lease, finds the position to continue from, and saves into it."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver, Fence
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.progress import Progress
from tolktrain.config import Config
from tolktrain.config.deepspeed import DeepSpeedFile, DeepSpeedSettings
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.runs.changes import Change
from tolktrain.runs.copies import uploads_of
from tolktrain.runs.folder import RunDirectory
from tolktrain.runs.paths import RunPaths
from tolktrain.runs.uploads import Uploads
from tolktrain.train.process import dumping_to, logging_to
from tolktrain.train.resume import Position, find_position

# Timeout of ranks that wait for another rank's part of a checkpoint. The watchdog detects waiting main threads earlier.
_LONGEST_SAVE = timedelta(hours=6)
_LONGEST_LAST_COPY = (
    60.0  # seconds that leaving on request waits for copies in a bucket; the next start copies the rest
)
_COPY_POLL_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """The run directory as all ranks see it."""

    path: Path
    store: CheckpointStore
    position: Position
    is_new: bool  # whether no earlier start has reached a step, or `begin` deletes what it has written
    fence: Fence
    deepspeed: DeepSpeedFile  # from which DeepSpeed's settings are resolved
    previous: dict[str, Any] | None  # configuration of the last start
    # Collective: writes the settings, and returns the changes of the configuration that apply from the position on;
    # nothing in the directory was changed before.
    begin: Callable[[DeepSpeedSettings], list[Change]]


@contextlib.contextmanager
def open_run(config: Config, layout: Layout, progress: Progress) -> Iterator[OpenRun]:
    """Take the lease of the run directory, log into it, and find the position to continue from; collective.

    Raises UserError if another training holds the directory, it belongs to another configuration, its checkpoints are
    lost, or DeepSpeed's file cannot be read.
    """
    paths = RunPaths.of(config)
    store = CheckpointStore(paths.checkpoints)
    directories: list[RunDirectory] = []  # of rank 0

    def open_directory() -> tuple[int, bool, dict[str, Any] | None, DeepSpeedFile]:
        directory = RunDirectory.open(config)
        directories.append(directory)
        return directory.lease.token, directory.restarts, directory.previous, directory.deepspeed

    try:
        token, restarts, previous, deepspeed = on_rank_zero(layout.rank, open_directory)
        fence = Fence(token)
        if directories:
            lease = directories[0].lease
            fence = Fence(token, lease.check, lambda: lease.lost)
        with logging_to(paths.log(layout.rank), layout.rank), dumping_to(paths.log(layout.rank), progress):
            try:
                if directories and directories[0].deepspeed_changes is not None:
                    logger.warning("%s", directories[0].deepspeed_changes)
                position = Position.shared(
                    None if restarts else find_position(paths.root, store, previous, layout), layout
                )

                def begin(settings: DeepSpeedSettings) -> list[Change]:
                    def act() -> list[Change]:
                        changes = directories[0].begin(settings, position.step)
                        store.prepare()
                        return changes

                    return on_rank_zero(layout.rank, act)

                is_new = restarts or previous is None
                yield OpenRun(paths.root, store, position, is_new, fence, deepspeed, previous, begin)
            except Exception:
                logger.info("training ends with an error", exc_info=True)  # for the file; the caller reports it
                raise
    except BaseException:
        for directory in directories:
            directory.discard_unused()
        raise
    finally:
        for directory in directories:
            directory.close()


@contextlib.contextmanager
def saving(
    config: Config, layout: Layout, run: OpenRun, progress: Progress, must_stop: Callable[[], bool]
) -> Iterator[CheckpointSaver]:
    """The saver of the run's checkpoints. It has its own group, because it communicates while the main thread does.

    Collective. At the end of a run, it waits for all copies, but only for a short time if rank 0 `must_stop`.
    """
    settings = config.checkpoint
    group: Any = dist.new_group(backend="gloo", timeout=_LONGEST_SAVE) if layout.world_size > 1 else None
    uploads = uploads_of(config) if layout.rank == 0 else None
    saver = CheckpointSaver(
        run.store,
        Retention(settings.keep_last, settings.keep_every_steps, settings.keep_best),
        rank=layout.rank,
        group=group,
        fence=run.fence,
        on_saved=(lambda _: None) if uploads is None else uploads.submit,
        being_copied=lambda: None if uploads is None else uploads.copying,
        best_metric=settings.best_metric,
        series=layout.pipeline_rank * layout.tensor_size + layout.tensor_rank,
    )
    try:
        if uploads is not None and run.position.folder is not None:
            uploads.submit(run.position.folder)  # the last start may have ended before it was copied
        yield saver
        if settings.upload is not None:
            _wait_for_copies(uploads, layout, progress, must_stop)
    finally:
        if uploads is not None:
            uploads.close(0.0)
        if group is not None:
            dist.destroy_process_group(group)


def _wait_for_copies(
    uploads: Uploads | None, layout: Layout, progress: Progress, must_stop: Callable[[], bool]
) -> None:
    """Wait on all ranks: a launcher kills the remaining ranks some time after the first one has ended."""
    begun = time.monotonic()

    def enough() -> bool:
        if uploads is None or uploads.wait(_COPY_POLL_SECONDS):
            return True
        late = time.monotonic() - begun > _LONGEST_LAST_COPY and must_stop()
        if late:
            logger.warning(
                "leaving before the last checkpoint is copied to checkpoint.upload; the next start copies it"
            )
        return late

    while not on_rank_zero(layout.rank, enough):
        progress.at("waiting for copies of checkpoints")
