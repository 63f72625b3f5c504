"""Settings that are resolved once when a run starts: DeepSpeed's configuration and the kernels."""

from dataclasses import dataclass

import torch

from tolktrain.config import Config
from tolktrain.config.deepspeed import DeepSpeedFile, DeepSpeedSettings, read_deepspeed_file, resolve_deepspeed
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.parallel.layout import Layout
from tolktrain_kernels.backend import Kernels, choose_attention, choose_backend


@dataclass(frozen=True)
class KernelChoice:
    """The chosen kernels, and the reason."""

    kernels: Kernels
    description: str  # one line, for the header and the log


@dataclass(frozen=True)
class ResolvedSettings:
    """DeepSpeed's settings and the kernels: the same for all stages of the recipe and all ranks."""

    deepspeed: DeepSpeedSettings
    kernels: KernelChoice

    @classmethod
    def of(
        cls, config: Config, architecture: Architecture, layout: Layout, file: DeepSpeedFile | None = None
    ) -> "ResolvedSettings":
        """Resolve the settings for a layout, from the entries of DeepSpeed's file; if not given, it is read.

        Raises UserError like `read_deepspeed_file`, `resolve_deepspeed` and `choose_kernels`.
        """
        return cls(
            resolve_deepspeed(config, file or read_deepspeed_file(config), layout.data_size),
            choose_kernels(config, architecture, layout.device.type),
        )


def choose_kernels(config: Config, architecture: Architecture, device_type: str) -> KernelChoice:
    """Resolve `kernels` of the configuration for this device; the same on all ranks of a job on equal machines.

    Raises:
        UserError: a required kernel cannot run here.
    """
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    try:
        backend, why = choose_backend(config.kernels.backend, device_type)
        attention, reason = choose_attention(config.kernels.attention, device_type, dtype, architecture.head_dim)
    except ValueError as error:
        raise UserError(str(error)) from error
    parts = [f"{backend} ({why})", f"attention over speech {attention} ({reason})"]
    if config.train.compile == "layers":
        parts.append("layers compiled by torch.compile")
    return KernelChoice(Kernels(backend, attention), ", ".join(parts))
