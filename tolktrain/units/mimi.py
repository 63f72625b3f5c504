"""Mimi, a neural codec: several codebooks per frame at 12.5 frames per second, and audio from them.

A waveform is filled up with silence to whole frames, as the codec's own program does. The model is causal: a frame does
not depend on what follows it.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.units.base import Frames, Samples, check_mono
from tolktrain.units.description import DESCRIPTION_FILE, Described, checked, digest, read_description, write_folder
from tolktrain.units.kind import Maker, TokenizerKind
from tolktrain.units.pretrained import PretrainedModel, checked_device, inference, load_model, model_folder
from tolktrain.units.windows import FrameGrid, Windowing, run_windows

NAME: Final = "mimi"
VERSION: Final = "1"


class MimiWindows(StrictModel):
    """How long waveforms are cut."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    window_seconds: float = Field(
        default=60.0, gt=0, description="Longer waveforms are computed in windows of this length."
    )
    overlap_seconds: float = Field(
        default=20.0, ge=0, description="What neighbouring windows share; frames of a window depend on all before them."
    )


class MimiDescription(StrictModel):
    """speech_tokenizer.json of a Mimi tokenizer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["mimi"] = Field(default=NAME, description="Kind of tokenizer.")
    version: Literal["1"] = Field(default=VERSION, description="Version of the computation and of this format.")
    num_units: int = Field(gt=0, le=65_535, description="Entries of a codebook.")
    num_codebooks: int = Field(gt=0, le=256, description="Units of one frame: the first codebooks of the model.")
    frames_per_second: float = Field(gt=0, lt=1e6, description="Frames before repeats are collapsed.")
    sample_rate: int = Field(gt=0, description="Samples per second.")
    model: PretrainedModel = Field(description="The Mimi model.")
    windows: MimiWindows = Field(default=MimiWindows(), description="How long waveforms are cut.")
    sha256: str = Field(description="Digest of the model and the windows.")

    @classmethod
    def of(cls, config: Any, num_codebooks: int, model: PretrainedModel, windows: MimiWindows) -> "MimiDescription":
        """Description of a model with the given configuration, with the digest of all that the units depend on."""
        parts = {"model": model.sha256, "num_codebooks": num_codebooks, "windows": windows.model_dump()}
        return cls(
            num_units=config.codebook_size,
            num_codebooks=num_codebooks,
            frames_per_second=float(config.frame_rate),
            sample_rate=config.sampling_rate,
            model=model,
            windows=windows,
            sha256=digest(parts),
        )


class MimiTokenizer(Described):
    """Mimi; `create` makes one, `load` reads one."""

    def __init__(self, description: MimiDescription, model: Any, device: str, batch_seconds: float | None) -> None:
        """Tokenizer of a loaded model; use `load`."""
        self._description = description
        self._model = model
        self._device = device
        hop = round(description.sample_rate / description.frames_per_second)
        self._grid = FrameGrid(hop, hop)
        windows = description.windows
        self._windowing = Windowing.of_seconds(
            windows.window_seconds, windows.overlap_seconds, description.frames_per_second
        )
        if batch_seconds is None:
            # Batches make a CPU no faster, and alone a waveform gives the same bits whatever its neighbours.
            batch_seconds = 0.0 if device == "cpu" else 220.0
        self._most_samples = round(batch_seconds * description.sample_rate)

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode` expects."""
        return self._description.sample_rate

    def encode(self, samples: Samples) -> Frames:
        """Units of mono audio at `sample_rate`: [ceil(n / hop), num_codebooks]."""
        return self.encode_batch([samples])[0]

    def encode_batch(self, waveforms: Sequence[Samples]) -> list[Frames]:
        """Units of each waveform, in order. The batch changes a unit only where two entries are equally near up to
        rounding; on a CPU, where waveforms are computed one by one, nowhere."""
        for samples in waveforms:
            check_mono(samples)
        # Whole frames: every convolution of the model would otherwise pad what it gets, and batches would differ.
        whole = [np.pad(samples, (0, -len(samples) % self._grid.hop)) for samples in waveforms]
        with inference():
            parts = run_windows(whole, self._grid, self._windowing, self._most_samples, self._codes)
        return [np.concatenate([np.zeros((0, self.num_codebooks), np.uint16), *found]) for found in parts]

    def _codes(self, indices: list[int], pieces: list[Samples]) -> list[npt.NDArray[Any]]:
        import torch

        # The model is causal: what follows a waveform does not change its units.
        longest = max(map(len, pieces))
        batch = np.stack([np.pad(piece.astype(np.float32), (0, longest - len(piece))) for piece in pieces])
        inputs = torch.from_numpy(batch)[:, None].to(self._device)
        codes = self._model.encode(inputs, num_quantizers=self.num_codebooks, return_dict=True).audio_codes
        frames = codes.transpose(1, 2).cpu().numpy().astype(np.uint16)  # [pieces, frames, K]
        return [found[: self._grid.num_frames(len(piece))] for found, piece in zip(frames, pieces, strict=True)]

    @property
    def model(self) -> Any:
        """The Mimi model of transformers, in float32, whose attention reaches as far as in training."""
        return self._model

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self._device

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: str,
        num_codebooks: int,
        *,
        revision: str | None = None,
        window_seconds: float = 60.0,
        overlap_seconds: float = 20.0,
        device: str = "cpu",
    ) -> "MimiTokenizer":
        """Write a tokenizer's folder and load it.

        Args:
            folder: receives speech_tokenizer.json.
            model: folder (from the working directory) or hub id of a Mimi model, such as kyutai/mimi.
            num_codebooks: the first codebooks of the model, of which units are made.
            revision: branch, tag or commit on the hub; best a commit.
            window_seconds: longer waveforms are computed in windows of this length.
            overlap_seconds: what neighbouring windows share.
            device: where the model runs.

        Raises:
            UserError: the model cannot be had or loaded, or has fewer codebooks.
        """
        windows = checked(MimiWindows, window_seconds=window_seconds, overlap_seconds=overlap_seconds)
        loaded = _load(model_folder(model, revision), device)
        _check_codebooks(loaded.config, num_codebooks, model)
        source = PretrainedModel.of(model, revision, folder)
        tokenizer = cls(
            MimiDescription.of(loaded.config, num_codebooks, source, windows), loaded, checked_device(device), None
        )
        write_folder(folder, tokenizer._description)
        return tokenizer

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", batch_seconds: float | None = None) -> "MimiTokenizer":
        """Read a folder that `create` wrote, and the model that it names.

        Raises `UserError` naming what is missing or damaged, or does not belong together.
        """
        description = read_description(folder, MimiDescription, NAME, VERSION)
        loaded = _load(description.model.folder(folder), device)
        path = Path(folder) / DESCRIPTION_FILE
        _check_codebooks(loaded.config, description.num_codebooks, str(path))
        expected = MimiDescription.of(loaded.config, description.num_codebooks, description.model, description.windows)
        if expected != description:
            raise UserError(
                f"{path} was changed by hand, or does not fit its model (other sha256, units, sample or frame rate);"
                " restore it, or make a new tokenizer in another folder"
            )
        return cls(description, loaded, checked_device(device), batch_seconds)


