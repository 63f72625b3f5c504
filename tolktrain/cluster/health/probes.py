"""Measures the facts of a rank's report. `Probes` holds the functions that access the machine; tests replace them."""

import hashlib
import importlib.util
import os
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.cluster.health.reports import Device

PACKAGES = (
    *("torch", "deepspeed", "megatron-core", "triton", "transformers", "mosaicml-streaming", "numpy", "safetensors"),
    "flash-attn",
)
_OURS = ("tolktrain", "tolktrain_kernels")


def node_name() -> str:
    """The host name; under Slurm, the node name that `sbatch --exclude` takes."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def describe_device() -> Device:
    """The device of this rank."""
    if not torch.cuda.is_available():
        return Device("cpu", _cpu_name())
    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    uuid = str(getattr(properties, "uuid", ""))
    return Device("cuda", properties.name, index, f"GPU-{uuid.removeprefix('GPU-')}" if uuid else "")


def installed_versions() -> dict[str, str]:
    """Versions of everything that takes part in training; packages that are not installed are absent."""
    found = {"Python": platform.python_version(), "tolktrain's source files": source_digest()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["CUDA (of torch)"] = str(torch.version.cuda)
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        driver = Path("/sys/module/nvidia/version")
        if driver.is_file():
            found["NVIDIA driver"] = driver.read_text().strip()
    return found


def source_digest() -> str:
    """12 hexadecimal digits of a hash over the source files of both packages, independent of the version number."""
    digest = hashlib.sha256()
    for package in _OURS:
        spec = importlib.util.find_spec(package)
        for root in map(Path, spec.submodule_search_locations or () if spec is not None else ()):
            for file in sorted(root.rglob("*.py")):
                content = file.read_bytes()
                digest.update(f"{package}/{file.relative_to(root)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:12]


def free_space(folder: Path) -> tuple[int, int | None]:
    """Free bytes and, where the file system limits them, free files, for users without privileges."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize, state.f_favail if state.f_files else None


def swap(operations: list[dist.P2POp]) -> None:
    """Start these sends and receives together, and wait for them."""
    for work in dist.batch_isend_irecv(operations):
        work.wait()


@dataclass(frozen=True)
class Probes:
    """The functions that access the machine."""

    node: Callable[[], str] = node_name
    device: Callable[[], Device] = describe_device
    versions: Callable[[], dict[str, str]] = installed_versions
    clock: Callable[[], float] = time.time
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.mm
    space: Callable[[Path], tuple[int, int | None]] = free_space
    swap: Callable[[list[dist.P2POp]], None] = swap


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for _, line in zip(range(20), file, strict=False):
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
