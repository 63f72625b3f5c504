"""What trials run on: `python -m tolktrain.tune.probe` prints it as JSON.

A process of its own, because a process that has asked a GPU for its name holds some of its memory.
"""

import json
import os

import torch

from tolktrain.benchmark.versions import installed


def probe() -> dict[str, object]:
    """Name, kind, number and memory (GiB) of the devices, and the versions of what computes on them."""
    versions = installed()
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        found = {"name": torch.cuda.get_device_name(0), "kind": "cuda", "count": torch.cuda.device_count()}
        return {**found, "memory_gib": memory / 2**30, "versions": versions}
    from tolktrain.benchmark.facts import processor_name

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"name": processor_name(), "kind": "cpu", "count": len(os.sched_getaffinity(0))}
    return {**found, "memory_gib": memory / 2**30, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(probe()))
