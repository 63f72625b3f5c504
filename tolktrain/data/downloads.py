"""Downloads of mosaicml-streaming that end when more comes than is expected, whoever serves it."""

import os
import urllib.parse
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streaming.base.storage.download import (
    AzureDownloader,
    CloudDownloader,
    GCSDownloader,
    LocalDownloader,
    S3Downloader,
)

from tolktrain.data.bounded import BoundedFile, copy, too_large

_limit: ContextVar[int] = ContextVar("limit")


def downloader_of(address: str) -> CloudDownloader:
    """A downloader for addresses that begin alike. Raises ValueError for an address of no known storage."""
    kind = _DOWNLOADERS.get(urllib.parse.urlparse(address).scheme)
    return CloudDownloader.get(address) if kind is None else kind()


def download(client: CloudDownloader, address: str, path: str | Path, timeout_seconds: float, limit: int) -> None:
    """Bring a file of at most `limit` bytes to a new local path.

    Raises:
        DamagedError: there are more; no more than about `limit` bytes were written.
        Exception: of the client's own kinds.
    """
    token = _limit.set(limit)
    try:
        client.download(address, str(path), timeout_seconds)
    except BaseException:
        client.clean_up()  # it may hold on to a broken connection
        raise
    finally:
        _limit.reset(token)
    if os.path.getsize(path) > limit:
        raise too_large(limit)


class _Counter:
    """boto3 tells it the bytes that have come; fewer than none when it reads them again."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def __call__(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise too_large(self._limit)


class _S3(S3Downloader):
    def _create_s3_client(self, unsigned: bool = False, timeout: float = 60.0) -> None:
        super()._create_s3_client(unsigned, timeout)
        _bound(self._s3_client)


class _Google(GCSDownloader):
    def _create_gcs_client(self) -> None:
        super()._create_gcs_client()
        if hasattr(self._gcs_client, "download_file"):  # boto3's, if GCS_KEY is set
            _bound(self._gcs_client)

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        from google.cloud.storage import Blob, Bucket, Client  # type: ignore[import-untyped]

        if self._gcs_client is None:
            self._create_gcs_client()
        if not isinstance(self._gcs_client, Client):
            super()._download_file_impl(remote, local, timeout)
            return
        url = urllib.parse.urlparse(remote)
        with BoundedFile(local, _limit.get()) as file:
            Blob(url.path.lstrip("/"), Bucket(self._gcs_client, url.netloc)).download_to_file(file)


class _Azure(AzureDownloader):
    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        if self._azure_client is None:
            self._create_azure_client(remote)
        assert self._azure_client is not None
        container, _, name = urllib.parse.urlparse(remote).path.lstrip("/").partition("/")
        blob = self._azure_client.get_blob_client(container=container, blob=name)
        with BoundedFile(local, _limit.get()) as file:
            blob.download_blob().readinto(file)


class _Local(LocalDownloader):
    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        copy(remote, local, _limit.get())


def _bound(client: Any) -> None:
    """Let a client of boto3 stop at the limit."""
    fetch = client.download_file

    def download_file(bucket: str, key: str, path: str, **options: Any) -> None:
        fetch(bucket, key, path, Callback=_Counter(_limit.get()), **options)

    def refuse(parsed: Mapping[str, Any], **_: Any) -> None:
        # By this size it plans the parts to ask for: a false one would keep it busy for ever.
        if parsed.get("ContentLength", 0) > _limit.get():
            raise too_large(_limit.get())

    client.download_file = download_file
    client.meta.events.register_last("after-call.s3.HeadObject", refuse)


_DOWNLOADERS: Mapping[str, type[CloudDownloader]] = MappingProxyType(
    {"s3": _S3, "gs": _Google, "azure": _Azure, "": _Local}
)