def _check_codebooks(config: Any, num_codebooks: int, where: str) -> None:
    if not 1 <= num_codebooks <= config.num_quantizers:
        raise UserError(f"{where}: num_codebooks is {num_codebooks}; give a number from 1 to {config.num_quantizers}")


def _see_what_was_trained(transformer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Keep attention to `sliding_window` steps: before transformers 5 only flash attention does it by itself."""
    import torch

    hidden = arguments[0] if arguments else keywords["hidden_states"]
    steps = torch.arange(hidden.shape[1], device=hidden.device)
    back = steps[:, None] - steps
    hidden_from = (back < 0) | (back >= transformer.config.sliding_window)
    mask = torch.zeros(hidden_from.shape, device=hidden.device, dtype=hidden.dtype)
    mask.masked_fill_(hidden_from, torch.finfo(hidden.dtype).min)
    return arguments, {**keywords, "attention_mask": mask[None, None]}


def _load(folder: Path, device: str) -> Any:
    model = load_model("MimiModel", "mimi", folder, device)
    config = model.config
    if not config.use_causal_conv or config.audio_channels != 1 or config.sampling_rate % config.frame_rate:
        raise UserError(
            f"{folder / 'config.json'}: use_causal_conv is {config.use_causal_conv}, audio_channels"
            f" {config.audio_channels}, frame_rate {config.frame_rate}; give a causal model of mono audio with whole"
            " samples per frame"
        )
    # By their last name: transformers 5 keeps them in the encoder and the decoder, version 4 in the model itself.
    names = ("encoder_transformer", "decoder_transformer")
    transformers = [part for name, part in model.named_modules() if name.split(".")[-1] in names]
    assert len(transformers) == len(names)
    for transformer in transformers:
        transformer.register_forward_pre_hook(_see_what_was_trained, with_kwargs=True)
    return model


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--codebooks", type=int, required=True, help="codebooks to use, from the first")
    parser.add_argument("--window-seconds", type=float, default=60.0, help="longer waveforms are cut into such windows")
    parser.add_argument("--overlap-seconds", type=float, default=20.0, help="what neighbouring windows share")


def _create(options: Namespace) -> MimiTokenizer:
    return MimiTokenizer.create(
        options.folder,
        options.model,
        options.codebooks,
        revision=options.revision,
        device=options.device,
        window_seconds=options.window_seconds,
        overlap_seconds=options.overlap_seconds,
    )


KIND = TokenizerKind(
    NAME,
    VERSION,
    MimiDescription,
    load=MimiTokenizer.load,
    vocoder="mimi",
    is_neural=True,
    maker=Maker("Mimi", _add_arguments, _create),
)
