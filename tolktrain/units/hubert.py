"""HuBERT and k-means: units are the nearest centroids of one of the model's hidden layers.

The model's convolutions, which do not pad, determine the frames: frame t begins at sample t * hop, and the last
frame ends within the audio.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument
from tolktrain.units.base import Frames, Samples, check_mono
from tolktrain.units.description import (
    DESCRIPTION_FILE,
    Centroids,
    Described,
    centroids_digest,
    checked,
    digest,
    read_centroids,
    read_description,
    write_folder,
)
from tolktrain.units.kind import Maker, TokenizerKind
from tolktrain.units.kmeans import FRAMES_PER_CLUSTER, draw_frames, first_hours, fit_centroids
from tolktrain.units.pretrained import (
    PretrainedModel,
    checked_device,
    inference,
    load_model,
    model_folder,
    preprocessor_normalizes,
)
from tolktrain.units.sklearn_file import read_sklearn_centroids
from tolktrain.units.windows import FrameGrid, Windowing, run_windows

NAME: Final = "hubert-kmeans"
VERSION: Final = "1"
SAMPLE_RATE: Final = 16_000
_BLOCK = 1 << 20  # samples whose squares are added up at a time


class HubertFrames(StrictModel):
    """Which frames of the model are clustered."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    layer: int = Field(gt=0, description="Transformer layer whose output is clustered; 1 is the first.")
    normalize: bool = Field(description="Bring each waveform to mean 0 and variance 1 first, as the model was trained.")
    window_seconds: float = Field(
        default=30.0, gt=0, description="Longer waveforms are computed in windows of this length."
    )
    overlap_seconds: float = Field(default=4.0, ge=0, description="What neighbouring windows share.")


