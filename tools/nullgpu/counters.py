"""What the null GPU has counted in this process, and where it must not be waited for."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


class Counters(ctypes.Structure):
    """The counters of `csrc/null.h`, which change as the process runs."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "launches",
            "synchronizations",
            "pageable_copies",
            "device_bytes",
            "pinned_bytes",
            "streams",
            "events",
            "modules",
            "collectives",
            "attention_plans",
            "faults",
            "forbids_waiting",
        )
    ]
    launches: int
    synchronizations: int
    pageable_copies: int
    device_bytes: int
    pinned_bytes: int
    streams: int
    events: int
    modules: int
    collectives: int
    attention_plans: int
    faults: int
    forbids_waiting: int

    def values(self) -> dict[str, int]:
        """The present values by name."""
        return {str(field[0]): int(getattr(self, field[0])) for field in self._fields_}


def counters() -> Counters:
    """Those of this process, which must have been started with the variables of `build.environment`."""
    return Counters.in_dll(ctypes.CDLL(os.environ["NULLGPU_LIBRARY"]), "null_counters")


@contextmanager
def no_waiting() -> Iterator[None]:
    """In this context, a call that lets the host wait for the device fails: torch raises an exception there."""
    shared = counters()
    shared.forbids_waiting += 1
    try:
        yield
    finally:
        shared.forbids_waiting -= 1
