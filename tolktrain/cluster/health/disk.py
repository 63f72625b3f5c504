"""The run directory as each node sees it: whether it is the same directory, and its free space."""

import contextlib
import os
import secrets
import time
from pathlib import Path

from tolktrain.cluster.health.probes import Probes
from tolktrain.cluster.health.reports import Folder
from tolktrain.files.shared import create_file

_MARK = ".health-check"
_RETRY_DELAYS_SECONDS = (0.0, 0.5, 1.5)  # before each look at a network file system


class Mark:
    """A file that rank 0 writes to the run directory, by which other nodes check that they see the same directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _MARK

    def leave(self) -> str:
        """Write the file; returns its content, or "" if that fails. `look` reports the failure."""
        text = secrets.token_hex(8)
        try:
            with create_file(self._path) as file:
                file.write(text.encode())
        except OSError:
            return ""
        return text

    def remove(self) -> None:
        """Delete the file."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def look(folder: Path, mark: str, rank: int, probes: Probes) -> Folder:
    """The run directory as this rank's node sees it. `mark` is the content of rank 0's file."""
    own = folder / f"{_MARK}-{rank:05d}"
    try:
        create_file(own).close()
        own.unlink()
        free_bytes, free_files = probes.space(folder)
    except OSError as error:
        return Folder(fault=error.strerror or str(error))
    return Folder("", _sees(folder, mark), free_bytes, free_files)


def _sees(folder: Path, mark: str) -> bool:
    for seconds in _RETRY_DELAYS_SECONDS:
        time.sleep(seconds)
        try:
            os.listdir(folder)  # refreshes the directory cache of a network file system
            seen = (folder / _MARK).read_text()
        except OSError:
            seen = ""
        if seen == mark:
            return True
    return False
