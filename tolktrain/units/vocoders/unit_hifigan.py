"""Unit HiFi-GAN: a neural vocoder trained on the units of one tokenizer, with durations, speakers and styles.

Published ones are converted once, by `python -m tolktrain.units vocoder`; only safetensors and JSON are read later.
"""

import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument
from tolktrain.files.reading import file_sha256, read_bytes, read_text
from tolktrain.files.writing import replace_file
from tolktrain.units.base import DurationPredictor, RunLengths, Samples, Vocoder, check_units
from tolktrain.units.description import DESCRIPTION_FILE, SpeechTokenizerInfo
from tolktrain.units.load import describe_speech_tokenizer
from tolktrain.units.pretrained import checked_device, inference
from tolktrain.units.vocoders.description import (
    VOCODER_FILE,
    UnitsOfTokenizer,
    description_bytes,
    read_vocoder_description,
)
from tolktrain.units.vocoders.hifigan_config import DURATION_NEIGHBOURS, HiFiGanSizes, read_published_config
from tolktrain.units.vocoders.kind import VocoderKind, VocoderMaker, VocoderSource
from tolktrain.units.vocoders.voices import choose
from tolktrain.units.windows import windows_with_context

if TYPE_CHECKING:
    from tolktrain.units.vocoders.hifigan import UnitHiFiGan

NAME: Final = "unit-hifigan"
VERSION: Final = "1"
WEIGHTS_FILE: Final = "vocoder.safetensors"
_LARGEST_WEIGHTS = 1 << 30  # bytes
_WINDOW_FRAMES = 400  # of which the audio is computed at a time, besides context
_LONGEST_SECONDS = 60.0  # of a unit


class VocoderFiles(StrictModel):
    """The files that a vocoder was converted from."""

    checkpoint: str = Field(description="Name of the checkpoint.")
    checkpoint_sha256: str = Field(description="Digest of the checkpoint.")
    config_sha256: str = Field(description="Digest of its configuration.")


