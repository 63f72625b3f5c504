"""What every configuration model shares."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A configuration component: unknown keys and silent conversions are errors, values never change once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True)
class InputPath:
    """Marks a field that names something to read: `load_config` makes the path absolute."""

    may_be_hub_id: bool = False
