"""Writes checkpoints, in the background if asked to: complete or absent, at every instant.

A checkpoint is written aside, checksummed, flushed, then its folder is renamed and `latest` replaced. The name of an
unfinished folder holds the number under which this job holds the run (its fencing token). A job that takes over a run
removes unfinished folders first, so that the renames of one that was thought dead fail.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tolktrain.checkpoint.manifest import MANIFEST, digest_files, looks_complete, write_manifest
from tolktrain.checkpoint.reader import TENSOR_FOLDER, TENSORS
from tolktrain.checkpoint.retention import Candidate, Retention, choose_kept
from tolktrain.checkpoint.sharing import MOST_FILES
from tolktrain.checkpoint.slices import Snapshot
from tolktrain.checkpoint.store import (
    STATE,
    UNFINISHED_PREFIX,
    CheckpointStore,
    discard,
    read_state,
    remove,
    remove_quietly,
    step_name,
    step_of,
)
from tolktrain.cluster.threads import guarded
from tolktrain.cluster.watch.failures import OtherRankFailed
from tolktrain.errors import UserError
from tolktrain.files.writing import sync_path, write_synced

if TYPE_CHECKING:
    from tolktrain.checkpoint.writer import Written

_BACKGROUND_NICENESS = 10  # of the thread that writes: computing comes first where both want the same core

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fence:
    """How a job proves that the run is still its own."""

    token: int = 0  # grows with every job that takes the run
    check: Callable[[], object] = lambda: None  # raises if another job has taken it; rank 0 calls it
    lost: Callable[[], str | None] = lambda: None  # the same as far as it is known already, at no cost


class CheckpointSaver:
    """One rank's part in saving. `save` and `wait` are called by all ranks alike."""

    def __init__(
        self,
        store: CheckpointStore,
        retention: Retention,
        *,
        rank: int = 0,
        group: dist.ProcessGroup | None = None,
        fence: Fence | None = None,
        on_saved: Callable[[Path], object] = lambda _: None,
        being_copied: Callable[[], Path | None] = lambda: None,
        best_metric: str = "loss",
        series: int = 0,
        most_files: int = MOST_FILES,
    ) -> None:
        """Nothing is written yet.

        Args:
            store: the folder.
            retention: what is kept there.
            rank: of this process.
            group: one of all ranks, on gloo, that nothing else uses; None for a single process.
            fence: proof that the run is this job's.
            on_saved: called on every rank with the folder of a checkpoint when that is complete; must not wait.
            being_copied: asked on rank 0 for a checkpoint that is not to be removed yet.
            best_metric: key of the state's "metrics" that the best checkpoints have the lowest values of.
            series: of this rank, see `write_snapshot`.
            most_files: with tensors, in a checkpoint.
        """
        self._store = store
        self._retention = retention
        self._rank = rank
        self._group = group
        self._fence = fence or Fence()
        self._on_saved = on_saved
        self._being_copied = being_copied
        self._best_metric = best_metric
        self._sharing = (series, most_files)
        self.spared: int | None = None  # for now, no checkpoint up to this step is removed; rank 0's counts
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._complete: dict[Path, tuple[int, ...]] = {}  # which manifest each had when all its files were there

    def save(
        self,
        step: int,
        snapshot: Snapshot,
        state: Mapping[str, Any],
        *,
        background: bool = False,
        before_publishing: Callable[[], object] = lambda: None,
    ) -> None:
        """Write the checkpoint of `step`; collective. In the foreground it is on disk when this returns.

        In the background `snapshot` must not change until `wait` has returned.

        Args:
            step: steps done.
            snapshot: this rank's slices.
            state: content of state.json; rank 0's counts.
            background: whether to return at once.
            before_publishing: done on rank 0 before the checkpoint gets its name.

        Raises:
            OSError: it could not be written, now or by the last call; nothing of it is left.
            OtherRankFailed: the same on another rank.
            UserError: another job has taken over the run.
        """
        self.wait()
        # What is spared is decided now, not when the checkpoint happens to be written.
        arguments = (step, snapshot, state, before_publishing, self.spared)
        if not background:
            self._save(*arguments)
            return
        self._thread = guarded("checkpoint", lambda: self._work(*arguments), self._keep_failure)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save that is under way. Raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()

    def poll(self) -> None:
        """Raise what a save in the background has raised, or that another job has taken over the run."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._fence.lost() is not None:
            self._fence.check()

    def state_of(self, step: int) -> dict[str, Any]:
        """state.json of a checkpoint."""
        return read_state(self._store.folder / step_name(step))

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way in the background."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Let the save that is under way end, however."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, *arguments: Any) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)
        self._save(*arguments)

    def _keep_failure(self, error: BaseException) -> None:
        """For the main thread, which raises it at its next `poll`."""
        self._failure = error

    def _save(
        self,
        step: int,
        snapshot: Snapshot,
        state: Mapping[str, Any],
        before_publishing: Callable[[], object],
        spared: int | None,
    ) -> None:
        # Imports torch's checkpoints and with them sympy: a second that a process's start need not take.
        from tolktrain.checkpoint.writer import write_snapshot

        started = time.perf_counter()
        final = self._store.folder / step_name(step)
        aside = self._store.folder / f"{UNFINISHED_PREFIX}{self._fence.token:08d}-{final.name}"

        sizes: list[int] = []

        def begin() -> None:
            self._fence.check()
            remove(aside)
            (aside / TENSOR_FOLDER).mkdir(parents=True)
            write_synced(aside / STATE, json.dumps(state, indent=1).encode())

        def finish(written: "Written") -> None:
            write_synced(aside / TENSORS, json.dumps(written.tensors).encode())
            files = {**written.files, **digest_files(aside, [STATE, TENSORS])}
            write_manifest(aside, files)
            sizes.extend(digest["size"] for digest in files.values())
            before_publishing()
            self._publish(aside, final)
            self._complete[final] = _identity(final / MANIFEST)
            self._remove_old(spared)

        try:
            write_snapshot(aside, snapshot, self._group, begin, finish, *self._sharing)
        except BaseException as error:
            if self._rank == 0:
                remove_quietly(aside)
                if isinstance(error, (FileNotFoundError, OtherRankFailed)):  # whoever takes over removes our files
                    self._fence.check()
            raise
        if self._rank == 0:
            seconds = time.perf_counter() - started
            logger.info("checkpoint of step %d: %.1f MB written in %.2f s", step, sum(sizes) / 1e6, seconds)
        self._on_saved(final)

    def _publish(self, aside: Path, final: Path) -> None:
        for folder in (*(path for path in aside.iterdir() if path.is_dir()), aside):
            sync_path(folder)
        self._fence.check()
        if final.exists():  # a damaged one of the same step, or it would have been resumed from
            discard(final)
            self._fence.check()
        aside.rename(final)
        sync_path(final.parent)
        self._store.set_latest(final, self._fence.token, self._fence.check)

    def _remove_old(self, spared: int | None) -> None:
        folders = {step_of(folder): folder for folder in self._store.latest_first()}
        candidates = [self._candidate(step, folder) for step, folder in folders.items()]
        kept = choose_kept(candidates, self._retention)
        being_copied = self._being_copied()
        for step, folder in folders.items():
            if step not in kept and folder != being_copied and (spared is None or step > spared):
                self._fence.check()  # a new owner may need what is too old for this one
                discard(folder)

    def _candidate(self, step: int, folder: Path) -> Candidate:
        try:
            metric = read_state(folder).get("metrics", {}).get(self._best_metric) if self._retention.best else None
            return Candidate(step, self._is_complete(folder), metric)
        except UserError:  # such as another version's
            return Candidate(step, complete=False)

    def _is_complete(self, folder: Path) -> bool:
        """Whether all files are there, asked once of each checkpoint: they are as many as ranks."""
        try:
            identity = _identity(folder / MANIFEST)
        except OSError:
            return False
        if self._complete.get(folder) != identity:
            if not looks_complete(folder):
                return False
            self._complete[folder] = identity
        return True


def _identity(path: Path) -> tuple[int, ...]:
    """Another file under the same name has another one."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
