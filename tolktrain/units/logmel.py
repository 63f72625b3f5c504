"""The embedded speech tokenizer: k-means over log-mel frames at 25 Hz, whose centroids also give audio back.

It needs no download. A frame is the log power in 80 mel bands of 40 ms of audio, level included, so that a centroid
is a spectrum that Griffin-Lim can make audible.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.units.base import Frames, Samples
from tolktrain.units.description import (
    CENTROIDS_FILE,
    DESCRIPTION_FILE,
    Centroids,
    Described,
    centroids_digest,
    digest,
    read_centroids,
    read_description,
    write_folder,
)
from tolktrain.units.kind import TokenizerKind
from tolktrain.units.kmeans import FRAMES_PER_CLUSTER, NearestCentroid, draw_frames, first_hours, fit_centroids
from tolktrain.units.mel import Features, LogMelAnalysis

NAME: Final = "logmel-kmeans"
VERSION: Final = "1"


class LogMelDescription(StrictModel):
    """speech_tokenizer.json of the log-mel tokenizer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["logmel-kmeans"] = Field(default=NAME, description="Kind of tokenizer.")
    version: Literal["1"] = Field(default=VERSION, description="Version of the features and of this format.")
    num_units: int = Field(gt=0, le=65_535, description="Clusters.")
    num_codebooks: Literal[1] = Field(default=1, description="Units of one frame.")
    frames_per_second: float = Field(gt=0, lt=1e6, description="Frames before repeats are collapsed.")
    analysis: LogMelAnalysis = Field(description="The frames that are clustered.")
    sha256: str = Field(description="Digest of the centroids and the frames.")


class LogMelTokenizer(Described):
    """Log-mel k-means; `fit` makes one, `load` reads one."""

    def __init__(self, centroids: npt.NDArray[np.float32], analysis: LogMelAnalysis) -> None:
        """Tokenizer with the given centroids [num_units, num_mels]."""
        assert centroids.shape[1] == analysis.num_mels
        self._centroids: Centroids = np.ascontiguousarray(centroids, np.float32)
        self._description = LogMelDescription(
            num_units=len(centroids),
            frames_per_second=analysis.frames_per_second,
            analysis=analysis,
            sha256=_digest(self._centroids, analysis),
        )

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode` expects."""
        return self.analysis.sample_rate

    @property
    def analysis(self) -> LogMelAnalysis:
        """The frames that are clustered."""
        return self._description.analysis

    @property
    def centroids(self) -> npt.NDArray[np.float32]:
        """Log-mel spectrum of each unit: [num_units, num_mels]."""
        return self._centroids

    @classmethod
    def fit(cls, features: Features, num_clusters: int, seed: int, analysis: LogMelAnalysis) -> "LogMelTokenizer":
        """k-means over frames [frames, num_mels]; the same input and seed give the same centroids, quietest first."""
        centroids = fit_centroids(features.astype(np.float64), num_clusters, seed).round(3).astype(np.float32)
        return cls(centroids[np.argsort(centroids.mean(axis=1), kind="stable")], analysis)

    @classmethod
    def fit_from(
        cls,
        waveforms: Iterable[Samples],
        num_units: int,
        seed: int,
        hours: float,
        analysis: LogMelAnalysis | None = None,
    ) -> "LogMelTokenizer":
        """k-means over the first hours of a stream of mono waveforms at the analysis's sample rate.

        Depends on the waveforms, their order and the seed alone. Of more than 500 frames per unit a part is drawn, so
        that memory is bounded. Raises `UserError` if there are fewer frames than units.
        """
        analysis = analysis or LogMelAnalysis()
        chosen = first_hours(waveforms, hours, analysis.sample_rate)
        blocks = (block for waveform in chosen for block in analysis.blocks(waveform))
        return cls.fit(draw_frames(blocks, FRAMES_PER_CLUSTER * num_units, seed), num_units, seed, analysis)

    def encode(self, samples: Samples) -> Frames:
        """Units of mono audio at `sample_rate`: [ceil(n / hop), 1]. Memory does not grow with the audio's length."""
        blocks = [self.assign(block) for block in self.analysis.blocks(samples)]
        return np.concatenate(blocks) if blocks else np.zeros((0, 1), np.uint16)

    def encode_batch(self, waveforms: Sequence[Samples]) -> list[Frames]:
        """Units of each waveform, in order."""
        return [self.encode(samples) for samples in waveforms]

    @cached_property
    def _nearest(self) -> NearestCentroid:
        return NearestCentroid(self._centroids)

    def assign(self, features: Features) -> Frames:
        """Nearest centroid of each frame: [frames, 1]. In double precision, so that no tie depends on the machine."""
        return self._nearest(features)

    def save(self, folder: str | Path) -> None:
        """Write speech_tokenizer.json and centroids.safetensors into a folder, the description last."""
        write_folder(folder, self._description, self._centroids)

    @classmethod
    def load(cls, folder: str | Path) -> "LogMelTokenizer":
        """Read a folder that `save` wrote. Raises `UserError` naming a file that is missing or damaged."""
        description = read_description(folder, LogMelDescription, NAME, VERSION)
        tokenizer = cls(
            read_centroids(folder, description.num_units, description.analysis.num_mels), description.analysis
        )
        if tokenizer._description != description:
            raise UserError(
                f"{Path(folder) / CENTROIDS_FILE} does not belong to {DESCRIPTION_FILE} in its folder (other sha256 or"
                " frames per second); restore both files together"
            )
        return tokenizer


def _digest(centroids: Centroids, analysis: LogMelAnalysis) -> str:
    weights = centroids_digest(centroids)
    # Data sets name tokenizers of the default frames by the digest of their centroids.
    return (
        weights if analysis == LogMelAnalysis() else digest({"centroids": weights, "analysis": analysis.model_dump()})
    )


KIND = TokenizerKind(
    NAME,
    VERSION,
    LogMelDescription,
    load=lambda folder, device, batch_seconds: LogMelTokenizer.load(folder),
    vocoder="griffin-lim",
    is_neural=False,
)
