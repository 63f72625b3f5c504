"""The run folder as each node sees it: the same folder, with how much space."""

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
    """A file of rank 0 in the run's folder, by which other nodes know that theirs is the same."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _MARK

    def leave(self) -> str:
        """Write it; returns what it says, or nothing if that fails, which will be told by `look`."""
        text = secrets.token_hex(8)
        try:
            with create_file(self._path) as file:
                file.write(text.encode())
        except OSError:
            return ""
        return text

    def remove(self) -> None:
        """Delete it."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def look(folder: Path, mark: str, rank: int, probes: Probes) -> Folder:
    """The run's folder as this rank's node sees it. `mark` is what rank 0 has left there."""
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
            os.listdir(folder)  # a network file system may answer from what it remembers of the folder
            seen = (folder / _MARK).read_text()
        except OSError:
            seen = ""
        if seen == mark:
            return True
    return False
