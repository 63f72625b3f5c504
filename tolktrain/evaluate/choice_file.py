"""choices.jsonl: the scores of every trial of the choice between continuations, so that runs can be compared by trial.

The file has a header, and a line per data set, direction and trial.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.evaluate.choices import TrialScores
from tolktrain.evaluate.score_files import lines_of
from tolktrain.files.writing import replace_file

FORMAT = 1


@dataclass(frozen=True)
class ScoredTrial:
    """The mean log-likelihoods per token of the true and of the random continuation."""

    text: str  # equal for trials of the same text
    scores: Mapping[str, tuple[float, float]]  # by scorer


Choices = dict[tuple[str, str], dict[str, ScoredTrial]]
"""By data set and direction, then by id of the trial."""


def write_choices(path: Path, header: Mapping[str, Any], scored: Iterable[tuple[str, str, TrialScores]]) -> None:
    """Write the trials of each data set and direction, whole or not at all. Raises OSError with the file's name."""
    lines = [json.dumps({"kind": "header", "format": FORMAT} | dict(header))]
    for name, direction, found in scored:
        for place, trial in enumerate(found.trials):
            scores = {scorer: values[place].tolist() for scorer, values in found.scores.items()}
            line = {"kind": "trial", "set": name, "direction": direction, "id": trial.id, "text": trial.text_key}
            lines.append(json.dumps(line | {"scores": scores}, ensure_ascii=False))
    replace_file(path, "\n".join(lines) + "\n")


def read_choices(path: Path) -> tuple[dict[str, Any], Choices]:
    """The header, and the trials. Raises `UserError` naming the file and the line, or the trial, that is wrong."""
    header: dict[str, Any] = {}
    found: Choices = {}
    for number, line in lines_of(path):
        try:
            if line["kind"] == "header":
                header = line
                if line["format"] != FORMAT:
                    raise UserError(
                        f"{path} has the format {line['format']!r}; this version of tolktrain reads {FORMAT}"
                    )
                continue
            scores = {scorer: (float(true), float(other)) for scorer, (true, other) in line["scores"].items()}
            trials = found.setdefault((str(line["set"]), str(line["direction"])), {})
            name = str(line["id"])
            if name in trials:
                raise UserError(f"{path}: the trial {name!r} is there twice; evaluate again")
            if not all(math.isfinite(value) for pair in scores.values() for value in pair):
                raise UserError(f"{path}: a score of the trial {name!r} is not a finite number; evaluate again")
            trials[name] = ScoredTrial(str(line["text"]), scores)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is no line of {path.name} ({error}); evaluate again") from None
    return header, found
