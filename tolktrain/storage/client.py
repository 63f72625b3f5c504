"""The interface of client libraries to the storages."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from tolktrain.files.address import Address
from tolktrain.files.bounded import Bounded
from tolktrain.storage.errors import ClientErrors
from tolktrain.storage.retries import RetryPolicy


class Reader(ABC):
    """Fetches objects. Each call is one attempt, and raises its library's exceptions."""

    errors: ClassVar[ClientErrors]

    @abstractmethod
    def __init__(self, address: Address, policy: RetryPolicy) -> None:
        """Opens connections for this process."""

    @abstractmethod
    def fetch(self, key: str, target: Bounded) -> None:
        """Write the content of an object; raise as early as possible when that is more than the target takes."""


class Client(Reader):
    """Requests to the bucket of an address."""

    @abstractmethod
    def check_bucket(self) -> None:
        """Raise an error of HTTP status 404 if there is no such bucket."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Write or replace an object."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Copy a local file to an object, without holding it in memory."""

    @abstractmethod
    def list(self, prefix: str) -> Iterable[str]:
        """All keys that begin with a prefix."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object. If there is none it does nothing, or raises an error of HTTP status 404."""
