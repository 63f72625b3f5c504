"""Files of a speech tokenizer's folder: its description, its centroids, and the digests that tie them together."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from tolktrain.errors import UserError
from tolktrain.files.reading import read_bytes, read_json
from tolktrain.files.writing import replace_file

DESCRIPTION_FILE = "speech_tokenizer.json"
CENTROIDS_FILE = "centroids.safetensors"
TENSOR = "centroids"
_LARGEST_CENTROIDS = 1 << 30  # bytes

Centroids = npt.NDArray[np.float32]  # [num_units, dim]
_Description = TypeVar("_Description", bound=BaseModel)


@dataclass(frozen=True)
class SpeechTokenizerInfo:
    """The entry of a speech tokenizer in dataset.json."""

    name: str
    version: str
    num_units: int
    num_codebooks: int
    frames_per_second: float
    sha256: str


class Described:
    """The content of speech_tokenizer.json, as properties of a tokenizer."""

    _description: Any  # the kind's own model, which has these fields

    @property
    def name(self) -> str:
        """Kind of tokenizer."""
        return str(self._description.name)

    @property
    def version(self) -> str:
        """Version of the computation and the file format."""
        return str(self._description.version)

    @property
    def num_units(self) -> int:
        """Units of one codebook."""
        return int(self._description.num_units)

    @property
    def num_codebooks(self) -> int:
        """Units of one frame, K."""
        return int(self._description.num_codebooks)

    @property
    def frames_per_second(self) -> float:
        """Frames before repeats are collapsed."""
        return float(self._description.frames_per_second)

    @property
    def sha256(self) -> str:
        """Digest of everything that units depend on."""
        return str(self._description.sha256)


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever their order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def centroids_bytes(centroids: Centroids) -> bytes:
    """Content of centroids.safetensors; the same centroids give the same bytes."""
    from safetensors.numpy import save

    content: bytes = save({TENSOR: np.ascontiguousarray(centroids, np.float32)})
    return content


def centroids_digest(centroids: Centroids) -> str:
    """SHA-256 of centroids.safetensors."""
    return hashlib.sha256(centroids_bytes(centroids)).hexdigest()


def read_name(folder: str | Path) -> str:
    """The kind of tokenizer in a folder. Raises `UserError` if speech_tokenizer.json is missing or not JSON."""
    path = Path(folder) / DESCRIPTION_FILE
    try:
        return str(read_json(path)["name"])
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name the folder that a speech tokenizer was saved in"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a JSON object with a name; restore it from its source") from None


def checked(kind: type[_Description], **values: Any) -> _Description:
    """A part of a description from a caller's values. Raises `UserError` naming each that does not fit."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(problems(error)) from None


def problems(error: ValidationError) -> str:
    """The keys that do not fit, and why."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def read_description(folder: str | Path, kind: type[_Description], name: str, version: str) -> _Description:
    """speech_tokenizer.json of a folder. Raises `UserError` naming the file and each key that does not fit."""
    path = Path(folder) / DESCRIPTION_FILE
    try:
        return kind.model_validate_json(read_bytes(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give a folder that a speech tokenizer was saved in"
        ) from None
    except ValidationError as error:
        raise UserError(
            f"{path} does not describe a {name} tokenizer of version {version} ({problems(error)})"
        ) from None


def read_centroids(folder: str | Path, num_units: int, dim: int) -> Centroids:
    """centroids.safetensors of a folder: [num_units, dim]. Raises `UserError` if it is missing, damaged or other."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder) / CENTROIDS_FILE
    try:
        centroids: Centroids = load(read_bytes(path, _LARGEST_CENTROIDS))[TENSOR]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); a speech tokenizer needs it in the folder of {DESCRIPTION_FILE}"
        ) from None
    except (SafetensorError, KeyError):
        raise UserError(f"{path} holds no tensor named {TENSOR}; restore it from its source") from None
    expected = (num_units, dim)
    if centroids.shape != expected or centroids.dtype != np.float32:
        raise UserError(
            f"{path}: centroids are {centroids.dtype} {centroids.shape}; {DESCRIPTION_FILE} says float32 {expected}"
        )
    return centroids


def write_folder(folder: str | Path, description: BaseModel, centroids: Centroids | None = None) -> None:
    """Write the files of a tokenizer, each at once, the description last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {} if centroids is None else {CENTROIDS_FILE: centroids_bytes(centroids)}
    files[DESCRIPTION_FILE] = (json.dumps(description.model_dump(), indent=2) + "\n").encode()
    for name, content in files.items():
        replace_file(folder / name, content)
