"""The run directory: created or opened, and refused if it belongs to another configuration."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tolktrain.checkpoint.store import CheckpointStore, step_of
from tolktrain.config import Config
from tolktrain.config.changes import Difference, differences, with_defaults
from tolktrain.config.deepspeed import DeepSpeedFile, DeepSpeedSettings, read_deepspeed_file
from tolktrain.config.document import read_document
from tolktrain.config.load import dump_config
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.files.writing import replace_file
from tolktrain.runs.changes import Change, record_changes, shown_value
from tolktrain.runs.copies import forget_copies, restore_latest
from tolktrain.runs.deepspeed_entries import is_same_file, read_kept_entries, write_kept_entries
from tolktrain.runs.lease import Lease, LostLeaseError
from tolktrain.runs.metrics import last_step
from tolktrain.runs.paths import RunPaths
from tolktrain.runs.rollbacks import Rollback, read_rollbacks
from tolktrain.runs.steering import steering_differences

logger = logging.getLogger(__name__)


class RunDirectory:
    """The run directory, which one training holds at a time. Used on rank 0 only; the other ranks know the path.

    `open` changes nothing in it except the lease. `begin` changes it, after all input has been validated.
    """

    def __init__(self, config: Config, lease: Lease, created: list[Path]) -> None:
        self.paths = RunPaths.of(config)
        # Configuration of the earlier start that this start continues, None for a new run.
        self.previous: dict[str, Any] | None = None
        self.deepspeed = DeepSpeedFile(None, {})  # from which this start resolves DeepSpeed's settings
        self.deepspeed_changes: str | None = None  # changes of the entries since the last start; for the log
        self._kept_as: str | None = None  # path of the file from which the entries were first read
        self.restarts = config.run.restart and _may_restart()
        self.lease = lease
        self._config = config
        self._tree = config.model_dump(mode="json")
        self._created = created
        self._steering: list[Difference] = []  # from the last start

    @classmethod
    def open(cls, config: Config, report: Callable[[str], None] | None = None) -> "RunDirectory":
        """Create or open the directory, and take its lease; `report` (the terminal) gets a line if it has to wait.

        A newer checkpoint is fetched from `checkpoint.upload`, if there is one.

        Raises UserError if another training holds the directory, or it belongs to a run of another configuration.
        """
        paths = RunPaths.of(config)
        path = paths.root
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            lease = Lease.take(path, report=report or _say)
        except OSError as error:
            by_machine = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(f"run.dir: cannot write to {path}: {error}", by_machine=by_machine) from None
        directory = cls(config, lease, created)
        try:
            if not directory.restarts:
                restore_latest(config, path, lease.token)
                directory.previous = _read_previous(paths)
            if directory.previous is not None:
                rollbacks = read_rollbacks(path)
                directory._steering = steering_differences(
                    path,
                    directory.previous,
                    directory._tree,
                    _steps_done(paths, rollbacks),
                    {o.stage for o in rollbacks},
                )
            directory._find_deepspeed_entries()
        except BaseException:
            directory.discard_unused()
            directory.close()
            raise
        return directory

    def begin(self, resolved: DeepSpeedSettings, step: int) -> list[Change]:
        """Empty the directory if the run restarts from step 0, and write config.yaml, deepspeed.json and changes.jsonl.

        Returns the changes of the configuration that apply from here, after `step` steps.
        """
        if self.restarts:
            forget_copies(self._config)
            _clear(self.paths)
        write_kept_entries(self.paths.deepspeed, replace(self.deepspeed, path=self._kept_as), resolved)
        # Before config.yaml, from which the next start would otherwise derive no change.
        changes = record_changes(self.paths.root, step, self._tree, self._steering)
        replace_file(self.paths.config, dump_config(self._config))
        return changes

    def _find_deepspeed_entries(self) -> None:
        """Use the kept entries if `deepspeed.config` names the same file; otherwise the entries of the named file."""
        named, copy = self._config.deepspeed.config, self.paths.deepspeed
        kept = read_kept_entries(copy) if self.previous is not None else None
        if kept is None or not is_same_file(kept.path, named):
            self.deepspeed, self._kept_as = read_deepspeed_file(self._config), named
            if kept is not None and (found := _changed_entries(kept.entries, self.deepspeed.entries)):
                self.deepspeed_changes = f"deepspeed.config is {named} now, {kept.path} before:\n  " + "\n  ".join(
                    found
                )
            return
        entries = _without_clipping(kept.entries)
        self.deepspeed, self._kept_as = DeepSpeedFile(str(copy), entries), kept.path
        try:
            found = _changed_entries(entries, _without_clipping(read_deepspeed_file(self._config).entries))
        except UserError as error:
            found = [str(error)]
        if found:
            self.deepspeed_changes = (
                f"the file of deepspeed.config, {named}, has changed since this run read it:\n  "
                + "\n  ".join(found)
                + f"\nthe run keeps the entries in {copy}; to take the new ones, give the file another name and set"
                " deepspeed.config to it"
            )

    def close(self) -> None:
        """Release the directory for other trainings."""
        self.lease.release()

    def discard_unused(self) -> None:
        """Remove the folders that this start has created, if no step has been logged."""
        path = self.paths.root
        if path not in self._created or _has_begun(self.paths):
            return
        try:
            self.lease.check()
        except (LostLeaseError, OSError):
            return  # another training may own the directory now
        self.lease.stop()
        # Renamed first: another start must not find a partially deleted directory.
        doomed = path.with_name(f".discarded-{path.name}-{self.lease.token}")
        path.rename(doomed)
        shutil.rmtree(doomed)
        with contextlib.suppress(OSError):  # another run may have been started in one of them
            for parent in self._created[1:]:
                parent.rmdir()


def _without_clipping(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without the one that restates train.optimizer.clip_grad_norm, which the run may change later."""
    return {name: value for name, value in entries.items() if name != "gradient_clipping"}


