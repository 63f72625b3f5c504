"""Stores that are only read, over the downloaders of mosaicml-streaming: hf://, oci://, sftp://, dbfs:/ and others."""

import tempfile
from pathlib import Path

from tolktrain.files.address import Address
from tolktrain.files.bounded import Bounded, copy_into
from tolktrain.libraries.streaming import CloudDownloader
from tolktrain.storage.client import Reader
from tolktrain.storage.errors import ClientErrors, StorageError
from tolktrain.storage.retries import RetryPolicy


class OtherReader(Reader):
    """Fetches with the library's downloaders. The library interprets addresses as URLs."""

    errors = ClientErrors()

    def __init__(self, address: Address, policy: RetryPolicy) -> None:
        self._address = address
        self._timeout = policy.timeout_seconds
        try:
            self._downloader = CloudDownloader.get(address.text)
        except ValueError:
            raise StorageError(
                f"{address.text!r} is no address that can be read; expected a folder, or an address that begins with"
                " s3://, gs://, azure:// or what mosaicml-streaming can download from besides",
                "invalid",
            ) from None

    def fetch(self, key: str, target: Bounded) -> None:
        """Write the content of a file, which is in the folder for temporary files meanwhile."""
        with tempfile.TemporaryDirectory(prefix="tolktrain-") as folder:
            path = Path(folder, "content")
            self._downloader.download(self._address.path_of(key), str(path), self._timeout)
            copy_into(path, target)
