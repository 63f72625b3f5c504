"""initial_weights.json: the weights that a run has begun from (`checkpoint.init_from`)."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import TABLE_BYTES, read_json
from tolktrain.files.writing import replace_file


@dataclass(frozen=True)
class InitialWeightsRecord:
    """What a run has begun from, and how its tensors were filled."""

    init_from: str  # as configured
    folder: str  # that was read: of a run, its checkpoint
    format: str
    step: int | None  # of training, if it is known
    stage: str | None
    digest: str  # SHA-256 that identifies the content
    taken: list[str]  # canonical names of tensors
    taken_in_part: list[str]  # tables of which some rows are new
    new: list[str]
    unused: list[str]  # of the weights


def read_record(file: Path) -> InitialWeightsRecord | None:
    """The record in a file; None if there is none. Raises UserError when it cannot be read."""
    try:
        content: Any = read_json(file, TABLE_BYTES)
        names = {field.name for field in fields(InitialWeightsRecord)}
        return InitialWeightsRecord(**{name: content[name] for name in names})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({error!r}); restore it, or remove it if the run need not begin from the same"
            " weights again"
        ) from None


def write_record(file: Path, record: InitialWeightsRecord) -> None:
    """Write the record, whole or not at all."""
    replace_file(file, json.dumps(asdict(record), indent=1) + "\n")
