"""Sizes of a unit HiFi-GAN, and how the configuration files of published ones give them."""

from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.units.description import problems

EDGE_KERNEL = 7  # of the first and the last convolution
DURATION_KERNEL = 3  # the published predictor pads its second convolution for this one only
DURATION_NEIGHBOURS = 2 * (DURATION_KERNEL // 2)  # of its two convolutions
# What published programs assume if the configuration does not say it.
_USUAL_SPEAKERS, _USUAL_STYLES, _USUAL_RATE, _USUAL_INPUT = 200, 100, 16_000, 80

_Size = Annotated[int, Field(gt=0, le=1 << 16)]
_Some = Annotated[tuple[_Size, ...], Field(min_length=1, max_length=16)]


class HiFiGanSizes(StrictModel):
    """A unit HiFi-GAN: HiFi-GAN (arXiv 2010.05646) over embeddings of units (arXiv 2104.00355), with a duration
    predictor (arXiv 2107.05604), speakers and styles (arXiv 2308.05725) where it has them."""

    sample_rate: int = Field(gt=0, le=1 << 20, description="Samples per second.")
    num_units: _Size = Field(description="Units.")
    embedding_dim: _Size = Field(description="Size of the embeddings of units, speakers and styles.")
    num_speakers: _Size | None = Field(description="Speakers; null without a choice.")
    num_styles: _Size | None = Field(description="Styles; null without a choice.")
    channels: _Size = Field(description="Channels before the first upsampling; each upsampling halves them.")
    upsample_rates: _Some = Field(description="Factor of each upsampling.")
    upsample_kernel_sizes: _Some = Field(description="Kernel of each upsampling.")
    resblock_kernel_sizes: _Some = Field(description="Kernel of each of the residual blocks whose mean is taken.")
    resblock_dilation_sizes: Annotated[tuple[_Some, ...], Field(min_length=1, max_length=16)] = Field(
        description="Dilations of each of these blocks."
    )
    duration_channels: _Size | None = Field(description="Channels of the duration predictor; null without one.")

    @model_validator(mode="after")
    def _parts_fit(self) -> "HiFiGanSizes":
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if len(rates) != len(kernels):
            raise ValueError(f"{len(rates)} upsample_rates and {len(kernels)} upsample_kernel_sizes; expected as many")
        if any(kernel < rate for rate, kernel in zip(rates, kernels, strict=True)):
            raise ValueError(f"upsample_kernel_sizes {kernels} leave gaps, since upsample_rates are {rates}")
        if self.channels % 2 ** len(rates):
            raise ValueError(f"{self.channels} channels cannot be halved {len(rates)} times")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("resblock_kernel_sizes and resblock_dilation_sizes differ in length")
        if any(kernel % 2 == 0 for kernel in self.resblock_kernel_sizes):
            raise ValueError(f"resblock_kernel_sizes {self.resblock_kernel_sizes} are not odd")
        return self

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return prod(self.upsample_rates)

    @property
    def input_channels(self) -> int:
        """Channels of the first convolution's input: unit, speaker and style."""
        parts = 1 + (self.num_speakers is not None) + (self.num_styles is not None)
        return parts * self.embedding_dim

    @property
    def context_frames(self) -> int:
        """Frames on either side of a frame on which its samples depend."""
        # Half of the field on the way from the output to the input, in steps of each layer's input.
        blocks = max(
            sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
            for kernel, dilations in zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True)
        )
        reach = EDGE_KERNEL // 2
        for rate, kernel in zip(reversed(self.upsample_rates), reversed(self.upsample_kernel_sizes), strict=True):
            reach += blocks
            # Step m of the input reaches the outputs from m * rate - padding to m * rate - padding + kernel - 1.
            padding = (kernel - rate) // 2
            reach = max((reach + kernel - 1 - padding) // rate, (reach + rate - 1 + padding) // rate)
        return reach + EDGE_KERNEL // 2


class _Durations(BaseModel):
    """`dur_predictor_params` of a published configuration."""

    encoder_embed_dim: int
    var_pred_hidden_dim: int
    var_pred_kernel_size: int


class _Published(BaseModel):
    """The part of a published configuration that determines the generator. Its other keys are of training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    num_embeddings: int
    embedding_dim: int
    model_in_dim: int = _USUAL_INPUT
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    resblock: Any = "1"
    code_hop_size: int | None = None
    sampling_rate: int = _USUAL_RATE
    # Switches, which are numbers, names or true.
    multispkr: Any = None
    multistyle: Any = None
    f0: Any = None
    f0_quant_num_bin: Any = 0
    embedder_params: Any = None
    num_speakers: int = _USUAL_SPEAKERS
    num_styles: int = _USUAL_STYLES
    dur_predictor_params: _Durations | None = None


def read_published_config(path: str | Path) -> HiFiGanSizes:
    """The sizes in a published config.json.

    Raises:
        UserError: the file cannot be read, is of something else, or asks for what is not supported; names each key.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the vocoder's config.json") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give the vocoder's config.json") from None
    try:
        found = _Published.model_validate(content)
        _refuse_unsupported(found, path)
        durations = found.dur_predictor_params
        sizes = HiFiGanSizes(
            sample_rate=found.sampling_rate,
            num_units=found.num_embeddings,
            embedding_dim=found.embedding_dim,
            num_speakers=found.num_speakers if found.multispkr else None,
            num_styles=found.num_styles if found.multistyle else None,
            channels=found.upsample_initial_channel,
            upsample_rates=found.upsample_rates,
            upsample_kernel_sizes=found.upsample_kernel_sizes,
            resblock_kernel_sizes=found.resblock_kernel_sizes,
            resblock_dilation_sizes=found.resblock_dilation_sizes,
            duration_channels=None if durations is None else durations.var_pred_hidden_dim,
        )
    except ValidationError as error:
        raise UserError(f"{path} is not the configuration of a unit HiFi-GAN ({problems(error)})") from None
    if found.model_in_dim != sizes.input_channels:
        raise UserError(
            f"{path}: model_in_dim is {found.model_in_dim}, but embeddings of the unit, the speaker (multispkr"
            f" {found.multispkr}) and the style (multistyle {found.multistyle}) have {sizes.input_channels} together;"
            " give the configuration of this checkpoint"
        )
    if found.code_hop_size not in (None, sizes.hop):
        raise UserError(
            f"{path}: code_hop_size is {found.code_hop_size}, but the upsample_rates make {sizes.hop} samples of a"
            " frame; give the configuration of this checkpoint"
        )
    return sizes


def _refuse_unsupported(found: _Published, path: str | Path) -> None:
    unsupported = {
        "f0": (found.f0, "the vocoder needs a pitch for each frame, which units do not give"),
        "f0_quant_num_bin": (found.f0_quant_num_bin, "the vocoder needs a pitch for each frame"),
        "embedder_params": (found.embedder_params, "the vocoder needs an embedding of the speaker's audio"),
        "resblock": (found.resblock not in ("1", 1) and found.resblock, "only residual blocks of type 1 are supported"),
    }
    for key, (value, reason) in unsupported.items():
        if value:
            raise UserError(f"{path}: {key} is {value!r:.60}: {reason}; use a vocoder of units, speaker and style only")
    durations = found.dur_predictor_params
    if durations is not None and durations.encoder_embed_dim != found.embedding_dim:
        raise UserError(
            f"{path}: dur_predictor_params.encoder_embed_dim is {durations.encoder_embed_dim}, but embedding_dim is"
            f" {found.embedding_dim}; give the configuration of this checkpoint"
        )
    if durations is not None and durations.var_pred_kernel_size != DURATION_KERNEL:
        raise UserError(
            f"{path}: dur_predictor_params.var_pred_kernel_size is {durations.var_pred_kernel_size}; only"
            f" {DURATION_KERNEL} gives one duration per unit"
        )
