"""What C libraries write on standard error about a file, written with the name of that file."""

import contextlib
import os
import sys
from collections.abc import Iterator

_MOST_LINES = 3
_MOST_BYTES = 4096


@contextlib.contextmanager
def named_notes(path: str) -> Iterator[None]:
    """Within this context, what the process writes on standard error is kept; afterwards it appears after the path.

    libmpg123 writes notes that name no file, and libsndfile has no setting that keeps it from doing so. Standard error
    belongs to the whole process: what other threads write meanwhile gets the name too.
    """
    try:
        sys.stderr.flush()
        standard_error = os.dup(2)
    except (OSError, ValueError, AttributeError):  # it is closed
        yield
        return
    kept = os.memfd_create("notes", os.MFD_CLOEXEC)
    try:
        os.dup2(kept, 2)
        yield
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        os.dup2(standard_error, 2)
        os.close(standard_error)
        notes = os.pread(kept, _MOST_BYTES, 0).decode("utf-8", "replace")
        os.close(kept)
        lines = list(dict.fromkeys(line.strip() for line in notes.splitlines() if line.strip()))
        for line in lines[:_MOST_LINES]:
            _write(f"{path}: {line}\n")


def _write(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, line.encode("utf-8", "backslashreplace"))
