"""Objects of a store as files, with any of the clients."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from tolktrain.files.address import Address
from tolktrain.files.bounded import BoundedBuffer, BoundedFile
from tolktrain.files.reading import require_regular
from tolktrain.files.writing import written_aside
from tolktrain.storage.base import LARGEST_READ, Source, Storage
from tolktrain.storage.client import Client, Reader
from tolktrain.storage.errors import StorageError
from tolktrain.storage.folder import TEMPORARY_PREFIX
from tolktrain.storage.retries import Result, RetryPolicy, Task, retrying

AnyReader = TypeVar("AnyReader", bound=Reader)


class RemoteSource(Source, Generic[AnyReader]):
    """Objects that are only fetched."""

    def __init__(self, address: Address, policy: RetryPolicy, load: Callable[[], type[AnyReader]]) -> None:
        """`load`, a function of a module, imports the class of the client; it is called on first use."""
        super().__init__(address, policy)
        self._load = load
        self._client: tuple[int, AnyReader | None] = (0, None)  # and the process that made it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": (0, None)}

    def import_client(self) -> None:
        """Import the client library."""
        self._load()

    def fetch(self, name: str, accept: Callable[[bytes], Result], limit: int) -> Result:
        """The result of `accept` for the content of an object."""

        def act(client: AnyReader) -> Result:
            buffer = BoundedBuffer(limit)
            client.fetch(self._address.root + name, buffer)
            return accept(buffer.getvalue())

        return self._ask(act, self.path_of(name), "fetched")

    def _ask(self, act: Callable[[AnyReader], Result], address: str, done: str) -> Result:
        return retrying(
            lambda: act(self._own_client()),
            Task(address, self._address.scheme, done),
            self._policy,
            self._load().errors,
            before_retry=self._disconnect,
        )

    def _own_client(self) -> AnyReader:
        """The client that this process has created: connections must not be shared with a parent process."""
        process, client = self._client
        if client is None or process != os.getpid():
            client = self._load()(self._address, self._policy)
            self._client = os.getpid(), client
        return client

    def _disconnect(self) -> None:
        self._client = 0, None  # it may hold on to a broken connection


class Bucket(RemoteSource[Client], Storage):
    """Objects of a bucket below a folder. Objects are written atomically."""

    def read(self, name: str, limit: int = LARGEST_READ) -> bytes | None:
        """Content of an object, None if there is none."""
        try:
            return self.fetch(name, bytes, limit)
        except StorageError as error:
            if error.kind != "absent":
                raise
        self._check_bucket()
        return None

    def download(self, name: str, path: Path, limit: int) -> None:
        """Copy an object to a local path."""

        def act(client: Client) -> None:
            with written_aside(path, TEMPORARY_PREFIX) as aside, BoundedFile(aside, limit) as target:
                client.fetch(self._address.root + name, target)

        self._ask(act, self.path_of(name), "fetched")

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        self._change(lambda client: client.put(self._address.root + name, content), self.path_of(name), "written")

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to an object."""
        require_regular(path)
        self._change(lambda client: client.upload(path, self._address.root + name), self.path_of(name), "written")

    def names(self, prefix: str = "") -> list[str]:
        """Names of objects that begin with a prefix."""
        root = self._address.root
        keys = self._change(lambda client: list(client.list(root + prefix)), self.path_of(prefix), "listed")
        return sorted(key[len(root) :] for key in keys if key.startswith(root + prefix))

    def delete(self, name: str) -> None:
        """Delete an object."""
        try:
            self._ask(lambda client: client.delete(self._address.root + name), self.path_of(name), "deleted")
        except StorageError as error:
            if error.kind != "absent":
                raise
            self._check_bucket()

    def _change(self, act: Callable[[Client], Result], address: str, done: str) -> Result:
        """Like `_ask`, for requests that return 404 only if the bucket does not exist."""
        try:
            return self._ask(act, address, done)
        except StorageError as error:
            if error.kind == "absent":
                self._check_bucket()
            raise

    def _check_bucket(self) -> None:
        """Raise StorageError if the bucket does not exist, which otherwise looks like a missing object."""
        try:
            self._ask(lambda client: client.check_bucket(), self.address, "opened")
        except StorageError as error:
            # One may have rights to the objects of a bucket and none to look at the bucket itself.
            if error.kind != "refused":
                raise