class UnitHiFiGanDescription(StrictModel):
    """vocoder.json of a unit HiFi-GAN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["unit-hifigan"] = Field(default=NAME, description="Kind of vocoder.")
    version: Literal["1"] = Field(default=VERSION, description="Version of the computation and of this format.")
    tokenizer: UnitsOfTokenizer = Field(description="The speech tokenizer whose units it speaks.")
    sizes: HiFiGanSizes = Field(description="Sizes of the generator.")
    speakers: tuple[str, ...] = Field(default=(), description="Names of the speakers, from the first.")
    styles: tuple[str, ...] = Field(default=(), description="Names of the styles, from the first.")
    source: VocoderFiles = Field(description="What it was converted from.")
    weights_sha256: str = Field(description="Digest of vocoder.safetensors.")


class UnitHiFiGanVocoder:
    """Audio of units by a HiFi-GAN."""

    name = NAME

    def __init__(
        self,
        sizes: HiFiGanSizes,
        generator: "UnitHiFiGan",
        frames_per_second: float,
        speaker: int = 0,
        style: int = 0,
        window_frames: int = _WINDOW_FRAMES,
    ) -> None:
        """Vocoder of a loaded generator; use `load_vocoder`."""
        self._sizes = sizes
        self._generator = generator
        self._speaker, self._style = speaker, style
        self._window_frames = window_frames
        self._longest = round(_LONGEST_SECONDS * frames_per_second)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        return self._sizes.sample_rate

    @property
    def duration_predictor(self) -> DurationPredictor | None:
        """`run_lengths` if the generator has a duration predictor."""
        if self._sizes.duration_channels is None:
            return None
        return DurationPredictor(self.run_lengths, DURATION_NEIGHBOURS)

    def run_lengths(self, units: npt.NDArray[Any]) -> RunLengths:
        """Predicted frames of units [n, 1], of which none repeats: [n]. At least one, and halves rounded to even.

        Raises `UserError` for ids outside the vocabulary, and for a duration of more than a minute.
        """
        if not len(units):
            check_units(units, self._sizes.num_units, 1)
            return np.zeros(0, np.uint16)
        with inference():
            frames = (self._generator.log_durations(self._tensor(units)).exp() - 1).round().clamp(min=1)
        longest = float(frames.max())
        if not longest <= self._longest:  # NaN too
            raise UserError(
                f"the vocoder predicts a duration of {longest:g} frames for a unit, and at most {self._longest} can be"
                " meant; its files are damaged, or it was trained on the units of another tokenizer"
            )
        found: RunLengths = frames.cpu().numpy().astype(np.uint16)
        return found

    def stream(self, frames: npt.NDArray[Any]) -> Iterator[Samples]:
        """Audio of the units [frames, 1]: [frames * hop] samples, within -1 and 1, window by window.

        Each window is computed with all the frames around it on which its samples depend, so the audio is that of one
        pass, up to rounding. Raises `UserError` for ids outside the vocabulary.
        """
        units, hop, context = self._tensor(frames), self._sizes.hop, self._sizes.context_frames
        for window in windows_with_context(len(frames), self._window_frames, context, context):
            with inference():
                waveform = self._generator(units[window.start : window.end], self._speaker, self._style)
            assert len(waveform) == (window.end - window.start) * hop
            yield waveform[(window.first - window.start) * hop : (window.last - window.start) * hop].cpu().numpy()

    def _tensor(self, units: npt.NDArray[Any]) -> Any:
        import torch

        check_units(units, self._sizes.num_units, 1)
        return torch.from_numpy(units[:, 0].astype(np.int64)).to(self._generator.dict.weight.device)


def convert(
    folder: str | Path,
    checkpoint: str | Path,
    config: str | Path,
    tokenizer_folder: str | Path,
    speakers: str | Path | None = None,
    styles: str | Path | None = None,
) -> UnitHiFiGanDescription:
    """Write vocoder.safetensors and vocoder.json from a published checkpoint.

    Args:
        folder: receives the files, vocoder.json last; may be the tokenizer's.
        checkpoint: what torch.save wrote; read without running code from it.
        config: the checkpoint's config.json.
        tokenizer_folder: of the speech tokenizer whose units the vocoder was trained on.
        speakers: text file with the name of a speaker in each line, in their order.
        styles: the same of styles.

    Raises:
        UserError: a file cannot be read or does not fit the others, the units of the tokenizer are others in number or
            rate, or the folder has a vocoder already. Nothing is written then.
    """
    from safetensors.torch import save

    from tolktrain.units.vocoders.checkpoint import read_generator

    folder = Path(folder)
    if (folder / VOCODER_FILE).exists():
        raise UserError(f"{folder / VOCODER_FILE} exists; name another folder, or remove it first")
    info = describe_speech_tokenizer(tokenizer_folder)
    sizes = read_published_config(config)
    _check_units_fit(sizes, info, config, tokenizer_folder)
    names = _names(speakers, "speaker", sizes.num_speakers), _names(styles, "style", sizes.num_styles)
    weights = save(read_generator(checkpoint, sizes), metadata={"format": "pt"})
    description = UnitHiFiGanDescription(
        tokenizer=UnitsOfTokenizer.of(info),
        sizes=sizes,
        speakers=names[0],
        styles=names[1],
        source=VocoderFiles(
            checkpoint=Path(checkpoint).name,
            checkpoint_sha256=file_sha256(checkpoint),
            config_sha256=file_sha256(config),
        ),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS_FILE, weights)
    replace_file(folder / VOCODER_FILE, description_bytes(description))
    return description


def _check_units_fit(sizes: HiFiGanSizes, info: SpeechTokenizerInfo, config: str | Path, folder: str | Path) -> None:
    if info.num_codebooks != 1 or info.num_units != sizes.num_units:
        raise UserError(
            f"{config}: the vocoder was trained on {sizes.num_units} units of one codebook, and {folder} has"
            f" {info.num_codebooks} x {info.num_units}: the units of another k-means would be noise; name the folder"
            " of the tokenizer that the vocoder was trained with"
        )
    if sizes.hop * info.frames_per_second != sizes.sample_rate:
        raise UserError(
            f"{config}: the upsample_rates make {sizes.hop} samples of a frame, so {sizes.sample_rate} samples per"
            f" second are {sizes.sample_rate / sizes.hop:g} frames per second, and the units of {folder} have"
            f" {info.frames_per_second:g}; name the folder of the tokenizer that the vocoder was trained with"
        )


def _names(path: str | Path | None, what: str, count: int | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in read_text(path).splitlines())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected the name of a {what} in each line"
        ) from None
    except ValueError:
        raise UserError(f"{path} is not UTF-8 text; expected the name of a {what} in each line") from None
    if len(names) > (count or 0) or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path} has {len(names)} lines; expected the names of at most {count or 0} {what}s, all different and none"
            " empty"
        )
    return names


def _open(source: VocoderSource) -> Callable[[], Vocoder]:
    description = read_vocoder_description(source.folder, UnitHiFiGanDescription)
    description.tokenizer.check(source.tokenizer, source.folder)
    sizes, shown = description.sizes, str(source.folder / VOCODER_FILE)
    _check_units_fit(sizes, source.tokenizer, shown, "the tokenizer")
    speaker = choose("speaker", source.voice.speaker, sizes.num_speakers, description.speakers, shown)
    style = choose("style", source.voice.style, sizes.num_styles, description.styles, shown)

    def load() -> Vocoder:
        generator = _load_generator(source.folder, description).to(checked_device(source.device))
        return UnitHiFiGanVocoder(sizes, generator, source.tokenizer.frames_per_second, speaker, style)

    return load


def _load_generator(folder: Path, description: UnitHiFiGanDescription) -> "UnitHiFiGan":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from tolktrain.units.vocoders.hifigan import UnitHiFiGan

    path = folder / WEIGHTS_FILE
    try:
        content = read_bytes(path, _LARGEST_WEIGHTS)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it belongs to {VOCODER_FILE} there") from None
    if hashlib.sha256(content).hexdigest() != description.weights_sha256:
        raise UserError(
            f"{path} does not belong to {VOCODER_FILE} in its folder (other sha256); restore both files together"
        )
    with torch.device("meta"):
        generator = UnitHiFiGan(description.sizes)
    try:
        generator.load_state_dict(load(content), assign=True)
    except (SafetensorError, RuntimeError):
        raise UserError(f"{path} has other tensors than {VOCODER_FILE} says; convert the vocoder again") from None
    return generator.eval().requires_grad_(False)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=input_argument, required=True, help="the published file, such as X.pt")
    parser.add_argument("--config", type=input_argument, required=True, help="its config.json")
    parser.add_argument(
        "--tokenizer", type=input_argument, help="folder of the speech tokenizer it was trained with; FOLDER if absent"
    )
    parser.add_argument("--speakers", type=input_argument, help="text file with the name of a speaker in each line")
    parser.add_argument("--styles", type=input_argument, help="text file with the name of a style in each line")


def _create(options: Namespace) -> str:
    tokenizer = options.tokenizer or options.folder
    if options.tokenizer is None and not (Path(options.folder) / DESCRIPTION_FILE).is_file():
        raise UserError(
            f"{options.folder} has no {DESCRIPTION_FILE}; give the folder of the speech tokenizer that the vocoder was"
            " trained with, or another one and --tokenizer"
        )
    made = convert(options.folder, options.checkpoint, options.config, tokenizer, options.speakers, options.styles)
    parts: Sequence[tuple[int | None, str]] = ((made.sizes.num_speakers, "speakers"), (made.sizes.num_styles, "styles"))
    choices = "".join(f", {count} {what}" for count, what in parts if count is not None)
    durations = "with" if made.sizes.duration_channels is not None else "without"
    return (
        f"{options.folder}: {made.name}, {made.sizes.sample_rate} samples per second{choices}, {durations} durations,"
        f" for the units of {made.tokenizer.name}, sha256 {made.tokenizer.sha256}"
    )


KIND = VocoderKind(
    NAME, _open, VocoderMaker("vocoder", "unit HiFi-GAN, as published, for a tokenizer", _add_arguments, _create)
)
