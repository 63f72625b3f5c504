"""Whether the run's folder can take the checkpoints of a run."""

import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.health.probes import Probes
from tolktrain.cluster.health.reports import Folder, Space
from tolktrain.config import Config
from tolktrain.files.shared import create_file

_TRAINED_BYTES = 12  # of a parameter: float32 value and two moments
_FROZEN_BYTES = 4
_STATE_BYTES = 32 * 1024  # of state.json and manifest.json, for each rank
_OTHER_FILES = 64  # metrics, logs, TensorBoard
_MARK = ".health-check"
_PATIENCE_SECONDS = (0.0, 0.5, 1.5)  # before each look at a network file system


def checkpoint_bytes(counts: Mapping[str, int], config: Config, world_size: int) -> int:
    """Size of a checkpoint, at most. Groups that no stage trains have no moments.

    Args:
        counts: elements of each parameter group.
        config: the run.
        world_size: ranks, each of which has a random state in it.
    """
    trained = {group for stage in config.train.stages for group in stage.trainable}
    tensors = sum(count * (_TRAINED_BYTES if group in trained else _FROZEN_BYTES) for group, count in counts.items())
    return tensors + _STATE_BYTES * world_size


def needed_space(counts: Mapping[str, int], config: Config, world_size: int, run_dir: Path, starts_anew: bool) -> Space:
    """What there must be room for: two checkpoints, or one if as many are kept are there: the oldest makes way.

    `starts_anew`: whether the checkpoints that are there are deleted first.
    """
    store = CheckpointStore(run_dir)
    keep_last = config.checkpoint.keep_last
    # Not those that were set aside: no new one makes them go.
    existing = 0 if starts_anew else len(store.newest_first())
    num_checkpoints = max(1, min(2, keep_last + 1 - existing))
    return Space(
        folder=str(run_dir),
        checkpoint_bytes=checkpoint_bytes(counts, config, world_size),
        num_checkpoints=num_checkpoints,
        num_files=num_checkpoints * (world_size + 8) + _OTHER_FILES,
        keep_last=keep_last,
        num_existing=existing,
        reclaimed_bytes=_folder_bytes(store.folder) if starts_anew else 0,
    )


class Mark:
    """A file of rank 0 in the run's folder, by which other nodes know that theirs is the same."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _MARK

    def leave(self) -> str:
        """Write it; returns what it says, or nothing if that fails, which will be told by `look`."""
        text = secrets.token_hex(8)
        try:
            with create_file(self._path) as file:
                file.write(text.encode())
        except OSError:
            return ""
        return text

    def remove(self) -> None:
        """Delete it."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def look(folder: Path, mark: str, rank: int, probes: Probes) -> Folder:
    """The run's folder as this rank's node sees it. `mark` is what rank 0 has left there."""
    own = folder / f"{_MARK}-{rank:05d}"
    try:
        create_file(own).close()
        own.unlink()
        free_bytes, free_files = probes.space(folder)
    except OSError as error:
        return Folder(fault=error.strerror or str(error))
    return Folder("", _sees(folder, mark), free_bytes, free_files)


def _sees(folder: Path, mark: str) -> bool:
    for seconds in _PATIENCE_SECONDS:
        time.sleep(seconds)
        try:
            os.listdir(folder)  # a network file system may answer from what it remembers of the folder
            seen = (folder / _MARK).read_text()
        except OSError:
            seen = ""
        if seen == mark:
            return True
    return False


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