class HubertDescription(StrictModel):
    """speech_tokenizer.json of a HuBERT tokenizer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["hubert-kmeans"] = Field(default=NAME, description="Kind of tokenizer.")
    version: Literal["1"] = Field(default=VERSION, description="Version of the features and of this format.")
    num_units: int = Field(gt=0, le=65_535, description="Clusters.")
    num_codebooks: Literal[1] = Field(default=1, description="Units of one frame.")
    frames_per_second: float = Field(gt=0, lt=1e6, description="Frames before repeats are collapsed.")
    model: PretrainedModel = Field(description="The HuBERT model.")
    frames: HubertFrames = Field(description="The frames that are clustered.")
    sha256: str = Field(description="Digest of the model, the centroids and the frames.")

    @classmethod
    def of(
        cls, centroids: Centroids, frames_per_second: float, model: PretrainedModel, frames: HubertFrames
    ) -> "HubertDescription":
        """Description with the digest of all that the units depend on."""
        parts = {"model": model.sha256, "frames": frames.model_dump(), "centroids": centroids_digest(centroids)}
        return cls(
            num_units=len(centroids),
            frames_per_second=frames_per_second,
            model=model,
            frames=frames,
            sha256=digest(parts),
        )


class HubertFeatures:
    """The model up to one of its layers, and the waveforms it is run on."""

    def __init__(self, folder: Path, frames: HubertFrames, device: str, batch_seconds: float | None) -> None:
        """Load a model from a folder; `batch_seconds` None means single windows on a CPU, 240 s on a GPU.

        Raises `UserError` if the folder holds no HuBERT model, or one with fewer layers.
        """
        self.device = checked_device(device)
        model = load_model("HubertModel", "hubert", folder, self.device)
        config = model.config
        if frames.layer > config.num_hidden_layers:
            raise UserError(
                f"layer {frames.layer} is beyond the model in {folder}; give one from 1 to {config.num_hidden_layers}"
            )
        if frames.layer < config.num_hidden_layers:
            del model.encoder.layers[frames.layer :]
            if config.do_stable_layer_norm:
                # This kind of encoder normalizes the output of its last layer only.
                import torch

                model.encoder.layer_norm = torch.nn.Identity()
        self._model = model
        self._frames = frames
        self.dim: int = config.hidden_size
        self.grid = FrameGrid.of_convolutions(config.conv_kernel, config.conv_stride)
        self.frames_per_second = SAMPLE_RATE / self.grid.hop
        self._windowing = Windowing.of_seconds(frames.window_seconds, frames.overlap_seconds, self.frames_per_second)
        if batch_seconds is None:
            # Batches make a CPU no faster, and alone a waveform gives the same bits whatever its neighbours.
            batch_seconds = 0.0 if self.device == "cpu" else 240.0
        self._most_samples = round(batch_seconds * SAMPLE_RATE)

    def run(
        self, waveforms: Sequence[Samples], finish: Callable[[Any], npt.NDArray[Any]]
    ) -> list[list[npt.NDArray[Any]]]:
        """Frames of mono waveforms at 16 kHz, by window: [frames, ...], which `finish` makes of [frames, dim].

        Padding does not change the frames of shorter waveforms: convolutions run on each waveform alone, and attention
        masks the padding.
        """
        for samples in waveforms:
            check_mono(samples)
        scales = [_scale(samples) if self._frames.normalize else (0.0, 1.0) for samples in waveforms]

        def run(indices: list[int], pieces: list[Samples]) -> list[npt.NDArray[Any]]:
            scaled = [
                ((piece - mean) / deviation).astype(np.float32)
                for piece, (mean, deviation) in zip(pieces, (scales[index] for index in indices), strict=True)
            ]
            return [finish(hidden) for hidden in self._layer(scaled)]

        with inference():
            return run_windows(waveforms, self.grid, self._windowing, self._most_samples, run)

    def _layer(self, pieces: list[Samples]) -> list[Any]:
        """Output [frames, dim] of the layer for each piece of audio."""
        import torch

        # Some HuBERT models normalize over time after the first convolution, where padding would count.
        convolved = [
            self._model.feature_extractor(torch.from_numpy(piece)[None].to(self.device))[0].T for piece in pieces
        ]
        lengths = [len(frames) for frames in convolved]
        hidden = self._model.feature_projection(torch.nn.utils.rnn.pad_sequence(convolved, batch_first=True))
        mask = None
        if min(lengths) < max(lengths):
            mask = torch.arange(max(lengths), device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        output = self._model.encoder(hidden, attention_mask=mask).last_hidden_state  # [pieces, frames, dim]
        return [frames[:length] for frames, length in zip(output, lengths, strict=True)]


def _scale(samples: Samples) -> tuple[float, float]:
    """Mean and standard deviation, in double precision and without copies of a long waveform."""
    if not len(samples):
        return 0.0, 1.0
    mean = float(samples.mean(dtype=np.float64))
    blocks = (samples[start : start + _BLOCK].astype(np.float64) - mean for start in range(0, len(samples), _BLOCK))
    return mean, float(np.sqrt(sum(float((block**2).sum()) for block in blocks) / len(samples) + 1e-7))


class HubertTokenizer(Described):
    """HuBERT and k-means; `create` and `fit_from` make one, `load` reads one."""

    def __init__(self, description: HubertDescription, centroids: Centroids, features: HubertFeatures) -> None:
        """Tokenizer of loaded parts; use `load`."""
        import torch

        self._description = description
        self._features = features
        # In double precision, so that no near tie depends on the machine's way of adding up.
        self._columns = torch.from_numpy(centroids).to(features.device).double().T
        self._norms = (self._columns**2).sum(dim=0)

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode` expects."""
        return SAMPLE_RATE

    def encode(self, samples: Samples) -> Frames:
        """Units of mono audio at 16 kHz: [frames, 1]; none for a waveform shorter than the model's field (25 ms)."""
        return self.encode_batch([samples])[0]

    def encode_batch(self, waveforms: Sequence[Samples]) -> list[Frames]:
        """Units of each waveform, in order. The batch changes a unit only where two centroids are equally near up to
        rounding; on a CPU, where waveforms are computed one by one, nowhere."""
        windows = self._features.run(waveforms, self._assign)
        return [np.concatenate([np.zeros((0, 1), np.uint16), *parts]) for parts in windows]

    def _assign(self, hidden: Any) -> Frames:
        units = (self._norms - 2 * hidden.double() @ self._columns).argmin(dim=1)
        found: Frames = units.cpu().numpy().astype(np.uint16)[:, None]
        return found

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: str,
        centroids: npt.NDArray[Any],
        layer: int,
        *,
        revision: str | None = None,
        normalize: bool | None = None,
        window_seconds: float = 30.0,
        overlap_seconds: float = 4.0,
        device: str = "cpu",
    ) -> "HubertTokenizer":
        """Write a tokenizer's folder and load it.

        Args:
            folder: receives speech_tokenizer.json and centroids.safetensors.
            model: folder (from the working directory) or hub id of a HuBERT model.
            centroids: [num_units, hidden size] of the layer.
            layer: transformer layer whose output is clustered; 1 is the first. The last includes the model's final
                norm, as the last of `hidden_states` does in transformers 4 but not in version 5.
            revision: branch, tag or commit on the hub; best a commit.
            normalize: bring waveforms to mean 0 and variance 1; None: as preprocessor_config.json of the model says.
            window_seconds: longer waveforms are computed in windows of this length.
            overlap_seconds: what neighbouring windows share.
            device: where the model runs.

        Raises:
            UserError: the model cannot be had or loaded, or the centroids do not fit it.
        """
        frames = _frames(model, revision, layer, normalize, window_seconds, overlap_seconds)
        features = HubertFeatures(model_folder(model, revision), frames, device, None)
        if centroids.ndim != 2 or centroids.shape[1] != features.dim or not 0 < len(centroids) <= 65_535:
            raise UserError(
                f"centroids have the shape {centroids.shape}; the model {model} needs [1 to 65535, {features.dim}]"
            )
        return cls._write(folder, centroids, PretrainedModel.of(model, revision, folder), features, frames)

    @classmethod
    def fit_from(
        cls,
        folder: str | Path,
        model: str,
        waveforms: Iterable[Samples],
        layer: int,
        num_units: int,
        seed: int,
        hours: float,
        *,
        revision: str | None = None,
        normalize: bool | None = None,
        window_seconds: float = 30.0,
        overlap_seconds: float = 4.0,
        device: str = "cpu",
    ) -> "HubertTokenizer":
        """k-means over the layer's frames of the first hours of a stream of mono waveforms at 16 kHz; then as `create`.

        Depends on the model, the waveforms, their order and the seed alone. Of more than 500 frames per unit a part is
        drawn, so that memory is bounded.
        """
        frames = _frames(model, revision, layer, normalize, window_seconds, overlap_seconds)
        features = HubertFeatures(model_folder(model, revision), frames, device, None)
        chosen = first_hours(waveforms, hours, SAMPLE_RATE)
        parts = (part for samples in chosen for part in features.run([samples], lambda hidden: hidden.cpu().numpy())[0])
        drawn = draw_frames(parts, FRAMES_PER_CLUSTER * num_units, seed)
        centroids = fit_centroids(drawn, num_units, seed)
        return cls._write(folder, centroids, PretrainedModel.of(model, revision, folder), features, frames)

    @classmethod
    def _write(
        cls,
        folder: str | Path,
        centroids: npt.NDArray[Any],
        model: PretrainedModel,
        features: HubertFeatures,
        frames: HubertFrames,
    ) -> "HubertTokenizer":
        kept: Centroids = np.ascontiguousarray(centroids, np.float32)
        description = HubertDescription.of(kept, features.frames_per_second, model, frames)
        write_folder(folder, description, kept)
        return cls(description, kept, features)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", batch_seconds: float | None = None) -> "HubertTokenizer":
        """Read a folder that `create` wrote, and the model that it names.

        Raises `UserError` naming what is missing or damaged, or does not belong together.
        """
        description = read_description(folder, HubertDescription, NAME, VERSION)
        model = description.model.folder(folder)
        features = HubertFeatures(model, description.frames, device, batch_seconds)
        centroids = read_centroids(folder, description.num_units, features.dim)
        if (
            HubertDescription.of(centroids, features.frames_per_second, description.model, description.frames)
            != description
        ):
            raise UserError(
                f"{Path(folder) / DESCRIPTION_FILE} does not belong to the centroids next to it, or was changed by hand"
                " (other sha256 or frames per second); restore both files together, or make a new tokenizer in another"
                " folder"
            )
        return cls(description, centroids, features)


