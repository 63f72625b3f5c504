"""s3:// over boto3, and gs:// through its S3 protocol.

The environment variables of boto3 apply, `S3_ENDPOINT_URL`, `S3_CANNED_ACL` (of what is written) and
`MOSAICML_STREAMING_AWS_REQUESTER_PAYS` (buckets, with commas between them, where the reader pays).
"""

import functools
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]
from boto3.session import Session  # type: ignore[import-untyped]
from botocore import UNSIGNED
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.loaders import Loader, create_loader  # type: ignore[import-untyped]

from tolktrain.files.address import Address
from tolktrain.files.bounded import Bounded, too_large
from tolktrain.storage.client import Client
from tolktrain.storage.errors import ClientErrors
from tolktrain.storage.retries import RetryPolicy

GOOGLE_URL = "https://storage.googleapis.com"

# In the thread that asks: so that a part of a file waits for the one before it, and is refused with it.
_ONE_AFTER_ANOTHER = TransferConfig(use_threads=False)

_limit: ContextVar[int] = ContextVar("limit")


class S3Client(Client):
    """A bucket of Amazon S3 or of another server of its protocol."""

    errors = ClientErrors(
        (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError), invalid=(ParamValidationError,)
    )

    def __init__(self, address: Address, policy: RetryPolicy) -> None:
        self._bucket = address.bucket
        self._options = {
            "read_timeout": policy.timeout_seconds,
            "retries": {"mode": os.environ.get("AWS_RETRY_MODE", "adaptive")},
        }
        self._is_signed = True
        self._client = self._connect(Config(**self._options))
        paying = os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")
        pays = self._bucket in [name.strip() for name in paying]
        self._read_options = {"RequestPayer": "requester"} if pays else {}

    def _connect(self, config: Config) -> Any:
        client = _session().client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))
        client.meta.events.register_last("after-call.s3.HeadObject", _refuse_large)
        return client

    def fetch(self, key: str, target: Bounded) -> None:
        """Write the content of an object, unless its declared size is too large."""
        token = _limit.set(target.limit)
        try:
            self._fetch(key, target)
        except ClientError as error:
            # A bucket open to all is so without a signature only, if the credentials here are not of its server.
            if not self._is_signed or error.response["Error"]["Code"] != "400":
                raise
            self._is_signed = False
            self._client = self._connect(Config(**self._options, signature_version=UNSIGNED))
            self._fetch(key, target)
        finally:
            _limit.reset(token)

    def _fetch(self, key: str, target: Bounded) -> None:
        self._client.download_fileobj(
            self._bucket, key, target, ExtraArgs=self._read_options, Config=_ONE_AFTER_ANOTHER
        )

    def check_bucket(self) -> None:
        """Look at the bucket."""
        self._client.head_bucket(Bucket=self._bucket)

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content, **_write_options())

    def upload(self, path: Path, key: str) -> None:
        """Copy a file to an object, a large one in parts."""
        self._client.upload_file(str(path), self._bucket, key, ExtraArgs=_write_options())

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that begin with a prefix."""
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                yield entry["Key"]

    def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        self._client.delete_object(Bucket=self._bucket, Key=key)


class GoogleByS3Client(S3Client):
    """A bucket of Google Cloud Storage through its S3 protocol, with the keys `GCS_KEY` and `GCS_SECRET`."""

    def _connect(self, config: Config) -> Any:
        # Google's server does not take the checksums that boto3 adds.
        plain = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
        client = _session().client(
            "s3",
            config=config.merge(plain),
            region_name="auto",
            endpoint_url=GOOGLE_URL,
            aws_access_key_id=os.environ["GCS_KEY"],
            aws_secret_access_key=os.environ["GCS_SECRET"],
        )
        client.meta.events.register_last("after-call.s3.HeadObject", _refuse_large)
        return client


def _session() -> Session:
    """A session of its own, for the environment as it is now, with descriptions of Amazon's services from a cache."""
    core = botocore.session.get_session()
    session = Session(botocore_session=core)
    core.register_component("data_loader", _descriptions(core.get_config_variable("data_path")))
    return session


@functools.cache
def _descriptions(path: str | None) -> Loader:
    """The large files that describe Amazon's services. Each session would read them again, for a tenth of a second."""
    return create_loader(path)


def _write_options() -> dict[str, str]:
    acl = os.environ.get("S3_CANNED_ACL")
    return {} if acl is None else {"ACL": acl}


def _refuse_large(parsed: Mapping[str, Any], **_: Any) -> None:
    """Check the declared size of an object, before boto3 plans its parts.

    A false size would keep boto3 busy forever.
    """
    if parsed.get("ContentLength", 0) > _limit.get():
        raise too_large(_limit.get())
