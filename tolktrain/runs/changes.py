"""changes.jsonl: the keys that were changed while a run was trained, each with the first step to which it applies.

The file always describes the steps in metrics.jsonl: if steps are undone, because a run continues from a checkpoint or
is rolled back to one before a change, the change applies from the first repeated step on, and its line says so.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tolktrain.config.changes import Difference, Tree, value_at
from tolktrain.errors import UserError
from tolktrain.files.reading import TABLE_BYTES, is_count, parse_json, read_text
from tolktrain.files.writing import replace_file
from tolktrain.runs.paths import RunPaths

_LONGEST_SHOWN = 200  # characters of a value


@dataclass(frozen=True)
class Change:
    """A line. Values are plain; None stands for an absent key too."""

    step: int  # the first step with the new value, counted over the run from 1
    time: str
    key: str  # as an override spells it
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {shown_value(self.old)} before, {shown_value(self.new)} from step {self.step:,} on"


def read_changes(run_dir: Path) -> list[Change]:
    """All lines, in order. Raises UserError if the file cannot be read."""
    path = RunPaths(run_dir).changes
    try:
        return [_parse(parse_json(line)) for line in read_text(path, TABLE_BYTES).splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it lists the changes of the configuration:"
            " restore it, or delete it, which loses the list but does not affect training"
        ) from None


def record_changes(run_dir: Path, step: int, current: Tree, found: Sequence[Difference] = ()) -> list[Change]:
    """Record that the run continues after `step` steps with the configuration `current`; returns what changes there.

    Can be interrupted anywhere and repeated: lines of steps that are not done are derived again.

    Args:
        run_dir: of the run.
        step: steps done.
        current: the configuration as a tree.
        found: the steering differences from the configuration of the last start.
    """
    before = read_changes(run_dir)
    # The last step that is done was trained with the old value of the first of these lines.
    undone: dict[str, list[Change]] = {}
    for line in before:
        if line.step > step:
            undone.setdefault(line.key, []).append(line)
    olds = {key: lines[0].old for key, lines in undone.items()}
    for one in found:
        if not any(one.key == key or one.key.startswith(f"{key}.") for key in olds):
            olds[one.key] = one.old
    times = {key: lines[-1].time for key, lines in undone.items() if lines[-1].new == value_at(current, key)}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    changes = [
        Change(step + 1, times.get(key, now), key, old, new)
        for key, old in olds.items()
        if (new := value_at(current, key)) != old
    ]
    after = [*(line for line in before if line.step <= step), *changes]
    if after != before:
        text = "".join(f"{json.dumps(asdict(line))}\n" for line in after)
        replace_file(RunPaths(run_dir).changes, text)
    return changes


def shown_value(value: Any) -> str:
    """A value in a message."""
    text = "absent" if value is None else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _parse(content: dict[str, Any]) -> Change:
    line = Change(**content)
    if not is_count(line.step) or not isinstance(line.key, str) or not isinstance(line.time, str):
        raise ValueError(f"{content!r:.80} is not a change")
    return line
