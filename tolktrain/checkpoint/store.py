"""Checkpoints of a run: folders that are complete or absent.

```
checkpoints/
  latest                      name of the newest complete checkpoint
  step-00000100/
    parameters/*.safetensors      float32 value of every parameter, frozen ones too, under canonical names
    first_moments/*.safetensors   Adam's moments of the parameters that were trained, under the same names
    second_moments/*.safetensors
    state.json                    everything small: step, stage, data position, random states, versions, architecture
    manifest.json                 size and SHA-256 of every file
```
In bf16 the model's own parameters are these float32 masters, rounded, and so need no place of their own.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from tolktrain.checkpoint.manifest import (
    DamagedCheckpointError,
    digest_files,
    looks_complete,
    sync_path,
    verify,
    write_manifest,
    write_synced,
)
from tolktrain.checkpoint.tensors import Shares, read_tensors, write_tensors
from tolktrain.config.errors import UserError
from tolktrain.parallel.together import on_rank_zero, together

LATEST = "latest"
STATE = "state.json"
PARAMETERS, FIRST_MOMENTS, SECOND_MOMENTS = "parameters", "first_moments", "second_moments"
_COMPLETE_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED_PREFIX = ".tmp-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What one rank contributes to a checkpoint: tensors it owns, by canonical name, float32 on the CPU."""

    parameters: dict[str, Tensor]
    first_moments: dict[str, Tensor]
    second_moments: dict[str, Tensor]

    def kinds(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by the name of their folder."""
        return {
            PARAMETERS: self.parameters,
            FIRST_MOMENTS: self.first_moments,
            SECOND_MOMENTS: self.second_moments,
        }


class CheckpointStore:
    """The folder `checkpoints/` of a run. Methods marked collective are called by all ranks together."""

    def __init__(self, run_dir: Path, keep_last: int, rank: int = 0) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep_last = keep_last
        self._rank = rank
        self.spared: int | None = None  # for now, no checkpoint up to this step is removed; rank 0's counts

    def prepare(self) -> None:
        """Create the folder, and remove what interrupted saves have left. For one process, before anything is saved."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(f"{_UNFINISHED_PREFIX}*"):
            logger.info("removing the unfinished %s", leftover)
            _remove(leftover)

    def save(self, step: int, snapshot: Snapshot, shares: Shares, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`; collective. When this returns, all of it is on disk under its name.

        Raises OSError or RuntimeError on every rank when one of them could not write its part, and leaves nothing.
        """
        final = self._folder / step_name(step)
        aside = self._folder / f"{_UNFINISHED_PREFIX}{final.name}"
        try:
            self._write(aside, snapshot, shares, state)
            on_rank_zero(self._rank, lambda: self._publish(aside, final))
        except BaseException:
            if self._rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        return final

    def find_latest(self, not_after: int | None = None) -> Path | None:
        """The newest sound checkpoint (up to the step `not_after`), or None where there is none; damaged ones are named
        in a warning."""
        for folder in self._newest_first():
            if not_after is not None and step_of(folder) > not_after:
                continue
            try:
                verify(folder)
            except DamagedCheckpointError as error:
                logger.warning("%s; trying an older checkpoint", error)
                continue
            return folder
        return None

    def newest(self) -> Path | None:
        """The newest checkpoint, sound or not; for a process that has written it itself."""
        folders = self._newest_first()
        return folders[0] if folders else None

    def was_used(self) -> bool:
        """Whether a checkpoint has ever been completed here."""
        return (self._folder / LATEST).exists() or bool(self._newest_first())

    def set_latest(self, folder: Path | None) -> None:
        """Let `latest` name a checkpoint, or nothing."""
        if folder is None:
            (self._folder / LATEST).unlink(missing_ok=True)
        else:
            replacement = self._folder / f"{_UNFINISHED_PREFIX}{LATEST}"
            write_synced(replacement, f"{folder.name}\n".encode())
            os.replace(replacement, self._folder / LATEST)
        sync_path(self._folder)

    def set_aside_newer(self, folder: Path | None, suffix: str = "damaged") -> None:
        """Rename checkpoints newer than `folder`, so that they are not met again."""
        for other in self._newest_first():
            if folder is None or step_of(other) > step_of(folder):
                target = other.with_name(f"{other.name}.{suffix}")
                _remove(target)
                other.rename(target)
                logger.warning("%s is %s and was renamed to %s", other, suffix, target.name)

    def _write(self, aside: Path, snapshot: Snapshot, shares: Shares, state: Mapping[str, Any]) -> None:
        def start() -> None:
            _remove(aside)
            for kind in snapshot.kinds():
                (aside / kind).mkdir(parents=True)
            write_synced(aside / STATE, json.dumps(state, indent=1).encode())

        on_rank_zero(self._rank, start)
        for kind, tensors in snapshot.kinds().items():
            write_tensors(aside / kind, tensors, shares)
        # Each rank hashes what it wrote while that is still in its page cache.
        mine = [f"{kind}/{path.name}" for kind in snapshot.kinds() for path in self._files_of_rank(aside / kind)]
        digests = digest_files(aside, [*mine, *([STATE] if self._rank == 0 else [])])
        everyone = _gathered(digests)
        on_rank_zero(self._rank, lambda: write_manifest(aside, {k: v for part in everyone for k, v in part.items()}))

    def _files_of_rank(self, folder: Path) -> list[Path]:
        return sorted(folder.glob(f"shard-{self._rank + 1:05d}-*"))

    def _publish(self, aside: Path, final: Path) -> None:
        for folder in (*(path for path in aside.iterdir() if path.is_dir()), aside):
            sync_path(folder)
        _remove(final)  # a damaged one of the same step, or find_latest would have resumed from it
        aside.rename(final)
        sync_path(self._folder)
        self.set_latest(final)
        self._remove_old()

    def _remove_old(self) -> None:
        folders = self._newest_first()
        kept, old = folders[: self._keep_last], folders[self._keep_last :]
        old = [folder for folder in old if self.spared is None or step_of(folder) > self.spared]
        if any(looks_complete(folder) for folder in kept):
            for folder in old:
                # Renamed first: a removal that is interrupted must not leave half a checkpoint under a good name.
                doomed = folder.with_name(f"{_UNFINISHED_PREFIX}{folder.name}")
                _remove(doomed)
                folder.rename(doomed)
                _remove(doomed)

    def _newest_first(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        folders = [path for path in self._folder.iterdir() if _COMPLETE_NAME.fullmatch(path.name)]
        return sorted(folders, key=step_of, reverse=True)


def step_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of the checkpoint `folder`."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / STATE}: cannot be read: {error}") from None
    assert isinstance(state, dict)
    return state


def read_parameters(folder: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Parameters by canonical name, whole, float32 on the CPU: all, or those of `names` that are there."""
    return read_tensors(folder / PARAMETERS, names)


def read_moments(folder: Path, names: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adam's first and second moments by canonical name, as `read_parameters` gives parameters."""
    return read_tensors(folder / FIRST_MOMENTS, names), read_tensors(folder / SECOND_MOMENTS, names)


def _gathered(value: dict[str, Any]) -> list[dict[str, Any]]:
    if not together():
        return [value]
    everyone: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
