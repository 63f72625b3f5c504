"""Copies of checkpoints in an object store, and back.

```
<address>/
  latest                                   name of the newest complete copy, for readers that may not list
  step-00000100-1f0c93ab52de/              step, and the beginning of the manifest's SHA-256
    tensors/*.safetensors, ...             the files of the checkpoint
    run/config.yaml, run/metrics.jsonl,    of the run at that time
    run/rollbacks.jsonl
    manifest.json                          comes last: a copy is complete if and only if it has one
```
An object appears whole or not at all. Two trainings that write a checkpoint of the same step (an old job that has not
died) write under different names, so that they cannot mix their files.

A run that goes back after a divergence leaves copies of later steps behind. They do not count any more: the run's
rollbacks.jsonl, and that of later copies, names the step that it went back to.
"""

import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tolktrain.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpointError,
    FileDigest,
    digest_files,
    read_manifest,
    verify,
)
from tolktrain.cluster.threads import guarded, log_failure
from tolktrain.errors import UserError
from tolktrain.files.reading import DESCRIPTION_BYTES, TABLE_BYTES, file_sha256, parse_json
from tolktrain.files.writing import replace_file, sync_path
from tolktrain.storage.base import Storage
from tolktrain.storage.errors import StorageError

LATEST = "latest"
_ROLLBACKS = "rollbacks.jsonl"
BESIDE = ("config.yaml", "metrics.jsonl", _ROLLBACKS)  # what a run's folder needs besides checkpoints to go on
_RUN = "run"
_NAME = re.compile(r"step-([0-9]{8,18})-([0-9a-f]{12})")
_STEP_FOLDER = re.compile(r"step-([0-9]{8,18})")
_DOWNLOADS_OF_A_FILE = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A complete copy."""

    name: str
    step: int


def find_remote(storage: Storage) -> list[Remote]:
    """All complete copies, newest first. Where listing is refused, the one that `latest` names.

    Raises UserError when the storage cannot be reached.
    """
    latest = (storage.read(LATEST, DESCRIPTION_BYTES) or b"").decode(errors="replace").strip()
    try:
        objects = storage.names("step-")
    except StorageError as error:
        if error.kind != "refused":
            raise
        logger.warning("%s; taking the checkpoint that %s names", error, storage.path_of(LATEST))
        objects = [f"{latest}/{MANIFEST}"]
    names = [name.removesuffix(f"/{MANIFEST}") for name in objects if name.endswith(f"/{MANIFEST}")]
    remotes = [Remote(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    # Of two copies of one step, the one that was finished last.
    return sorted(remotes, key=lambda remote: (remote.step, remote.name == latest), reverse=True)


def restore(storage: Storage, run_dir: Path, newer_than: int, token: int = 0) -> Path | None:
    """Bring the newest sound copy above step `newer_than` into checkpoints/ of a run; None if there is none.

    Returns its folder, which appears complete and verified, or not at all. The files `BESIDE` come along if the run has
    none. Copies of steps that the run has gone back behind are passed over; damaged ones are named in warnings.
    For one process, which holds the lease of `token`.

    Raises UserError: the storage cannot be reached; the disk is too small; there are copies, all of them damaged, and
    the run would begin anew (`newer_than` is 0).
    """
    damaged = []
    newer = [remote for remote in find_remote(storage) if remote.step > newer_than]
    file = run_dir / _ROLLBACKS
    undone = _undone(storage, newer, file.read_bytes() if file.exists() else b"")
    for remote in newer:
        if remote in undone:
            continue
        try:
            return _download(storage, remote, run_dir, token)
        except DamagedCheckpointError as error:
            logger.warning("%s; trying an older one", error)
            damaged.append(str(error))
    if damaged and newer_than == 0:
        raise UserError("; ".join([f"{storage.address} has no sound checkpoint to go on from", *damaged]))
    return None


def forget(storage: Storage) -> None:
    """Make all copies incomplete, so that a run that is started anew does not go on from them."""
    storage.delete(LATEST)
    for remote in find_remote(storage):
        storage.delete(f"{remote.name}/{MANIFEST}")


def upload_files(storage: Storage, folder: Path) -> None:
    """Copy the files of the complete checkpoint `folder`, largest first, all but the manifest."""
    name, files = _read_manifest(folder)
    for file in sorted(files, key=lambda file: (-files[file]["size"], file)):
        storage.upload(folder / file, f"{name}/{file}")


def complete(storage: Storage, folder: Path, beside: Mapping[str, bytes]) -> None:
    """Make the copy of `folder` count: copy the manifest and let `latest` name the copy.

    `beside` are small files of the run by name, as they were at that step.
    """
    name, _ = _read_manifest(folder)
    for file, content in beside.items():
        storage.write(f"{name}/{_RUN}/{file}", content)
    storage.upload(folder / MANIFEST, f"{name}/{MANIFEST}")
    storage.write(LATEST, f"{name}\n".encode())


def remove_old(storage: Storage, keep_last: int, rollbacks: bytes = b"") -> None:
    """Delete complete copies but for the newest `keep_last`, and those that the run has gone back behind.

    `rollbacks` is the run's rollbacks.jsonl. Each is incomplete before the rest of it goes.
    """
    remotes = find_remote(storage)
    undone = _undone(storage, remotes, rollbacks) if rollbacks else set()
    kept = [remote for remote in remotes if remote not in undone][:keep_last]
    for remote in (remote for remote in remotes if remote not in kept):
        storage.delete(f"{remote.name}/{MANIFEST}")
        for name in storage.names(f"{remote.name}/"):
            storage.delete(name)


def _undone(storage: Storage, remotes: Sequence[Remote], rollbacks: bytes) -> set[Remote]:
    """Copies of steps that the run went back behind after they were made.

    `rollbacks` is the run's rollbacks.jsonl as far as it is known here; of a lost one the copies know.
    """
    known = {remote: _to_steps(storage.read(f"{remote.name}/{_RUN}/{_ROLLBACKS}") or b"") for remote in remotes}
    history = max([_to_steps(rollbacks), *known.values()], key=len)
    return {remote for remote in remotes if any(step < remote.step for step in history[len(known[remote]) :])}


def _to_steps(rollbacks: bytes) -> list[int]:
    try:
        return [int(parse_json(line)["to_step"]) for line in rollbacks.splitlines()]
    except (ValueError, KeyError, TypeError, OverflowError):
        return []  # the run's own is complained of by whoever reads it


class Uploads:
    """Copies checkpoints in the background. A failure is a warning; the next one is tried.

    While one is being copied, only the newest that is handed in meanwhile waits.
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
        """Copy the complete checkpoint `folder`, if that has not been done; returns at once."""
        run_dir = folder.parent.parent
        # Now: they grow.
        beside = {name: (run_dir / name).read_bytes() for name in BESIDE if (run_dir / name).is_file()}
        with self._changed:
            assert not self._closed
            if self._waiting is not None:
                logger.warning("%s is not copied to %s: a newer one came", self._waiting[0], self._storage.address)
            self._waiting = folder, beside
            if self._thread is None:
                self._thread = guarded("uploads", self._work, self._give_up)
                self._thread.start()
            self._changed.notify_all()

    @property
    def copying(self) -> Path | None:
        """The checkpoint that is being copied now, whose files must stay."""
        return self._copying

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until nothing is left to copy; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and self._copying is None, timeout_seconds)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Wait, then end; what is not copied by then stays incomplete. Whether all was copied or given up."""
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
                (folder, beside), self._waiting = self._waiting, None
                self._copying = folder
            try:
                self._copy(folder, beside)
            except Exception as error:  # whatever it is, training goes on
                logger.warning(
                    "%s was not copied to %s: %s; training goes on, and the next checkpoint is tried",
                    *(folder, self._storage.address, error),
                    exc_info=not isinstance(error, (UserError, OSError)),
                )

    def _give_up(self, error: BaseException) -> None:
        """Nobody may wait for a thread that is gone; the next checkpoint gets another one."""
        log_failure("uploads", error)
        with self._changed:
            self._waiting = self._copying = self._thread = None
            self._changed.notify_all()

    def _copy(self, folder: Path, beside: Mapping[str, bytes]) -> None:
        begun = time.monotonic()
        if self._storage.read(f"{_read_manifest(folder)[0]}/{MANIFEST}") is not None:
            return
        upload_files(self._storage, folder)
        complete(self._storage, folder, beside)
        logger.info("%s was copied to %s in %.1f s", folder, self._storage.address, time.monotonic() - begun)
        if self._keep_last is not None:
            remove_old(self._storage, self._keep_last, beside.get(_ROLLBACKS, b""))


def _download(storage: Storage, remote: Remote, run_dir: Path, token: int) -> Path:
    checkpoints = run_dir / "checkpoints"
    final = checkpoints / f"step-{remote.step:08d}"
    aside = checkpoints / f".tmp-{token}-{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _fetch_files(storage, remote, aside)
        if final.exists():  # a damaged one, or it would not have been passed over
            set_aside = final.with_name(f"{final.name}.damaged")
            shutil.rmtree(set_aside, ignore_errors=True)
            final.rename(set_aside)
        for name in BESIDE:
            content = None if (run_dir / name).exists() else storage.read(f"{remote.name}/{_RUN}/{name}")
            if content is not None:
                replace_file(run_dir / name, content)
        aside.rename(final)
        sync_path(checkpoints)
        replace_file(checkpoints / LATEST, f"{final.name}\n")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    logger.warning("going on from %s, taken from %s", final, storage.path_of(remote.name))
    return final


def _fetch_files(storage: Storage, remote: Remote, aside: Path) -> None:
    _download_file(storage, f"{remote.name}/{MANIFEST}", aside / MANIFEST, TABLE_BYTES)
    place = storage.path_of(remote.name)
    try:
        name, files = _read_manifest(aside)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{place}/{MANIFEST} is damaged: {error}") from None
    if name != remote.name:
        raise DamagedCheckpointError(f"{place}/{MANIFEST}: its content has changed since it was written")
    needed, free = sum(digest["size"] for digest in files.values()), shutil.disk_usage(aside).free
    if needed > free:
        raise UserError(
            f"{aside.parent}: {place} needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; free space,"
            " or choose another run.dir"
        )
    for file, digest in files.items():
        path = aside / file
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_DOWNLOADS_OF_A_FILE):  # it may have been damaged on the way
            _download_file(storage, f"{remote.name}/{file}", path, digest["size"])
            if digest_files(aside, [file])[file] == digest:
                break
        else:
            raise DamagedCheckpointError(f"{place}/{file}: its content has changed since it was written")
    verify(aside)
    for folder in {(aside / file).parent for file in (*files, MANIFEST)}:
        sync_path(folder)


def _download_file(storage: Storage, name: str, path: Path, limit: int) -> None:
    try:
        storage.download(name, path, limit)
    except StorageError as error:
        if error.kind == "damaged":
            raise DamagedCheckpointError(str(error)) from error
        if error.kind == "absent":
            raise DamagedCheckpointError(f"{storage.path_of(name)}: the object is missing") from error
        raise


def _read_manifest(folder: Path) -> tuple[str, dict[str, FileDigest]]:
    """Name of a checkpoint's copy, and the digests of its files. Raises as `read_manifest` does."""
    files = read_manifest(folder)
    step = _STEP_FOLDER.search(folder.name)
    assert step is not None
    return f"{step[0]}-{file_sha256(folder / MANIFEST)[:12]}", files
