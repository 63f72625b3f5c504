"""gs:// over google-cloud-storage, with Google's own credentials."""

from collections.abc import Iterator
from pathlib import Path

import google.auth
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google.cloud import storage  # type: ignore[import-untyped]

from tolktrain.files.address import Address
from tolktrain.files.bounded import Bounded
from tolktrain.storage.client import Client
from tolktrain.storage.errors import ClientErrors
from tolktrain.storage.retries import RetryPolicy


class GoogleClient(Client):
    """A bucket of Google Cloud Storage."""

    errors = ClientErrors((DefaultCredentialsError, RefreshError))

    def __init__(self, address: Address, policy: RetryPolicy) -> None:
        credentials, _ = google.auth.default()
        self._bucket = storage.Client(credentials=credentials).bucket(address.bucket)
        self._timeout = policy.timeout_seconds

    def fetch(self, key: str, target: Bounded) -> None:
        """Write the content of an object."""
        self._bucket.blob(key).download_to_file(target, timeout=self._timeout)

    def check_bucket(self) -> None:
        """Look at the bucket."""
        self._bucket.reload(timeout=self._timeout)

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._bucket.blob(key).upload_from_string(
            content, content_type="application/octet-stream", timeout=self._timeout
        )

    def upload(self, path: Path, key: str) -> None:
        """Copy a file to an object."""
        self._bucket.blob(key).upload_from_filename(str(path), timeout=self._timeout)

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that begin with a prefix."""
        for blob in self._bucket.list_blobs(prefix=prefix, fields="items(name),nextPageToken", timeout=self._timeout):
            yield blob.name

    def delete(self, key: str) -> None:
        """Delete an object. An error of status 404 if there is none."""
        self._bucket.blob(key).delete(timeout=self._timeout)
