"""Finds the latest valid checkpoint, from which a run resumes, and undoes everything after it."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tolktrain.checkpoint.manifest import DamagedCheckpointError, FileDigest, read_manifest, verify_files
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.store import CheckpointStore, read_state, step_of
from tolktrain.errors import UserError
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.runs.metrics import last_step, truncate_metrics
from tolktrain.runs.rollbacks import carry_out
from tolktrain.train.stages import StagePlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """The position of a run. The folder is the checkpoint from which it continues, None at the beginning."""

    folder: Path | None
    state: Mapping[str, Any]  # state.json of the checkpoint

    @classmethod
    def of(cls, folder: Path | None) -> "Position":
        """The position of a checkpoint."""
        return cls(folder, {} if folder is None else read_state(folder))

    @classmethod
    def shared(cls, folder: Path | None, layout: Layout) -> "Position":
        """The same on all ranks, read by rank 0; collective."""
        return cls(folder, {} if folder is None else on_rank_zero(layout.rank, lambda: read_state(folder)))

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.get("step", 0))

    def is_inside(self, plan: StagePlan) -> bool:
        """Whether the checkpoint was written during this stage, so that its moments belong to the stage. The stage may
        have been complete then, and longer now."""
        return self.folder is not None and self.state["stage"] == plan.index


def find_position(
    run_dir: Path, store: CheckpointStore, previous: Mapping[str, Any] | None, layout: Layout
) -> Path | None:
    """The checkpoint to continue from, or None for a new run; collective. Metrics after it are dropped.

    `previous` is the configuration of the run's earlier start, None if there is none; rank 0's value is used.

    Raises UserError if checkpoints are lost, because starting from step 0 would silently overwrite a run.
    """

    def tidy() -> None:
        store.prepare()
        carry_out(run_dir, store)

    on_rank_zero(layout.rank, tidy)
    folder = latest_valid_checkpoint(store, layout)

    def settle() -> None:
        if folder is None:
            _refuse_if_lost(run_dir, store, previous)
        else:
            store.set_latest(folder)  # it may name a checkpoint that was just renamed
        store.rename_newer(folder)
        truncate_metrics(run_dir, 0 if folder is None else step_of(folder))

    on_rank_zero(layout.rank, settle)
    return folder


def latest_valid_checkpoint(store: CheckpointStore, layout: Layout, not_after: int | None = None) -> Path | None:
    """The latest valid checkpoint (up to the step `not_after`), or None; collective.

    Every rank verifies a part of the files. Damaged checkpoints cause warnings.
    """
    for folder in on_rank_zero(layout.rank, store.latest_first):
        if not_after is not None and step_of(folder) > not_after:
            continue
        complaint = _complaint(folder, layout)
        if complaint is None:
            return Path(folder)
        logger.warning("%s; trying an older checkpoint", complaint)
    return None


def shared_reader(folder: Path, layout: Layout) -> CheckpointReader:
    """A reader on each rank; rank 0 reads the list of tensors for all; collective."""
    return CheckpointReader(folder, on_rank_zero(layout.rank, lambda: CheckpointReader(folder).index))


def _complaint(folder: Path, layout: Layout) -> str | None:
    """The damage of a checkpoint, or None; the same on all ranks. Rank 0 reads the manifest for all."""

    def read() -> tuple[Mapping[str, FileDigest], str | None]:
        try:
            return read_manifest(folder), None
        except DamagedCheckpointError as error:
            return {}, str(error)

    files, complaint = on_rank_zero(layout.rank, read)
    if complaint is not None:
        return complaint
    try:
        verify_files(folder, files, layout.rank, layout.world_size)
    except DamagedCheckpointError as error:
        complaint = str(error)
    complaints: list[str | None] = [None] * layout.world_size
    dist.all_gather_object(complaints, complaint)
    return next((text for text in complaints if text is not None), None)


def _refuse_if_lost(run_dir: Path, store: CheckpointStore, previous: Mapping[str, Any] | None) -> None:
    reached = last_step(run_dir)
    if store.was_used() or reached >= _first_checkpoint_step(previous):
        raise UserError(
            f"{run_dir} has metrics up to step {reached} but no valid checkpoint to continue from; restore one into"
            f" {run_dir / 'checkpoints'}, or start again from step 0 with run.restart=true"
        )
    if reached:
        logger.warning(
            "the run was interrupted at step %d, before its first checkpoint, and restarts from step 0", reached
        )


def _first_checkpoint_step(previous: Mapping[str, Any] | None) -> float:
    """The first step that cannot be in the metrics of an earlier start that has not completed a checkpoint."""
    try:
        assert previous is not None
        train, every_steps = previous["train"], previous["checkpoint"]["every_steps"]
        tokens_per_step = train["global_batch_size"] * train["sequence_length"]
        end = min(math.ceil(train["stages"][0]["tokens"] / tokens_per_step), train["max_steps"] or math.inf)
        # A checkpoint that is written in the background is complete before the next one begins. A step is in the
        # metrics before that.
        return 1 + min(2 * every_steps if previous["checkpoint"]["background"] else every_steps, end)
    except (AssertionError, KeyError, TypeError, IndexError):
        return 1
