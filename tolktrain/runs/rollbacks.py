"""rollbacks.jsonl: the steps to which a run was rolled back, and the data that it skips since.

A record is written atomically before anything is changed. So if the process is killed, there is either no rollback, or
one that the next start carries out.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tolktrain.checkpoint.store import CheckpointStore, remove_quietly, step_name
from tolktrain.data.skipping import SkippedSteps
from tolktrain.errors import UserError
from tolktrain.files.reading import TABLE_BYTES, is_count, parse_json, read_text
from tolktrain.files.writing import replace_file
from tolktrain.runs.metrics import truncate_metrics
from tolktrain.runs.paths import RunPaths

_ASIDE = "rolled-back"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollback:
    """A record. Steps are counted over the whole run, from 1; data steps over the stage, from 0."""

    number: int  # from 1
    time: str
    stage: str
    reason: str
    first_bad_step: int
    last_bad_step: int
    to_step: int  # of the checkpoint that the run was rolled back to; 0 for its beginning
    skipped_data: tuple[int, int]  # the first skipped data step of the stage, and the one after the last
    carried_out: bool


def read_rollbacks(run_dir: Path) -> list[Rollback]:
    """All records, in order.

    Raises UserError if the file cannot be read: without it, the run would silently train on other data.
    """
    path = RunPaths(run_dir).rollbacks
    if not path.exists():
        return []
    try:
        rollbacks = [_parse(parse_json(line)) for line in read_text(path, TABLE_BYTES).splitlines()]
        if not rollbacks or [one.number for one in rollbacks] != list(range(1, len(rollbacks) + 1)):
            raise ValueError("lines are missing")
        return rollbacks
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it says which data the run skips: restore"
            " it, or start again from step 0 with run.restart=true"
        ) from None


def write_rollbacks(run_dir: Path, rollbacks: Iterable[Rollback]) -> None:
    """Replace the file atomically, and flush it to disk."""
    replace_file(RunPaths(run_dir).rollbacks, "".join(f"{json.dumps(asdict(one))}\n" for one in rollbacks))


def carry_out(run_dir: Path, store: CheckpointStore) -> None:
    """Carry out the last rollback, unless that is done: rename the checkpoints and drop the metrics after its step.

    For rank 0, before a checkpoint is chosen. Can be interrupted anywhere and repeated.
    """
    rollbacks = read_rollbacks(run_dir)
    if not rollbacks or rollbacks[-1].carried_out:
        return
    last = rollbacks[-1]
    suffix = f"{_ASIDE}-{last.number}"
    target = store.folder / step_name(last.to_step) if last.to_step else None
    store.set_latest(target)
    store.rename_newer(target, suffix)
    truncate_metrics(run_dir, last.to_step)
    for older in store.folder.glob(f"step-*.{_ASIDE}-*"):
        if older.suffix != f".{suffix}":
            remove_quietly(older)  # only the checkpoints of the last rollback are kept, to save disk space
    write_rollbacks(run_dir, [*rollbacks[:-1], replace(last, carried_out=True)])


def skipped_steps(rollbacks: Sequence[Rollback], stage: str) -> SkippedSteps:
    """The data steps that a stage skips."""
    return SkippedSteps(range(*one.skipped_data) for one in rollbacks if one.stage == stage)


def _parse(content: dict[str, Any]) -> Rollback:
    begin, end = content["skipped_data"]
    for number in (begin, end, *(content[key] for key in ("number", "first_bad_step", "last_bad_step", "to_step"))):
        if not is_count(number):
            raise ValueError(f"{number!r:.80} is not a number of steps")
    return Rollback(**{**content, "skipped_data": (begin, end)})
