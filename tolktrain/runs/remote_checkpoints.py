"""Copies checkpoints to an object store, and restores them.

```
<address>/
  latest                                   name of the latest complete copy, for readers that may not list
  step-00000100-1f0c93ab52de/              step, and the beginning of the manifest's SHA-256
    tensors/*.safetensors, ...             the files of the checkpoint
    run/config.yaml, run/deepspeed.json,   of the run at that time
    run/metrics.jsonl, run/rollbacks.jsonl, run/changes.jsonl
    manifest.json                          comes last: a copy is complete if and only if it has one
```
Objects are written atomically. If two trainings write a checkpoint of the same step (because an old job is still
alive), they use different names, so that their files cannot mix.

A run that is rolled back after a divergence leaves copies of later steps in the bucket. They are ignored: the run's
rollbacks.jsonl, and that of later copies, contains the step to which the run was rolled back.
"""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tolktrain.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpointError,
    digest_files,
    read_manifest,
    verify,
)
from tolktrain.checkpoint.store import LATEST, UNFINISHED_PREFIX, CheckpointStore, step_name
from tolktrain.errors import UserError
from tolktrain.files.reading import DESCRIPTION_BYTES, TABLE_BYTES, file_sha256, parse_json
from tolktrain.files.writing import replace_file, sync_path
from tolktrain.runs.paths import ROLLBACKS_FILE, RunPaths
from tolktrain.storage.base import Storage
from tolktrain.storage.errors import StorageError

_RUN = "run"
_NAME = re.compile(r"step-([0-9]{8,18})-([0-9a-f]{12})")
_STEP_FOLDER = re.compile(r"step-([0-9]{8,18})")
_DOWNLOADS_OF_A_FILE = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A complete copy."""

    name: str
    step: int


def find_remote(storage: Storage) -> list[RemoteCheckpoint]:
    """All complete copies, latest first. If listing is refused, the one that `latest` names.

    Raises UserError if the storage cannot be reached.
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
    remotes = [RemoteCheckpoint(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    # Of two copies of one step, the one that was finished last comes first.
    return sorted(remotes, key=lambda remote: (remote.step, remote.name == latest), reverse=True)


def restore(storage: Storage, run_dir: Path, newer_than: int, token: int = 0) -> Path | None:
    """Download the latest valid copy above step `newer_than` to checkpoints/ of a run; None if there is none.

    Returns its folder, which is created atomically after verification. The files of `RunPaths.needed_to_resume` are
    fetched if the run has none. Copies of steps that a rollback has undone are skipped; damaged ones cause warnings.
    For one process, which holds the lease of `token`.

    Raises UserError if the storage cannot be reached, the disk is too small, or all copies are damaged and the run
    would start from step 0 (`newer_than` is 0).
    """
    damaged = []
    newer = [remote for remote in find_remote(storage) if remote.step > newer_than]
    file = RunPaths(run_dir).rollbacks
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
        raise UserError("; ".join([f"{storage.address} has no valid checkpoint to continue from", *damaged]))
    return None


def forget(storage: Storage) -> None:
    """Make all copies incomplete, so that a run that is restarted from step 0 does not continue from them."""
    storage.delete(LATEST)
    for remote in find_remote(storage):
        storage.delete(f"{remote.name}/{MANIFEST}")


def remote_name(folder: Path) -> str:
    """Name of the copy of a checkpoint. Raises OSError if it has no manifest."""
    step = _STEP_FOLDER.search(folder.name)
    assert step is not None
    return f"{step[0]}-{file_sha256(folder / MANIFEST)[:12]}"


def upload_files(storage: Storage, folder: Path) -> None:
    """Copy all files of the complete checkpoint `folder` except the manifest, largest first."""
    name, files = remote_name(folder), read_manifest(folder)
    for file in sorted(files, key=lambda file: (-files[file]["size"], file)):
        storage.upload(folder / file, f"{name}/{file}")


def complete(storage: Storage, folder: Path, run_files: Mapping[str, bytes]) -> None:
    """Make the copy of `folder` complete: copy the manifest and let `latest` name the copy.

    `run_files` are small files of the run by name, with their content at that step.
    """
    name = remote_name(folder)
    for file, content in run_files.items():
        storage.write(f"{name}/{_RUN}/{file}", content)
    storage.upload(folder / MANIFEST, f"{name}/{MANIFEST}")
    storage.write(LATEST, f"{name}\n".encode())


def remove_old(storage: Storage, keep_last: int, rollbacks: bytes = b"") -> None:
    """Delete complete copies except the latest `keep_last`, and those of steps that a rollback has undone.

    `rollbacks` is the run's rollbacks.jsonl. The manifest of a copy is deleted first, so that no partial copy counts as
    complete.
    """
    remotes = find_remote(storage)
    undone = _undone(storage, remotes, rollbacks) if rollbacks else set()
    kept = [remote for remote in remotes if remote not in undone][:keep_last]
    for remote in (remote for remote in remotes if remote not in kept):
        storage.delete(f"{remote.name}/{MANIFEST}")
        for name in storage.names(f"{remote.name}/"):
            storage.delete(name)


def _undone(storage: Storage, remotes: Sequence[RemoteCheckpoint], rollbacks: bytes) -> set[RemoteCheckpoint]:
    """Copies that were made before a rollback to an earlier step.

    `rollbacks` is the run's rollbacks.jsonl, empty if the disk has none; each copy contains the file of its step.
    """
    known = {remote: _to_steps(storage.read(f"{remote.name}/{_RUN}/{ROLLBACKS_FILE}") or b"") for remote in remotes}
    history = max([_to_steps(rollbacks), *known.values()], key=len)
    return {remote for remote in remotes if any(step < remote.step for step in history[len(known[remote]) :])}


def _to_steps(rollbacks: bytes) -> list[int]:
    try:
        return [int(parse_json(line)["to_step"]) for line in rollbacks.splitlines()]
    except (ValueError, KeyError, TypeError, OverflowError):
        return []  # `read_rollbacks` reports a damaged file of the run


def _download(storage: Storage, remote: RemoteCheckpoint, run_dir: Path, token: int) -> Path:
    paths = RunPaths(run_dir)
    checkpoints = paths.checkpoints
    final = checkpoints / step_name(remote.step)
    aside = checkpoints / f"{UNFINISHED_PREFIX}{token}-{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _fetch_files(storage, remote, aside)
        if final.exists():  # damaged: an intact one of this step would be used
            damaged = final.with_name(f"{final.name}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            final.rename(damaged)
        for file in paths.needed_to_resume:
            content = None if file.exists() else storage.read(f"{remote.name}/{_RUN}/{file.name}")
            if content is not None:
                replace_file(file, content)
        aside.rename(final)
        CheckpointStore(checkpoints).set_latest(final, token)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    logger.warning("continuing from %s, fetched from %s", final, storage.path_of(remote.name))
    return final


def _fetch_files(storage: Storage, remote: RemoteCheckpoint, aside: Path) -> None:
    _download_file(storage, f"{remote.name}/{MANIFEST}", aside / MANIFEST, TABLE_BYTES)
    place = storage.path_of(remote.name)
    try:
        files = read_manifest(aside)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{place}/{MANIFEST} is damaged: {error}") from None
    if remote_name(aside) != remote.name:
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
        for _ in range(_DOWNLOADS_OF_A_FILE):  # the transfer may have damaged it
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
