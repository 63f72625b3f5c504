"""preference_reference.jsonl: log-probabilities of the answers of preferences under the frozen reference of a stage.

They are computed before the first step of the stage and never change, so lines are only appended. Each line has the
number of the stage, the digest of the weights of the reference, the steps of the stage whose sequences are known with
this line, and new entries: the digest of a sequence, and the log-probability of each of its documents in nats.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.files.reading import bounded_lines, is_count, open_regular, parse_json
from tolktrain.files.writing import AppendedFile, written_aside
from tolktrain.runs.paths import RunPaths

_LONGEST_LINE = 1 << 26  # bytes

Entries = dict[str, tuple[float, ...]]


@dataclass
class KnownReference:
    """What is known under one reference."""

    num_steps: int = 0  # steps of the stage whose sequences are known
    entries: Entries = field(default_factory=dict)


def read_reference(run_dir: Path, stage: int) -> dict[str, KnownReference]:
    """What the file says of a stage, by the digest of the reference; empty without a file.

    An incomplete last line, as an interrupted process leaves it, is removed from the file.

    Raises UserError if the file cannot be read.
    """
    path = RunPaths(run_dir).preference_reference
    found: dict[str, KnownReference] = {}
    complete: list[bytes] = []
    try:
        with open_regular(path) as file:
            lines = list(bounded_lines(file, _LONGEST_LINE))
        for number, line in enumerate(lines, 1):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            _take(line, stage, found)
            complete.append(line)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it has the log-probabilities of the reference of"
            " preferences: restore it, or start again with run.restart=true"
        ) from None
    if len(complete) < len(lines):
        with written_aside(path) as aside:
            aside.write_bytes(b"".join(complete))
    return found


def append_reference(
    run_dir: Path, stage: int, digest: str, num_steps: int, entries: Mapping[str, tuple[float, ...]]
) -> None:
    """Append a line, and flush it to disk. Raises OSError with the name of the file."""
    line = {"stage": stage, "digest": digest, "steps": num_steps, "entries": entries}
    file = AppendedFile(RunPaths(run_dir).preference_reference)
    try:
        file.append(json.dumps(line, allow_nan=False) + "\n")
        file.sync()
    finally:
        file.close()


def _take(line: bytes, stage: int, found: dict[str, KnownReference]) -> None:
    content = parse_json(line)
    if not is_count(content["stage"]) or not is_count(content["steps"]) or not isinstance(content["digest"], str):
        raise ValueError(f"{line!r:.80} is not a line of this file")
    if content["stage"] != stage:
        return
    known = found.setdefault(content["digest"], KnownReference())
    known.num_steps = max(known.num_steps, content["steps"])
    for key, values in content["entries"].items():
        numbers = tuple(float(value) for value in values)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{key} has values that are not finite")
        known.entries[key] = numbers
