"""Parses addresses of storages."""

import os
import posixpath
import re
import urllib.parse
from dataclasses import dataclass

from tolktrain.errors import UserError
from tolktrain.files.printable import printable

BUCKET_SCHEMES = ("s3", "gs", "azure")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{1,2}")  # dbfs:/Volumes has one slash
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")  # colons are in the ARNs of access points
_CONTAINER = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9-]*")  # Azure has $web and $root
# All stores allow 1,024 bytes, and the longest names below the folder, those of checkpoints, have about 120.
_LONGEST_FOLDER = 896


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


def has_scheme(text: str) -> bool:
    """Whether a text begins like an address, with a name and `:/`, and so is no usual path."""
    return _SCHEME.match(text) is not None


def parse_address(text: str) -> Address:
    """Parse the address of a folder or bucket.

    Raises UserError if its scheme is not one of `BUCKET_SCHEMES`, its form is invalid for the scheme, or a store or its
    client would change keys below it.
    """
    address = parse_source_address(text)
    if address.scheme and address.scheme not in BUCKET_SCHEMES:
        raise _not_an_address(text)
    return address


def parse_source_address(text: str) -> Address:
    """Parse an address whose scheme may be one that `parse_address` refuses; then only the scheme is set."""
    match = _SCHEME.match(text)
    if match is None:
        if text.startswith(tuple(f"{scheme}:" for scheme in BUCKET_SCHEMES)):  # no folder was meant
            raise _not_an_address(text)
        return Address(text.rstrip("/") or "/")
    scheme = match[1].lower()
    if scheme not in BUCKET_SCHEMES:
        _check_url(text, scheme)
        return Address(text.rstrip("/"), scheme)
    host, _, path = text[match.end() :].partition("/")
    if not match[0].endswith("://") or not host:
        raise _not_an_address(text)
    bucket, place = host, f"{text[: match.end()]}{host}"
    if scheme == "azure":
        bucket, _, path = path.partition("/")
        place = f"{place}/{bucket}"
    _check_bucket(text, scheme, host, bucket)
    _check_folder(text, scheme, place, path)
    path = path.removesuffix("/")
    return Address(f"{place}/{path}".rstrip("/"), scheme, host, bucket, f"{path}/" if path else "")


def check_account(address: Address) -> None:
    """Raise UserError if an address of Azure names no account, and the environment does not either."""
    if address.scheme == "azure" and "." not in address.host and not os.environ.get("AZURE_ACCOUNT_NAME"):
        raise _no_account(address.text)


def _check_bucket(text: str, scheme: str, host: str, bucket: str) -> None:
    if scheme == "azure" and not bucket:
        raise _no_account(text)
    allowed = _CONTAINER if scheme == "azure" else _BUCKET
    if _BUCKET.fullmatch(host) and allowed.fullmatch(bucket):
        return
    name = host if not _BUCKET.fullmatch(host) else bucket
    raise UserError(
        f"{text!r} names the bucket or account {name!r}, but such names have only letters,"
        " digits, '.', '-' and '_'; correct it. Environment variables are not expanded"
    )


def _check_folder(text: str, scheme: str, place: str, path: str) -> None:
    """Refuse what a store or its client would change, so that files would get other keys than the address says."""
    problem = None
    folders = path.split("/")
    if path.startswith("/") or path.endswith("//"):
        problem = "has a doubled slash at the beginning or end of its folder"
    elif {".", ".."} & set(folders):
        problem = "has a folder named '.' or '..', which stores do not resolve"
    elif scheme == "azure" and any(folder.endswith(".") or "\\" in folder for folder in folders):
        raise UserError(f"{text!r} has a folder with '\\' or with '.' at its end, which Azure changes; rename it")
    elif printable(path) != path or "\n" in path or "\t" in path:
        raise UserError(f"{text!r} holds characters that cannot be printed; remove them")
    elif len(path.encode()) > _LONGEST_FOLDER:
        raise UserError(
            f"{text[:100]!r}... has a folder of {len(path.encode())} bytes, but keys have at most 1,024; use at most"
            f" {_LONGEST_FOLDER}"
        )
    if problem is not None:
        folder = posixpath.normpath(f"//{path}").strip("/")
        raise UserError(f"{text!r} {problem}; write {printable(f'{place}/{folder}'.rstrip('/'))}")


def _check_url(text: str, scheme: str) -> None:
    # The library parses addresses as URLs; hf:// it only splits at slashes.
    if scheme != "hf" and (found := re.search("[#?]", text)):
        raise UserError(
            f"{text!r} contains {found[0]!r}, at which the library that reads {scheme}: addresses ends the"
            " folder; rename the folder"
        )
    try:
        urllib.parse.urlsplit(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no address ({error}); correct it") from None
    if printable(text) != text or "\n" in text or "\t" in text:
        raise UserError(f"{text!r} holds characters that cannot be printed; remove them")


def _no_account(text: str) -> UserError:
    return UserError(
        f"{text!r} needs an account and a container, as in"
        " azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER; the environment variable AZURE_ACCOUNT_NAME"
        " names another account than the address"
    )


def _not_an_address(text: str) -> UserError:
    return UserError(
        f"{text!r} is no address of a storage; expected a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or"
        " azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER"
    )