def _changed_entries(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = sorted(differences(before, after), key=lambda one: one.key)
    return [f"{one.key}: {shown_value(one.old)} before, {shown_value(one.new)} now" for one in found]


def _may_restart() -> bool:
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return True
    logger.warning("run.restart has no effect: Slurm has requeued this job, which continues from its checkpoint")
    return False


def _say(line: str) -> None:
    print(printable(line), flush=True)  # at once, also into the output file of a job


def _read_previous(paths: RunPaths) -> dict[str, Any] | None:
    """The configuration of the existing run, with the defaults of keys that an older release did not have; None if no
    start has reached a step."""
    file = paths.config
    if not file.exists() or not (_has_begun(paths) or CheckpointStore(paths.checkpoints).was_used()):
        return None
    try:
        content: dict[str, Any] = read_document(file).plain()
    except UserError as error:
        raise UserError(f"{error}; restore the file, or start again from step 0 with run.restart=true") from None
    completed: dict[str, Any] = with_defaults(content)
    return completed


def _steps_done(paths: RunPaths, rollbacks: Sequence[Rollback]) -> int:
    """The step of the latest checkpoint. A damaged one counts too, because its steps were done."""
    folder = CheckpointStore(paths.checkpoints).latest()
    step = 0 if folder is None else step_of(folder)
    return step if not rollbacks or rollbacks[-1].carried_out else min(step, rollbacks[-1].to_step)


def _has_begun(paths: RunPaths) -> bool:
    """Whether the run has logged a step or has been rolled back; a run that was rolled back to its beginning has no
    steps."""
    return bool(last_step(paths.root)) or paths.rollbacks.exists()


def _clear(paths: RunPaths) -> None:
    entries = [entry for entry in paths.root.iterdir() if entry not in (paths.lease, paths.logs)]
    if entries and not paths.config.exists():
        raise UserError(
            f"run.restart would delete {paths.root}, which is not a run directory (it has no {paths.config.name})"
        )
    # config.yaml is deleted last, so that after an interrupted restart the directory is still a run directory.
    for entry in sorted(entries, key=lambda entry: entry == paths.config):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)  # heartbeat.json may be renamed meanwhile
