"""The choice of kernels: Triton or plain PyTorch, and the attention inside speech segments."""

import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Literal

import torch

Backend = Literal["torch", "triton"]
Attention = Literal["flash", "varlen", "padded"]


@dataclass(frozen=True)
class Kernels:
    """The chosen implementations. The defaults run everywhere."""

    backend: Backend = "torch"
    attention: Attention = "padded"  # inside speech segments, see `segment_attention`


def choose_backend(requested: str, device_type: str) -> tuple[Backend, str]:
    """Resolve `auto` and check the rest.

    Args:
        requested: "auto", "triton" or "torch".
        device_type: where the states live, as `torch.device.type`.

    Returns:
        "triton" or "torch", and why, for the log.

    Raises:
        ValueError: another name; or Triton is required but cannot run. It needs a GPU, or the environment variable
            TRITON_INTERPRET=1, with which it runs on the CPU, slowly.
    """
    if requested not in ("auto", "triton", "torch"):
        raise ValueError(f"kernels.backend {requested!r} is unknown; use auto, triton or torch")
    if requested == "torch":
        return "torch", "requested"
    obstacle = _obstacle(device_type)
    if requested == "triton":
        if obstacle:
            raise ValueError(f"kernels.backend triton cannot run: {obstacle}; use auto or torch")
        return "triton", "requested"
    if obstacle:
        return "torch", obstacle
    # The interpreter is only for checking the kernels, so auto does not choose it.
    return ("triton", "a GPU and Triton are there") if device_type == "cuda" else ("torch", "there is no GPU")


def choose_attention(requested: str, device_type: str, dtype: torch.dtype, head_dim: int) -> tuple[Attention, str]:
    """The best available attention inside segments: flash-attn, PyTorch's for packed sequences, or padded segments.

    Args:
        requested: "auto", "flash", "varlen" or "padded".
        device_type: where the states live, as `torch.device.type`.
        dtype: of the states.
        head_dim: width of a head.

    Returns:
        "flash", "varlen" or "padded", and why, for the log.

    Raises:
        ValueError: another name, or a required one cannot run.
    """
    if requested not in ("auto", "flash", "varlen", "padded"):
        raise ValueError(f"kernels.attention {requested!r} is unknown; use auto, flash, varlen or padded")
    if requested == "padded":
        return "padded", "requested"
    unfit = _unfit_for_flash(device_type, dtype, head_dim)
    # Only what could run is looked for: importing flash-attn takes seconds.
    if requested == "auto":
        for name in _PACKED_ATTENTION:
            if unfit is None and _missing(name) is None:
                return name, f"{_PACKED_ATTENTION[name][0]} is there"
        return "padded", unfit or "neither flash_attn nor torch.nn.attention.varlen is there"
    demanded: Attention = "flash" if requested == "flash" else "varlen"
    obstacle = unfit or _missing(demanded)
    if obstacle:
        raise ValueError(f"kernels.attention {requested} cannot run: {obstacle}; use auto or padded")
    return demanded, "requested"


# Module and function, the best first.
_PACKED_ATTENTION: dict[Attention, tuple[str, str]] = {
    "flash": ("flash_attn", "flash_attn_varlen_func"),
    "varlen": ("torch.nn.attention.varlen", "varlen_attn"),
}


def _unfit_for_flash(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """The unmet requirement of FlashAttention-2, which both implementations are; None if there is none."""
    if device_type != "cuda":
        return "there is no GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"attention over packed segments takes 16-bit states, not {str(dtype).removeprefix('torch.')}"
    if head_dim > 256 or head_dim % 8:
        return f"attention over packed segments takes heads up to 256 wide, a multiple of 8, not {head_dim}"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than Ampere, which attention over packed segments needs"
    return None


def _missing(name: Attention) -> str | None:
    """Why an implementation cannot be used.

    A flash-attn that was built for another torch is found, but fails to load. Another of its distributions contains a
    package of that name without the function.
    """
    module, function = _PACKED_ATTENTION[name]
    try:
        found = importlib.import_module(module)
    except Exception as error:
        return f"{module} cannot be imported ({error})"
    return None if hasattr(found, function) else f"{module} has no {function}"


def _obstacle(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no GPU"
    return None
