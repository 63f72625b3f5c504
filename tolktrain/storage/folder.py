"""A local folder as a storage."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tolktrain.files.bounded import BoundedBuffer, BoundedFile, DamagedError, copy_into
from tolktrain.files.reading import read_bytes
from tolktrain.files.writing import written_aside
from tolktrain.storage.base import LARGEST_READ, Storage
from tolktrain.storage.errors import ClientErrors, failure
from tolktrain.storage.retries import Result, Task, retrying

TEMPORARY_PREFIX = ".tolktrain-"  # of files that are not finished


class LocalFolder(Storage):
    """A folder, which is created when something is written."""

    def import_client(self) -> None:
        """Does nothing: no client is needed."""

    def read(self, name: str, limit: int = LARGEST_READ) -> bytes | None:
        """Content of a file, None if there is none."""
        with explained(self.path_of(name), "read"):
            return read_bytes(self.path_of(name), limit)
        return None

    def fetch(self, name: str, accept: Callable[[bytes], Result], limit: int) -> Result:
        """The result of `accept` for the content of a file."""
        path = self.path_of(name)

        def act() -> Result:
            buffer = BoundedBuffer(limit)
            copy_into(path, buffer)
            return accept(buffer.getvalue())

        return retrying(act, Task(path, "", "fetched"), self._policy, ClientErrors())

    def download(self, name: str, path: Path, limit: int) -> None:
        """Copy a file to a path outside of the storage."""
        source = self.path_of(name)
        with explained(source, "written"):
            try:
                with written_aside(path, TEMPORARY_PREFIX) as aside, BoundedFile(aside, limit) as target:
                    copy_into(source, target)
            except FileNotFoundError as error:
                raise failure(source, "", "fetched", "absent", str(error)) from error
            except DamagedError as error:
                raise failure(source, "", "fetched", "damaged", str(error)) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        self._put(name, lambda aside: aside.write_bytes(content))

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into the storage."""
        self._put(name, lambda aside: shutil.copyfile(path, aside))

    def names(self, prefix: str = "") -> list[str]:
        """Names of files that begin with a prefix."""
        found = [
            (Path(folder) / name).relative_to(self.address).as_posix()
            for folder, _, files in os.walk(self.address)
            for name in files
            if not name.startswith(TEMPORARY_PREFIX)
        ]
        return sorted(name for name in found if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Delete a file."""
        with explained(self.path_of(name), "deleted"):
            os.unlink(self.path_of(name))

    def _put(self, name: str, fill: Callable[[Path], object]) -> None:
        target = Path(self.path_of(name))
        with explained(str(target), "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(target, TEMPORARY_PREFIX) as aside:
                fill(aside)


@contextlib.contextmanager
def explained(path: str, done: str) -> Iterator[None]:
    """Turn errors of the local file system into `StorageError`; a missing file is an error only when writing."""
    try:
        yield
    except FileNotFoundError:
        if done == "written":
            raise
    except OSError as error:
        raise failure(path, "", done, "disk", str(error)) from error
