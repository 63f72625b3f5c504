"""Opens the storage of an address."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tolktrain.files.address import BUCKET_SCHEMES, check_account, parse_address, parse_source_address
from tolktrain.storage.base import Source, Storage
from tolktrain.storage.bucket import Bucket, RemoteSource
from tolktrain.storage.client import Client, Reader
from tolktrain.storage.folder import LocalFolder
from tolktrain.storage.retries import RetryPolicy


def open_storage(address: str, policy: RetryPolicy | None = None) -> Storage:
    """The files below a local folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or
    azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER, which need not exist yet.

    Connects to nothing and imports no library. Raises UserError if the address is none of these.
    """
    parsed = parse_address(address)
    check_account(parsed)
    if not parsed.scheme:
        return LocalFolder(parsed, policy or RetryPolicy())
    return Bucket(parsed, policy or RetryPolicy(), _CLIENTS[parsed.scheme])


def open_source(address: str, policy: RetryPolicy | None = None) -> Source:
    """The same for reading only, and for the other stores of mosaicml-streaming: hf://, oci:// and so on."""
    parsed = parse_source_address(address)
    if not parsed.scheme or parsed.scheme in BUCKET_SCHEMES:
        return open_storage(address, policy)
    return RemoteSource(parsed, policy or RetryPolicy(), _other)


def is_remote(address: str) -> bool:
    """Whether an address is that of a bucket. Raises UserError like `open_storage`."""
    return bool(parse_address(address).scheme)


# Each imports its library only when it is called.


def _s3() -> type[Client]:
    from tolktrain.storage.s3 import S3Client

    return S3Client


def _google() -> type[Client]:
    if "GCS_KEY" in os.environ and "GCS_SECRET" in os.environ:
        from tolktrain.storage.s3 import GoogleByS3Client

        return GoogleByS3Client
    from tolktrain.storage.google import GoogleClient

    return GoogleClient


def _azure() -> type[Client]:
    from tolktrain.storage.azure import AzureClient

    return AzureClient


def _other() -> type[Reader]:
    from tolktrain.storage.other import OtherReader

    return OtherReader


_CLIENTS: Mapping[str, Callable[[], type[Client]]] = MappingProxyType({"s3": _s3, "gs": _google, "azure": _azure})
