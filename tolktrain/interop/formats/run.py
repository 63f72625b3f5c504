"""A run: the latest valid checkpoint of its run directory."""

import logging
from pathlib import Path

from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.interop.formats.checkpoint import FORMAT as CHECKPOINT
from tolktrain.interop.formats.format import Weights, WeightsFormat
from tolktrain.runs.listing import choose_checkpoint
from tolktrain.runs.paths import RunPaths

logger = logging.getLogger(__name__)


def _run_directory(folder: Path) -> Path:
    """The run directory, which may be named by its folder of checkpoints."""
    is_store = folder == RunPaths(folder.parent).checkpoints and CheckpointStore(folder).was_used()
    return folder.parent if is_store else folder


def _recognizes(folder: Path) -> bool:
    paths = RunPaths(_run_directory(folder))
    return paths.config.is_file() or paths.checkpoints.is_dir()


def _describe(folder: Path) -> Weights:
    return CHECKPOINT.describe(choose_checkpoint(_run_directory(folder), warn=logger.warning))


# The description is that of the checkpoint, which is what is opened.
FORMAT = WeightsFormat("run", _recognizes, _describe, CHECKPOINT.open)
