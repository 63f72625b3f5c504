"""Versions of the packages that a measurement depends on."""

import platform
from importlib import metadata

_PACKAGES = ("tolktrain", "torch", "triton", "deepspeed", "megatron-core", "transformers", "flash-attn")


def versions() -> str:
    """Python's and those of the installed packages, by commas."""
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue  # an optional one
    return ", ".join(found)
