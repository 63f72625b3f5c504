"""Versions of the packages that a measurement depends on."""

import platform
from importlib import metadata

_PACKAGES = ("tolktrain", "torch", "triton", "deepspeed", "megatron-core", "transformers", "flash-attn")


def installed() -> dict[str, str]:
    """Of Python and of the installed packages, by name."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def versions() -> str:
    """The same, by commas."""
    return ", ".join(f"{name} {version}" for name, version in installed().items())
