"""A limit of the memory of this process, and what its excess looks like."""

import json
import re
import resource
from pathlib import Path

import torch

from tolktrain.errors import UserError
from tolktrain.files.writing import replace_file
from tolktrain.parallel.layout import Layout

OUT_OF_MEMORY = "out-of-memory.json"  # in the folder of the results, written by the rank that ran out
# Triton, cuBLAS and torch's allocator on the CPU raise errors of no kind of their own.
_MESSAGES = "out of memory|CUBLAS_STATUS_ALLOC_FAILED|can't allocate memory|std::bad_alloc|Cannot allocate memory"
_STATUS = Path("/proc/self/status")


def process_memory_gib() -> float | None:
    """Resident memory of this process; None where the system does not tell."""
    resident = _status("VmRSS")
    return None if resident is None else resident / 2**30


def limit_memory(gib: float, device: torch.device) -> None:
    """Let allocations fail above `gib`: of torch's allocator on a GPU, else of what this process has resident.

    Raises:
        UserError: the system cannot do this, or the process needs more already.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total), device)
        return
    resident, data = _status("VmRSS"), _status("VmData")
    if resident is None or data is None:
        raise UserError("--memory-limit: this system does not tell the memory of a process; leave it out")
    left = int(gib * 2**30) - resident
    if left <= 0:
        raise UserError(f"--memory-limit {gib:g}: the process has {resident / 2**30:.2f} GiB before the model is built")
    # Libraries reserve far more than they use, so that only what is added can be limited.
    resource.setrlimit(resource.RLIMIT_DATA, (data + left, resource.RLIM_INFINITY))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(re.search(_MESSAGES, str(error)))


def report_out_of_memory(folder: Path, layout: Layout, error: BaseException) -> None:
    """Leave a file that says which rank ran out: with several, the others wait for it until they are ended."""
    first = str(error).strip().splitlines()[:1]
    found = {"rank": layout.rank, "message": first[0] if first else type(error).__name__}
    replace_file(folder / OUT_OF_MEMORY, json.dumps(found) + "\n")


def _status(name: str) -> int | None:
    """Bytes of an entry of the process's status."""
    try:
        found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
