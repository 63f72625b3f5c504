"""The verb `prepare`: the parts of this machine, and the display of progress."""

import os
import re
from collections.abc import Mapping

from tolktrain.config.prepare import PrepareConfig
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.prepare.job.pipeline import Task, prepare
from tolktrain.prepare.job.progress import ProgressDisplay

_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")


def run(config: PrepareConfig, task: str | None, retry: bool = False) -> None:
    """Prepare a data set. Raises `UserError` for bad input."""
    prepare(config, task_of(task), ProgressDisplay(Console()), retry)


def task_of(given: str | None, environ: Mapping[str, str] = os.environ) -> Task:
    """The share of this machine: as given, else that of a task of a Slurm array, else everything."""
    if given is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", given)
        if match is None:
            raise UserError(f"--task is {given!r}; write it as number/total, such as 0/4 for the first of four")
        return Task(int(match[1]), int(match[2]))
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return Task()
    number, first, last, step = (int(environ.get(name, "1" if name.endswith("STEP") else "0")) for name in _ARRAY)
    total = (last - first) // step + 1
    if int(environ.get("SLURM_ARRAY_TASK_COUNT", total)) != total:
        raise UserError(
            f"the array's tasks from {first} to {last} are not evenly numbered, so the parts of those that are left out"
            " would belong to no task; submit with --array=0-N, or give each its share by --task I/N"
        )
    return Task((number - first) // step, total)
