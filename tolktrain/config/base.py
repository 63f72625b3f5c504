"""The base of all configuration models."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


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


@dataclass(frozen=True)
class ChangeClass:
    """Whether a key may change between two starts of a run. Each key of a run's configuration has one.

    free: it affects neither what is learned nor the order of the data. steering: it applies to the steps that follow.
    fixed: it cannot change, for the given reason.
    """

    kind: Literal["free", "steering", "fixed"]
    until: Literal["begins", "ends"] | None = None  # keys of a stage: the stage's event after which they are fixed
    reason: str = ""  # of fixed keys; follows the name of the key

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        until = {} if self.until is None else {"change_until": f"the stage {self.until}"}
        return {**handler(core_schema), "change": self.kind, **until}


T = TypeVar("T")
Free = Annotated[T, ChangeClass("free")]
Steering = Annotated[T, ChangeClass("steering")]
SteeringUntilEnd = Annotated[T, ChangeClass("steering", until="ends")]
SteeringUntilBegin = Annotated[T, ChangeClass("steering", until="begins")]
FixedModel = Annotated[T, ChangeClass("fixed", reason="determines the model whose parameters the checkpoints contain")]
FixedData = Annotated[T, ChangeClass("fixed", reason="determines the data of every step, also of the steps done")]
FixedPrecision = Annotated[T, ChangeClass("fixed", reason="determines the rounding of all steps, also of those done")]
