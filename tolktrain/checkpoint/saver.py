"""Writes checkpoints atomically, optionally in the background.

A checkpoint is written to a temporary folder, checksummed and flushed. Then its folder is renamed and `latest` is
replaced. The name of an unfinished folder contains the fencing token of this job. A job that takes over a run removes
unfinished folders first; if the earlier job is still alive, its rename fails.
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
    """Checks that the run still belongs to this job."""

    token: int = 0  # increases with every job that takes the run
    check: Callable[[], object] = lambda: None  # raises if another job has taken the run; called on rank 0
    lost: Callable[[], str | None] = lambda: None  # why the lease was lost, from memory only; None if it was not


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
        """Writes nothing yet.

        Args:
            store: the folder of the checkpoints.
            retention: which checkpoints are kept.
            rank: of this process.
            group: a gloo group of all ranks that nothing else uses; None for a single process.
            fence: checks that the run belongs to this job.
            on_saved: called on every rank with the folder of a complete checkpoint; must not block.
            being_copied: called on rank 0; returns a checkpoint that must not be removed yet.
            best_metric: key of the state's "metrics" by which the best checkpoints are chosen, lowest first.
            series: of this rank, see `write_snapshot`.
            most_files: limit of tensor files in a checkpoint.
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
        self.spared: int | None = None  # no checkpoint up to this step is removed; rank 0's value is used
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._complete: dict[Path, tuple[int, ...]] = {}  # identity of the manifest when the files were complete

    def save(
        self,
        step: int,
        snapshot: Snapshot,
        state: Mapping[str, Any],
        *,
        background: bool = False,
        before_publishing: Callable[[], object] = lambda: None,
    ) -> None:
        """Write the checkpoint of `step`; collective. In the foreground, it is on disk when this returns.

        In the background, `snapshot` must not change until `wait` has returned.

        Args:
            step: number of finished steps.
            snapshot: this rank's slices.
            state: content of state.json; rank 0's value is used.
            background: whether to return at once.
            before_publishing: called on rank 0 before the checkpoint is renamed.

        Raises:
            OSError: this or the previous checkpoint could not be written; its files were removed.
            OtherRankFailed: the same on another rank.
            UserError: another job has taken over the run.
        """
        self.wait()
        # `spared` is read now: it may change while the checkpoint is written in the background.
        arguments = (step, snapshot, state, before_publishing, self.spared)
        if not background:
            self._save(*arguments)
            return
        self._thread = guarded("checkpoint", lambda: self._work(*arguments), self._keep_failure)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the current save, and raise its exception if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()

    def poll(self) -> None:
        """Raise the exception of a background save, or a UserError if another job has taken over the run."""
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
        """Whether a background save is running."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Wait for the current save, and ignore its outcome."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, *arguments: Any) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)
        self._save(*arguments)

    def _keep_failure(self, error: BaseException) -> None:
        """Store the exception; the main thread raises it at its next `poll`."""
        self._failure = error

    def _save(
        self,
        step: int,
        snapshot: Snapshot,
        state: Mapping[str, Any],
        before_publishing: Callable[[], object],
        spared: int | None,
    ) -> None:
        # Imported here: torch's checkpoint package imports sympy, which takes a second of the start-up time.
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
                if isinstance(error, (FileNotFoundError, OtherRankFailed)):  # a job that takes over removes the files
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
        if final.exists():  # a damaged checkpoint of the same step; the run would have resumed from an intact one
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
                self._fence.check()  # a new owner of the run may need checkpoints that this job would remove
                discard(folder)

    def _candidate(self, step: int, folder: Path) -> Candidate:
        try:
            metric = read_state(folder).get("metrics", {}).get(self._best_metric) if self._retention.best else None
            return Candidate(step, self._is_complete(folder), metric)
        except UserError:  # such as a checkpoint of another format version
            return Candidate(step, complete=False)

    def _is_complete(self, folder: Path) -> bool:
        """Whether all files exist. Checked once per checkpoint, because it may have as many files as ranks."""
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
    """Distinguishes a file from another file of the same name."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
