"""azure:// over azure-storage-blob: with `AZURE_ACCOUNT_ACCESS_KEY`, or as the environment or the CLI says."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import ContainerClient

from tolktrain.files.address import Address
from tolktrain.files.bounded import Bounded
from tolktrain.storage.client import Client
from tolktrain.storage.errors import ClientErrors
from tolktrain.storage.retries import RetryPolicy


class AzureClient(Client):
    """A container of Azure's blob storage."""

    errors = ClientErrors((ClientAuthenticationError,))

    def __init__(self, address: Address, policy: RetryPolicy) -> None:
        self._container = ContainerClient(
            account_url(address), address.bucket, _credential(), read_timeout=policy.timeout_seconds
        )

    def fetch(self, key: str, target: Bounded) -> None:
        """Write the content of a blob."""
        self._container.download_blob(key).readinto(target)

    def check_bucket(self) -> None:
        """Look at the container."""
        self._container.get_container_properties()

    def put(self, key: str, content: bytes) -> None:
        """Write a blob."""
        self._container.upload_blob(key, content, overwrite=True)

    def upload(self, path: Path, key: str) -> None:
        """Copy a file to a blob, a large one in blocks."""
        with path.open("rb") as file:
            self._container.upload_blob(key, file, overwrite=True)

    def list(self, prefix: str) -> Iterable[str]:
        """All names of blobs that begin with a prefix."""
        return self._container.list_blob_names(name_starts_with=prefix)

    def delete(self, key: str) -> None:
        """Delete a blob. An error of status 404 if there is none."""
        self._container.delete_blob(key)


def account_url(address: Address) -> str:
    """Where the storage account answers: `AZURE_ACCOUNT_NAME`, or else the host of the address, names it."""
    account = os.environ.get("AZURE_ACCOUNT_NAME") or address.host.partition(".")[0]
    return f"https://{account}.blob.core.windows.net"


def _credential() -> Any:
    key = os.environ.get("AZURE_ACCOUNT_ACCESS_KEY")
    if key is not None:
        return key
    from azure.identity import AzureCliCredential, ChainedTokenCredential, DefaultAzureCredential

    return ChainedTokenCredential(AzureCliCredential(), DefaultAzureCredential())
