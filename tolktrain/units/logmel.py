"""The embedded speech tokenizer: k-means over log-mel frames at 25 Hz, whose centroids also give sound back.

It needs no download. A frame is the log power in 80 mel bands of 40 ms of sound, level included, so that a centroid
is a spectrum that Griffin-Lim can make audible.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError

from tolktrain.config.base import StrictModel
from tolktrain.config.errors import UserError
from tolktrain.units.base import Frames, Samples
from tolktrain.units.mel import Features, LogMelAnalysis

NAME: Final = "logmel-kmeans"
VERSION: Final = "1"
DESCRIPTION_FILE = "speech_tokenizer.json"
CENTROIDS_FILE = "centroids.safetensors"


class LogMelDescription(StrictModel):
    """speech_tokenizer.json of the log-mel tokenizer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["logmel-kmeans"] = Field(default=NAME, description="Kind of tokenizer.")
    version: Literal["1"] = Field(default=VERSION, description="Version of the features and of this format.")
    num_units: int = Field(gt=0, le=65_535, description="Clusters.")
    num_codebooks: Literal[1] = Field(default=1, description="Units of one frame.")
    frames_per_second: float = Field(gt=0, description="Frames before repeats are collapsed.")
    analysis: LogMelAnalysis = Field(description="The frames that are clustered.")
    sha256: str = Field(description="Digest of the file of centroids.")


class LogMelTokenizer:
    """Log-mel k-means; `fit` makes one, `load` reads one."""

    def __init__(self, centroids: npt.NDArray[np.float32], analysis: LogMelAnalysis) -> None:
        """Tokenizer with the given centroids [num_units, num_mels]."""
        assert centroids.shape[1] == analysis.num_mels
        self._centroids = np.ascontiguousarray(centroids, np.float32)
        self._description = LogMelDescription(
            num_units=len(centroids),
            frames_per_second=analysis.frames_per_second,
            analysis=analysis,
            sha256=hashlib.sha256(self._weights()).hexdigest(),
        )

    @property
    def name(self) -> str:
        """Kind of tokenizer."""
        return self._description.name

    @property
    def version(self) -> str:
        """Version of the features and the file format."""
        return self._description.version

    @property
    def num_units(self) -> int:
        """Clusters."""
        return self._description.num_units

    @property
    def num_codebooks(self) -> int:
        """Always 1."""
        return self._description.num_codebooks

    @property
    def frames_per_second(self) -> float:
        """Frames before repeats are collapsed."""
        return self._description.frames_per_second

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode` expects and `decode` gives."""
        return self.analysis.sample_rate

    @property
    def analysis(self) -> LogMelAnalysis:
        """The frames that are clustered."""
        return self._description.analysis

    @property
    def sha256(self) -> str:
        """Digest of the file of centroids."""
        return self._description.sha256

    @property
    def centroids(self) -> npt.NDArray[np.float32]:
        """Log-mel spectrum of each unit: [num_units, num_mels]."""
        return self._centroids

    @classmethod
    def fit(cls, features: Features, num_clusters: int, seed: int, analysis: LogMelAnalysis) -> "LogMelTokenizer":
        """k-means over frames [frames, num_mels]; the same input and seed give the same centroids, quietest first."""
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        if len(features) < num_clusters:
            raise UserError(f"{len(features)} frames cannot be fitted by {num_clusters} clusters; give more sound")
        # With several threads the sums of a cluster are added up in the order in which threads finish.
        with threadpool_limits(limits=1):
            kmeans = KMeans(num_clusters, init="k-means++", n_init=1, max_iter=40, random_state=seed)
            kmeans.fit(features.astype(np.float64))
        centroids = kmeans.cluster_centers_.round(3).astype(np.float32)
        return cls(centroids[np.argsort(centroids.mean(axis=1), kind="stable")], analysis)

    def encode(self, samples: Samples) -> Frames:
        """Units of mono sound at `sample_rate`: [ceil(n / hop), 1]."""
        return self.assign(self.analysis.features(samples))

    def assign(self, features: Features) -> Frames:
        """Nearest centroid of each frame: [frames, 1]. In double precision, so that no tie depends on the machine."""
        centroids = self._centroids.astype(np.float64)
        norms = (centroids**2).sum(axis=1)
        units = np.empty(len(features), np.uint16)
        for start in range(0, len(features), 8192):
            frames = features[start : start + 8192].astype(np.float64)
            units[start : start + 8192] = (norms - 2 * frames @ centroids.T).argmin(axis=1)
        return units[:, None]

    def decode(self, frames: npt.NDArray[Any]) -> Samples:
        """Sound of the units [frames, 1]: [frames * hop] samples. Raises `UserError` for ids outside the vocabulary."""
        if frames.ndim != 2 or frames.shape[1] != 1:
            raise UserError(f"frames of units must have the shape [frames, 1]; got {frames.shape}")
        if not len(frames):
            return np.zeros(0, np.float32)
        if int(frames.min()) < 0 or int(frames.max()) >= self.num_units:
            raise UserError(
                f"units must lie between 0 and {self.num_units - 1}; got {int(frames.min())} to {int(frames.max())}"
            )
        return self.analysis.invert(self._centroids[frames[:, 0].astype(np.int64)])

    def _weights(self) -> bytes:
        from safetensors.numpy import save

        return save({"centroids": self._centroids})

    def save(self, folder: str | Path) -> None:
        """Write speech_tokenizer.json and centroids.safetensors into a folder, the description last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._description.model_dump(), indent=2) + "\n"
        for name, content in ((CENTROIDS_FILE, self._weights()), (DESCRIPTION_FILE, text.encode())):
            temporary = folder / (name + ".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, folder / name)

    @classmethod
    def load(cls, folder: str | Path) -> "LogMelTokenizer":
        """Read a folder that `save` wrote. Raises `UserError` naming a file that is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        description = _read_description(Path(folder) / DESCRIPTION_FILE)
        path = Path(folder) / CENTROIDS_FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); a speech tokenizer needs it beside {DESCRIPTION_FILE}"
            ) from None
        if hashlib.sha256(content).hexdigest() != description.sha256:
            raise UserError(
                f"{path} does not belong to {DESCRIPTION_FILE} beside it (other sha256); restore both files together"
            )
        try:
            centroids = load(content)["centroids"]
        except (SafetensorError, KeyError):
            raise UserError(f"{path} holds no tensor named centroids; restore it from its source") from None
        expected = (description.num_units, description.analysis.num_mels)
        if centroids.shape != expected or centroids.dtype != np.float32:
            raise UserError(
                f"{path}: centroids are {centroids.dtype} {centroids.shape}; {DESCRIPTION_FILE} says float32 {expected}"
            )
        return cls(centroids, description.analysis)


def _read_description(path: Path) -> LogMelDescription:
    try:
        return LogMelDescription.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give a folder that a speech tokenizer was saved in"
        ) from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path} does not describe a {NAME} tokenizer of version {VERSION} ({problems})") from None
