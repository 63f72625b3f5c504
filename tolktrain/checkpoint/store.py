"""Checkpoints of a run: folders that are complete or absent.

```
checkpoints/
  latest                      name of the latest complete checkpoint
  step-00000100/
    tensors/*.safetensors   parameters/NAME: float32 value of every parameter, frozen ones too, under canonical names;
                            first_moments/NAME, second_moments/NAME: Adam's moments of those that were trained
    tensors.json            which slices of which tensor are in which file
    state.json              everything small: step, stage, data position, random states, versions, architecture
    manifest.json           size and SHA-256 of every file
```
Every rank writes the slices that it holds to its own file; if there are many ranks, neighbouring ranks share a file.
Older checkpoints have a folder of files for each kind; they can be read too. In bf16, the model's parameters are the
rounded float32 master weights, so they are not stored separately. `saver` writes checkpoints; this module finds and
reads them.
"""

import contextlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from tolktrain.checkpoint.manifest import DamagedCheckpointError, verify
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.slices import FIRST_MOMENTS, PARAMETERS, SECOND_MOMENTS
from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.files.writing import sync_path, write_synced

LATEST = "latest"
STATE = "state.json"
UNFINISHED_PREFIX = ".tmp-"
_LARGEST_STATE = 1 << 28  # bytes; each rank has its random states in it
_COMPLETE_NAME = re.compile(r"step-([0-9]{8,18})")

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in a folder. Not collective."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist yet."""
        self.folder = folder

    def prepare(self) -> None:
        """Create the folder, and remove unfinished checkpoints. Called by one process, before the first save.

        If an earlier job is still writing a checkpoint, that is removed too, and its rename fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in list(self.folder.glob(f"{UNFINISHED_PREFIX}*")):
            logger.info("removing the unfinished %s", leftover)
            with contextlib.suppress(FileNotFoundError):  # an earlier job has just completed it
                discard(leftover)

    def find_latest(self, warn: Callable[[str], object] = logger.warning) -> Path | None:
        """The latest valid checkpoint, or None. `warn` gets a message for each damaged checkpoint that is newer.

        Raises UserError at a checkpoint of another format.
        """
        for folder in self.latest_first():
            try:
                verify(folder)
            except DamagedCheckpointError as error:
                warn(str(error))
                continue
            return folder
        return None

    def latest(self) -> Path | None:
        """The latest checkpoint, without verification; for a process that has written it itself."""
        folders = self.latest_first()
        return folders[0] if folders else None

    def was_used(self) -> bool:
        """Whether a checkpoint has ever been completed here."""
        return (self.folder / LATEST).exists() or bool(self.latest_first())

    def set_latest(self, folder: Path | None, token: int = 0, check: Callable[[], object] = lambda: None) -> None:
        """Let `latest` name a checkpoint, or remove it. `check` runs just before the replacement and may raise."""
        if folder is None:
            (self.folder / LATEST).unlink(missing_ok=True)
        else:
            replacement = self.folder / f"{UNFINISHED_PREFIX}{token:08d}-{LATEST}"
            write_synced(replacement, f"{folder.name}\n".encode())
            check()
            os.replace(replacement, self.folder / LATEST)
        sync_path(self.folder)

    def rename_newer(self, folder: Path | None, suffix: str = "damaged") -> None:
        """Rename checkpoints newer than `folder`, so that they are no longer found."""
        for other in self.latest_first():
            if folder is None or step_of(other) > step_of(folder):
                target = other.with_name(f"{other.name}.{suffix}")
                remove(target)
                other.rename(target)
                logger.warning("%s is %s and was renamed to %s", other, suffix, target.name)

    def latest_first(self) -> list[Path]:
        """Folders of all complete checkpoints; they may have been damaged since."""
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if _COMPLETE_NAME.fullmatch(path.name)]
        return sorted(folders, key=step_of, reverse=True)


def step_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of the checkpoint `folder`. Raises UserError when it cannot be read."""
    try:
        state = read_json(folder / STATE, _LARGEST_STATE)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / STATE}: cannot be read: {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{folder / STATE}: does not hold the state of a training run; take another checkpoint")
    return state


def read_parameters(folder: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Whole parameters by canonical name, float32 on the CPU: all, or those of `names` that exist."""
    return _read(folder, PARAMETERS, names)


def read_moments(folder: Path, names: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adam's first and second moments by canonical name, like `read_parameters`."""
    return _read(folder, FIRST_MOMENTS, names), _read(folder, SECOND_MOMENTS, names)


def _read(folder: Path, kind: str, names: Collection[str] | None) -> dict[str, Tensor]:
    with CheckpointReader(folder) as reader:
        wanted = [name for name in reader.shapes(kind) if names is None or name in names]
        return {name: reader.read_whole(kind, name) for name in wanted}


def discard(path: Path) -> None:
    """Rename a checkpoint, then remove it. A failed removal is a warning.

    A network file system keeps a folder as long as a process has one of its files open, and an interrupted removal must
    not leave a partial checkpoint under a valid name. The next start removes what is left.
    """
    doomed = path.with_name(f"{UNFINISHED_PREFIX}{uuid.uuid4().hex[:8]}-{path.name.removeprefix(UNFINISHED_PREFIX)}")
    path.rename(doomed)
    remove_quietly(doomed)


def remove_quietly(path: Path) -> None:
    """Remove a file or folder, if it exists; a failure is a warning."""
    try:
        remove(path)
    except OSError as error:
        logger.warning("%s could not be removed: %s", path, error)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