def _frames(
    model: str, revision: str | None, layer: int, normalize: bool | None, window_seconds: float, overlap_seconds: float
) -> HubertFrames:
    if normalize is None:
        normalize = preprocessor_normalizes(model_folder(model, revision))
    return checked(
        HubertFrames,
        layer=layer,
        normalize=normalize,
        window_seconds=window_seconds,
        overlap_seconds=overlap_seconds,
    )


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--kmeans", type=input_argument, required=True, help="scikit-learn's k-means, as joblib or pickle wrote it"
    )
    parser.add_argument("--layer", type=int, required=True, help="layer whose output is clustered; 1 is the first")
    parser.add_argument(
        "--normalize",
        choices=("yes", "no"),
        help="bring waveforms to mean 0 and variance 1; as the model's preprocessor_config.json says if absent",
    )
    parser.add_argument("--window-seconds", type=float, default=30.0, help="longer waveforms are cut into such windows")
    parser.add_argument("--overlap-seconds", type=float, default=4.0, help="what neighbouring windows share")


def _create(options: Namespace) -> HubertTokenizer:
    return HubertTokenizer.create(
        options.folder,
        options.model,
        read_sklearn_centroids(options.kmeans),
        options.layer,
        revision=options.revision,
        normalize=None if options.normalize is None else options.normalize == "yes",
        device=options.device,
        window_seconds=options.window_seconds,
        overlap_seconds=options.overlap_seconds,
    )


KIND = TokenizerKind(
    NAME,
    VERSION,
    HubertDescription,
    load=HubertTokenizer.load,
    vocoder=None,
    is_neural=True,
    maker=Maker("HuBERT and k-means", _add_arguments, _create),
)
