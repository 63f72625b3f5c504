"""Checkpoints are copied to a bucket in the background."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tolktrain.checkpoint.manifest import MANIFEST
from tolktrain.cluster.threads import guarded, log_failure
from tolktrain.errors import UserError
from tolktrain.runs.paths import ROLLBACKS_FILE, RunPaths
from tolktrain.runs.remote_checkpoints import complete, remote_name, remove_old, upload_files
from tolktrain.storage.base import Storage

logger = logging.getLogger(__name__)


class Uploads:
    """Copies checkpoints in the background. A failure is a warning; the next checkpoint is tried again.

    While a checkpoint is being copied, only the latest one submitted meanwhile is queued.
    """

    def __init__(self, storage: Storage, keep_last: int | None = None) -> None:
        self._storage = storage
        self._keep_last = keep_last
        self._changed = threading.Condition()
        self._waiting: tuple[Path, dict[str, bytes]] | None = None
        self._copying: Path | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, folder: Path) -> None:
        """Queue the complete checkpoint `folder`, unless it has been copied; returns at once."""
        run_dir = folder.parent.parent
        # Read now, because training appends to these files.
        run_files = {file.name: file.read_bytes() for file in RunPaths(run_dir).needed_to_resume if file.is_file()}
        with self._changed:
            assert not self._closed
            if self._waiting is not None:
                logger.warning("%s is not copied to %s: a newer one came", self._waiting[0], self._storage.address)
            self._waiting = folder, run_files
            if self._thread is None:
                self._thread = guarded("uploads", self._work, self._give_up)
                self._thread.start()
            self._changed.notify_all()

    @property
    def copying(self) -> Path | None:
        """The checkpoint that is being copied now; its files must not be removed."""
        return self._copying

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until nothing is left to copy. Returns False on a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and self._copying is None, timeout_seconds)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Wait, then end the thread; an unfinished copy stays incomplete. Returns False on a timeout."""
        done = self.wait(timeout_seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                self._copying = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._waiting is not None)
                if self._waiting is None or self._closed:
                    return
                (folder, run_files), self._waiting = self._waiting, None
                self._copying = folder
            try:
                self._copy(folder, run_files)
            except Exception as error:  # a failed copy must not end training
                logger.warning(
                    "%s was not copied to %s: %s; training continues, and the next checkpoint is tried",
                    *(folder, self._storage.address, error),
                    exc_info=not isinstance(error, (UserError, OSError)),
                )

    def _give_up(self, error: BaseException) -> None:
        """Reset the state after the thread has failed; the next checkpoint starts another thread."""
        log_failure("uploads", error)
        with self._changed:
            self._waiting = self._copying = self._thread = None
            self._changed.notify_all()

    def _copy(self, folder: Path, run_files: Mapping[str, bytes]) -> None:
        begun = time.monotonic()
        if self._storage.read(f"{remote_name(folder)}/{MANIFEST}") is not None:
            return
        upload_files(self._storage, folder)
        complete(self._storage, folder, run_files)
        logger.info("%s was copied to %s in %.1f s", folder, self._storage.address, time.monotonic() - begun)
        if self._keep_last is not None:
            remove_old(self._storage, self._keep_last, run_files.get(ROLLBACKS_FILE, b""))
