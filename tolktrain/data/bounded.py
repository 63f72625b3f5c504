"""Files that take no more bytes than were expected."""

import io
import shutil
from pathlib import Path
from typing import Any

from tolktrain.files.reading import open_regular


class DamagedError(Exception):
    """What was fetched is not what was stored. Another attempt may bring it whole."""


class BoundedFile(io.FileIO):
    """A new file for at most `limit` bytes. Writing more raises DamagedError."""

    def __init__(self, path: str | Path, limit: int) -> None:
        super().__init__(str(path), "wb")
        self._limit = limit

    def write(self, data: Any) -> int:
        """Write all of the data, unless it would be too much."""
        view = memoryview(data).cast("B")
        if self.tell() + len(view) > self._limit:
            raise too_large(self._limit)
        rest = view
        while rest:  # one call may take less than all
            rest = rest[super().write(rest) :]
        return len(view)


def copy(source: str | Path, path: str | Path, limit: int) -> None:
    """Copy a local file of at most `limit` bytes. Raises OSError, also if it is no regular file, and DamagedError."""
    with open_regular(source) as file, BoundedFile(path, limit) as target:
        shutil.copyfileobj(file, target, 1 << 20)


def too_large(limit: int) -> DamagedError:
    """The error for a file of more bytes."""
    return DamagedError(f"it has more than the {limit} bytes that are expected")
