"""The disk space that the checkpoints of a run need."""

from collections.abc import Mapping
from pathlib import Path

from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.health.reports import Space
from tolktrain.config import Config

_TRAINED_BYTES = 12  # of a parameter: float32 value and two moments
_FROZEN_BYTES = 4
_STATE_BYTES = 32 * 1024  # of state.json and manifest.json, for each rank
_OTHER_FILES = 64  # metrics, logs, TensorBoard


def checkpoint_bytes(counts: Mapping[str, int], config: Config, world_size: int) -> int:
    """Upper bound of the size of a checkpoint. Groups that no stage trains have no moments.

    Args:
        counts: elements of each parameter group.
        config: the run.
        world_size: number of ranks, each of which stores its random state.
    """
    trained = {group for stage in config.train.stages for group in stage.trainable}
    tensors = sum(count * (_TRAINED_BYTES if group in trained else _FROZEN_BYTES) for group, count in counts.items())
    return tensors + _STATE_BYTES * world_size


def needed_space(
    counts: Mapping[str, int], config: Config, world_size: int, checkpoints: Path, restarts: bool
) -> Space:
    """The needed space: two checkpoints, or one if there are already `keep_last`, because then the oldest is removed.

    `restarts`: whether the existing checkpoints are deleted first.
    """
    store = CheckpointStore(checkpoints)
    keep_last = config.checkpoint.keep_last
    # Without renamed checkpoints, which new checkpoints do not replace.
    existing = 0 if restarts else len(store.latest_first())
    num_checkpoints = max(1, min(2, keep_last + 1 - existing))
    return Space(
        folder=str(checkpoints.parent),
        checkpoint_bytes=checkpoint_bytes(counts, config, world_size),
        num_checkpoints=num_checkpoints,
        num_files=num_checkpoints * (world_size + 8) + _OTHER_FILES,
        keep_last=keep_last,
        num_existing=existing,
        reclaimed_bytes=_folder_bytes(store.folder) if restarts else 0,
    )


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
