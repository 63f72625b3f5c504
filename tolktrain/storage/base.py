"""The interface of storages."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from tolktrain.files.address import Address
from tolktrain.storage.retries import Result, RetryPolicy

LARGEST_READ = 1 << 30  # bytes of a file that is read whole, unless said otherwise


class Source(ABC):
    """Files below one address, which are only read.

    Names are relative, with `/` between folders. Objects may be passed to other processes, including forked ones. All
    methods raise `StorageError`, a `UserError` that names the address, the cause and how to fix it.
    """

    def __init__(self, address: Address, policy: RetryPolicy) -> None:
        self._address = address
        self._policy = policy

    @property
    def address(self) -> str:
        """Where the files are, without a slash at the end."""
        return self._address.text

    def path_of(self, name: str) -> str:
        """Address of a file."""
        return self._address.path_of(name)

    @abstractmethod
    def fetch(self, name: str, accept: Callable[[bytes], Result], limit: int) -> Result:
        """The result of `accept` for the content of a file, which must exist and have at most `limit` bytes.

        If `accept` raises DamagedError, the file is fetched again. Memory: about the size of the file.
        """

    @abstractmethod
    def import_client(self) -> None:
        """Import the client library, so that processes forked later share it."""


class Storage(Source):
    """Files below one address, which are read and written."""

    @abstractmethod
    def read(self, name: str, limit: int = LARGEST_READ) -> bytes | None:
        """Content of a file of at most `limit` bytes, None if there is none."""

    @abstractmethod
    def download(self, name: str, path: Path, limit: int) -> None:
        """Copy a file of at most `limit` bytes, which must exist, to a local path, without holding it in memory.

        The local file is replaced atomically and synced.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, atomically."""

    @abstractmethod
    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to a name, replacing an existing file, atomically.

        Also raises OSError if the local file cannot be opened.
        """

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Names that begin with a prefix, sorted; empty if the folder does not exist.

        They are not trusted: check them with `files.names` before they become local paths.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
