"""Which changes of its configuration a run accepts, given the steps that are done."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tolktrain.config.changes import Difference, Tree, class_of, differences
from tolktrain.errors import UserError
from tolktrain.runs.changes import shown_value
from tolktrain.runs.paths import RunPaths

_STAGES = ("train", "stages")
# A named backbone and the shape of a new one are compared by the architecture of the checkpoint.
_BACKBONE = ("model", "backbone")
_MOST_SHOWN = 12
_UNKNOWN = "this version of tolktrain does not know this key"


def steering_differences(
    run_dir: Path, previous: Tree, current: Tree, step: int, rolled_back: Collection[str]
) -> list[Difference]:
    """The differences that apply to the steps after `step`; those of free keys are omitted.

    Args:
        run_dir: of the run.
        previous: configuration of the last start, with all defaults.
        current: configuration of this start.
        step: steps done.
        rolled_back: names of the stages of which rollbacks.jsonl skips data.

    Raises:
        UserError: fixed keys differ; with each key, the reason, and what to do.
    """
    judged = [_Stages(run_dir, previous, current, step).judge(rolled_back)]
    judged += [_judge(one) for one in differences(previous, current) if one.path not in (_STAGES, _BACKBONE)]
    refused = sorted(text for _, refusals in judged for text in refusals)
    if refused:
        listed = refused[:_MOST_SHOWN] + ["..."] * (len(refused) > _MOST_SHOWN)
        raise UserError(
            f"{run_dir} holds a run of another configuration:\n  "
            + "\n  ".join(listed)
            + f"\nto continue this run, restore the values of {RunPaths(run_dir).config}; otherwise give the new run"
            " another run.name (checkpoint.init_from begins it with the weights of this one), or delete this one with"
            " run.restart=true"
        )
    return [one for taken, _ in judged for one in taken]


_Judged = tuple[list[Difference], list[str]]
"""Accepted differences, and messages about refused ones."""


def _judge(one: Difference) -> _Judged:
    found = class_of(one.path)
    if found is None:
        return [], [_refusal(one, _UNKNOWN)]
    if found.kind == "fixed":
        return [], [_refusal(one, f"it {found.reason}")]
    return ([one] if found.kind == "steering" else []), []


class _Stages:
    """The stages of two configurations of a run. The last one that has begun is running, those before it are past."""

    def __init__(self, run_dir: Path, previous: Tree, current: Tree, step: int) -> None:
        try:
            train = previous["train"]
            self._old: list[dict[str, Any]] = train["stages"]
            self._tokens_per_step = train["global_batch_size"] * train["sequence_length"]
            ends = [0]
            for stage in self._old:
                assert isinstance(stage["name"], str)
                ends.append(ends[-1] + math.ceil(stage["tokens"] / self._tokens_per_step))
        except (KeyError, TypeError, ZeroDivisionError, AssertionError) as error:
            file = RunPaths(run_dir).config
            raise UserError(
                f"{file} has no valid stages ({type(error).__name__}: {error}); restore the file, or start again from"
                " step 0 with run.restart=true"
            ) from None
        self._new: list[dict[str, Any]] = current["train"]["stages"]
        self._begun = sum(first < step for first in ends[:-1])
        self._done = step - ends[self._begun - 1] if self._begun else 0  # steps of the running stage
        self._was_complete = step >= ends[self._begun]

    def judge(self, rolled_back: Collection[str]) -> _Judged:
        """Judge all differences."""
        taken: list[Difference] = []
        refused: list[str] = []
        for index in range(max(len(self._old), len(self._new))):
            old, new = (stages[index] if index < len(stages) else None for stages in (self._old, self._new))
            if old == new:
                continue
            found = self._differences(index, old, new)
            for one in found:
                if index >= self._begun:
                    reason = _reason_of_rolled_back(index, new, found) if new and new["name"] in rolled_back else None
                else:
                    reason = self._reason(index, one)
                if reason is None:
                    taken.append(one)
                else:
                    refused.append(_refusal(one, reason))
        return taken, refused

    def _differences(self, index: int, old: Tree | None, new: Tree | None) -> list[Difference]:
        """Key by key for one stage that differs, where a mixture is one value, because its shares have no meaning one
        by one; as a whole for a new or missing stage, or another one in the place of a stage that has not begun."""
        path = (*_STAGES, index)
        if old is None or new is None or (index >= self._begun and old["name"] != new["name"]):
            return [Difference(path, old, new)]
        old_rest, new_rest = ({k: v for k, v in stage.items() if k != "mixture"} for stage in (old, new))
        found = differences(old_rest, new_rest, path)
        if old.get("mixture") != new.get("mixture"):
            found.append(Difference((*path, "mixture"), old.get("mixture"), new.get("mixture")))
        return found

    def _reason(self, index: int, one: Difference) -> str | None:
        """Why a key of a stage that has begun cannot change; None if it can."""
        name, found = self._old[index]["name"], class_of(one.path)
        if index >= len(self._new):
            return f"the stage {name!r} has begun, and this configuration does not have it"
        num_steps = math.ceil(self._new[index]["tokens"] / self._tokens_per_step)
        if index < self._begun - 1:
            return f"the stage {name!r} is complete"
        if self._was_complete and num_steps <= self._done:
            return (
                f"the stage {name!r} is complete; raise train.stages.{index}.tokens to continue it, or append a stage"
            )
        done = self._done * self._tokens_per_step
        if one.path[-1] == "tokens" and num_steps < self._done:
            return f"{self._done:,} steps of the stage {name!r} are done; give at least {done} tokens"
        if found is None:
            return _UNKNOWN
        if found.until == "begins":
            return (
                f"the stage {name!r} has begun; to change it, end the stage now (train.stages.{index}.tokens={done})"
                " and continue in a new stage"
            )
        return None


def _reason_of_rolled_back(index: int, new: Tree, found: Collection[Difference]) -> str | None:
    """Why a stage of which rollbacks.jsonl skips data cannot change; None if it can. The skipped steps are counted in
    the order of the data that the stage's mixture and place give."""
    if not any(one.path[-1] in (index, "mixture") for one in found):
        return None
    return f"rollbacks.jsonl skips data of the stage {new['name']!r}; give the changed stage another name"


def _refusal(one: Difference, reason: str) -> str:
    return f"{one.key}: {shown_value(one.old)} there, {shown_value(one.new)} here; {reason}"
