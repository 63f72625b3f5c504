"""metrics.jsonl: one JSON object per step, and one per validation."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import bounded_lines, open_regular, parse_json
from tolktrain.files.writing import AppendedFile, written_aside
from tolktrain.runs.paths import RunPaths

_LONGEST_LINE = 1 << 24  # bytes; validation of a thousand sets takes less

Line = dict[str, Any]


class MetricsFile:
    """The file, open for appending. Non-finite numbers are written as null, since JSON has no NaN or infinity."""

    def __init__(self, run_dir: Path) -> None:
        self._file = AppendedFile(RunPaths(run_dir).metrics)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, immediately visible to readers. If it raises `OSError`, nothing of the line is written."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.append(json.dumps(finite, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Flush all lines to disk: a checkpoint must not be published before the lines of its steps."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop the lines after `step`, and an incomplete last line."""
    path = RunPaths(run_dir).metrics
    if not path.exists():
        return
    with written_aside(path) as aside, open(aside, "wb") as file:
        file.writelines(line + b"\n" for line in _lines(path) if _step_of(line) <= step)


def last_step(run_dir: Path) -> int:
    """The last step in metrics.jsonl, 0 without any."""
    path = RunPaths(run_dir).metrics
    if not path.exists():
        return 0
    steps = (_step_of(line) for line in _lines(path))
    return int(max((step for step in steps if step != math.inf), default=0))


def lines_of_stage(run_dir: Path, stage: str) -> Iterator[Line]:
    """The lines of the steps of a stage, in order."""
    path = RunPaths(run_dir).metrics
    for number, text in enumerate(_lines(path), 1):
        try:
            line = parse_json(text)
            wanted = line["stage"] == stage and "loss" in line
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is not a line of metrics ({error}); restore the file") from None
        if wanted:
            yield line


def _lines(path: Path) -> Iterator[bytes]:
    """The lines without their line ends. Raises UserError if the file cannot be read or has another format."""
    try:
        with open_regular(path) as file:
            for line in bounded_lines(file, _LONGEST_LINE):
                yield line.rstrip(b"\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it, or start again from step 0 with run.restart=true"
        ) from None


def _step_of(line: bytes) -> float:
    try:
        return int(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):  # OverflowError: infinity is not an integer
        return math.inf
