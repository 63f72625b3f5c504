"""vocoder.json: which vocoder a folder holds, and the speech tokenizer whose units it was trained on."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.files.reading import read_bytes, read_json
from tolktrain.units.description import SpeechTokenizerInfo, problems

VOCODER_FILE = "vocoder.json"
_Description = TypeVar("_Description", bound=BaseModel)


class UnitsOfTokenizer(StrictModel):
    """The speech tokenizer whose units a vocoder speaks."""

    name: str = Field(description="Kind of tokenizer.")
    num_units: int = Field(gt=0, le=65_535, description="Units.")
    frames_per_second: float = Field(gt=0, lt=1e6, description="Frames before repeats are collapsed.")
    sha256: str = Field(description="Digest of everything that its units depend on.")

    @classmethod
    def of(cls, info: SpeechTokenizerInfo) -> "UnitsOfTokenizer":
        """The part of a tokenizer's description that matters here."""
        return cls(
            name=info.name, num_units=info.num_units, frames_per_second=info.frames_per_second, sha256=info.sha256
        )

    def check(self, info: SpeechTokenizerInfo, folder: Path) -> None:
        """Raise `UserError` if the vocoder in `folder` was trained on the units of another tokenizer."""
        if self.sha256 != info.sha256:
            raise UserError(
                f"{folder / VOCODER_FILE} is of the units of {self.name}, {self.num_units} units, sha256"
                f" {self.sha256[:12]}; the speech tokenizer is {info.name}, {info.num_units} units, sha256"
                f" {info.sha256[:12]}: the units of one would be noise to the other; name the vocoder of this tokenizer"
            )
        if self != UnitsOfTokenizer.of(info):
            raise UserError(f"{folder / VOCODER_FILE} was changed by hand; restore it, or convert the vocoder again")


def read_vocoder_name(folder: Path) -> str:
    """The kind of vocoder in a folder. Raises `UserError` if vocoder.json is missing or not JSON."""
    path = folder / VOCODER_FILE
    try:
        return str(read_json(path)["name"])
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name the folder that python -m tolktrain.units vocoder wrote"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a JSON object with a name; restore it from its source") from None


def read_vocoder_description(folder: Path, kind: type[_Description]) -> _Description:
    """vocoder.json of a folder. Raises `UserError` naming the file and each key that does not fit."""
    path = folder / VOCODER_FILE
    try:
        return kind.model_validate_json(read_bytes(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it from its source") from None
    except ValidationError as error:
        raise UserError(f"{path} does not describe a vocoder of this version ({problems(error)})") from None


def description_bytes(description: BaseModel) -> bytes:
    """Content of vocoder.json."""
    return (json.dumps(description.model_dump(mode="json"), indent=2) + "\n").encode()
