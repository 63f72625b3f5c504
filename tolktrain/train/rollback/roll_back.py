"""Rolls a run back to before a divergence, and skips the data that led to it."""

import logging
from datetime import datetime, timezone
from pathlib import Path

from tolktrain.checkpoint.store import step_of
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.parallel.collectives import on_rank_zero
from tolktrain.parallel.layout import Layout
from tolktrain.runs.changes import record_changes
from tolktrain.runs.paths import RunPaths
from tolktrain.runs.rollbacks import (
    Rollback,
    carry_out,
    read_rollbacks,
    skipped_steps,
    write_rollbacks,
)
from tolktrain.train.open_run import OpenRun
from tolktrain.train.resume import latest_valid_checkpoint
from tolktrain.train.rollback.divergence import Incident
from tolktrain.train.stages import StagePlan, plan_stages

logger = logging.getLogger(__name__)


def roll_back(config: Config, run: OpenRun, layout: Layout, plan: StagePlan, incident: Incident) -> Path | None:
    """Record the rollback and carry it out; collective, while no save is running.

    Returns:
        The checkpoint to continue from, None for the beginning of the run.

    Raises:
        UserError: there were too many rollbacks, no checkpoint is left, or another job has taken over the run.
    """
    run_dir, store = run.path, run.store
    rollbacks = on_rank_zero(layout.rank, lambda: read_rollbacks(run_dir))
    if len(rollbacks) >= config.train.guard.max_rollbacks:
        raise UserError(_given_up(run_dir, plan, incident, len(rollbacks)))
    good = incident.first_step - 1
    folder = latest_valid_checkpoint(store, layout, not_after=_first_suspect(config, plan, incident.first_step))
    # If there is no other checkpoint, one that was trained on suspect data is used.
    folder = folder or latest_valid_checkpoint(store, layout, not_after=good)
    if folder is None and good >= min(config.checkpoint.every_steps, plan_stages(config)[0].last_step):
        raise UserError(
            f"training has diverged: {incident.reason}; no valid checkpoint of step {good} or before is left to"
            f" roll back to; raise checkpoint.keep_last in a new run, or lower train.guard.max_skipped_in_a_row and"
            " train.guard.spike_patience to below the steps that the kept checkpoints span"
        )
    to_step = 0 if folder is None else step_of(folder)
    first = max(_first_suspect(config, plan, incident.first_step), to_step)
    known = skipped_steps(rollbacks, plan.name)
    record = Rollback(
        number=len(rollbacks) + 1,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        stage=plan.name,
        reason=incident.reason,
        first_bad_step=incident.first_step,
        last_bad_step=incident.last_step,
        to_step=to_step,
        skipped_data=(
            known.data_step(first - plan.first_step),
            known.data_step(incident.last_step - 1 - plan.first_step) + 1,
        ),
        carried_out=False,
    )
    logger.warning(
        "stage %r, step %d: %s; rolling back to step %d and skipping the data of steps %d to %d (rollback %d of at"
        " most %d)",
        plan.name, incident.last_step, incident.reason, to_step, first + 1, incident.last_step, record.number,
        config.train.guard.max_rollbacks,
    )  # fmt: skip

    def act() -> None:
        run.fence.check()
        write_rollbacks(run_dir, [*rollbacks, record])
        carry_out(run_dir, store)
        record_changes(run_dir, to_step, config.model_dump(mode="json"))

    on_rank_zero(layout.rank, act)
    return folder


def _first_suspect(config: Config, plan: StagePlan, first_bad: int) -> int:
    """Steps done before the first whose data is skipped, if `first_bad` is the first bad step."""
    return max(first_bad - 1 - config.train.guard.skip_before, plan.first_step)


def _given_up(run_dir: Path, plan: StagePlan, incident: Incident, times: int) -> str:
    learned = f"the run was rolled back {times} time{'s' * (times > 1)} already (see {RunPaths(run_dir).rollbacks}); "
    return (
        f"training has diverged: in the stage {plan.name!r}, up to step {incident.last_step}, {incident.reason};"
        f" {learned if times else ''}start it again with a higher train.guard.max_rollbacks, to roll back again"
        " and skip the data; if that is not enough, also with a lower learning rate of the stage, a lower"
        " train.optimizer.clip_grad_norm or a longer warm-up"
    )
