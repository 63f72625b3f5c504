"""The base of all configuration models."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A configuration component: unknown keys and implicit conversions are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True)
class InputPath:
    """Marks a field that names an input: `load_config` makes the path absolute."""

    may_be_hub_id: bool = False


@dataclass(frozen=True)
class GivenPath:
    """Marks a field that names another path or address: `load_config` expands `~` and checks it."""

    is_input: bool = False
    may_be_address: bool = False
