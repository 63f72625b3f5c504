"""Files and buffers with a limit of bytes."""

import io
import shutil
from pathlib import Path
from typing import Any

from tolktrain.files.reading import open_regular


class DamagedError(Exception):
    """The fetched content is damaged. Another attempt may succeed."""


class BoundedFile(io.FileIO):
    """A new file for at most `limit` bytes. Writing more raises DamagedError."""

    def __init__(self, path: str | Path, limit: int) -> None:
        super().__init__(str(path), "wb")
        self.limit = limit

    def write(self, data: Any) -> int:
        """Write all of the data, unless it would be too much."""
        rest = view = _within(self, data)
        while rest:  # one call may take less than all
            rest = rest[super().write(rest) :]
        return len(view)


class BoundedBuffer(io.BytesIO):
    """At most `limit` bytes in memory. Writing more raises DamagedError."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, data: Any) -> int:
        """Write all of the data, unless it would be too much."""
        return super().write(_within(self, data))


Bounded = BoundedFile | BoundedBuffer


def _within(target: Bounded, data: Any) -> memoryview:
    """The data as bytes. Raises DamagedError if they would exceed the target's limit."""
    view = memoryview(data).cast("B")
    if target.tell() + len(view) > target.limit:
        raise too_large(target.limit)
    return view


def copy_into(source: str | Path, target: Bounded) -> None:
    """Copy a regular local file. Raises OSError, or DamagedError if the target is too small."""
    with open_regular(source) as file:
        shutil.copyfileobj(file, target, 1 << 20)


def too_large(limit: int) -> DamagedError:
    """The error for a file of more bytes."""
    return DamagedError(f"it has more than the {limit} bytes that are expected")
