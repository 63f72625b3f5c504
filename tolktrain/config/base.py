"""What every configuration model shares."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A configuration component: unknown keys and silent conversions are errors, values never change once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)
