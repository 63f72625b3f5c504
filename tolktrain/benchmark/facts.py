"""The circumstances of a measurement."""

import platform
import re
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from tolktrain.benchmark.versions import versions
from tolktrain.parallel.layout import Layout


def facts(layout: Layout, kernels: str, command: Sequence[str]) -> dict[str, str]:
    """Hardware, versions, time and command. `kernels` describes what our own step computes with."""
    found = {"device": device_name(layout)}
    if layout.device.type == "cuda":
        memory = torch.cuda.get_device_properties(layout.device).total_memory
        found["memory"] = f"{memory / 2**30:.0f} GiB"
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["threads"] = str(torch.get_num_threads())
    return {
        **found,
        "kernels": kernels,
        "versions": versions(),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join(command),
    }


def device_name(layout: Layout) -> str:
    """Name of the GPU, or of the processor without a GPU."""
    if layout.device.type == "cuda":
        return torch.cuda.get_device_name(layout.device)
    return processor_name()


def processor_name() -> str:
    """Name of the processor: "AMD EPYC (CPU)"."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1] if found else platform.machine()} (CPU)"
