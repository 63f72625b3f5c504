"""Parses addresses of storages."""

import os
import re
from dataclasses import dataclass

from tolktrain.errors import UserError

BUCKET_SCHEMES = ("s3", "gs", "azure")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{1,2}")  # dbfs:/Volumes has one slash


@dataclass(frozen=True)
class Address:
    """A parsed address. It has no escapes, query or fragment."""

    text: str  # as it was given, without slashes at its end
    scheme: str = ""  # empty for a local folder
    host: str = ""  # of azure://, where the account is
    bucket: str = ""
    root: str = ""  # what the keys of its files begin with: empty, or a folder and a slash

    def path_of(self, name: str) -> str:
        """Address of a file."""
        return f"{self.text.rstrip('/')}/{name}"


def parse_address(text: str) -> Address:
    """Parse the address of a folder or bucket.

    Raises UserError if its scheme is not one of `BUCKET_SCHEMES`, or its form is invalid for the scheme.
    """
    address = parse_source_address(text)
    if address.scheme and address.scheme not in BUCKET_SCHEMES:
        raise _not_an_address(text)
    return address


def parse_source_address(text: str) -> Address:
    """Parse an address whose scheme may be one that `parse_address` refuses; then only the scheme is set."""
    text = text.rstrip("/") or "/"
    match = _SCHEME.match(text)
    if match is None:
        if text.startswith(tuple(f"{scheme}:" for scheme in BUCKET_SCHEMES)):  # no folder was meant
            raise _not_an_address(text)
        return Address(text)
    scheme = match[1].lower()
    if scheme not in BUCKET_SCHEMES:
        return Address(text, scheme)
    if not match[0].endswith("://"):
        raise _not_an_address(text)
    host, _, path = text[match.end() :].partition("/")
    bucket = host
    if scheme == "azure":
        bucket, _, path = path.lstrip("/").partition("/")
        if host and (not bucket or not ("." in host or os.environ.get("AZURE_ACCOUNT_NAME"))):
            raise UserError(
                f"{text!r} needs an account and a container, as in"
                " azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER; the environment variable AZURE_ACCOUNT_NAME"
                " names another account than the address"
            )
    if not host:
        raise _not_an_address(text)
    path = path.strip("/")
    return Address(text, scheme, host, bucket, f"{path}/" if path else "")


def _not_an_address(text: str) -> UserError:
    return UserError(
        f"{text!r} is no address of a storage; expected a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or"
        " azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER"
    )
