"""Errors of storages, with messages that say how to fix them."""

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tolktrain.errors import UserError
from tolktrain.files.bounded import DamagedError

Kind = Literal["absent", "no credentials", "refused", "disk", "invalid", "damaged", "transient"]

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_CREDENTIALS: Mapping[str, str] = MappingProxyType(
    {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)",
        "gs": "GCS_KEY and GCS_SECRET (or GOOGLE_APPLICATION_CREDENTIALS)",
        "azure": "AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY",
    }
)
_ENDPOINTS: Mapping[str, str] = MappingProxyType({"s3": "S3_ENDPOINT_URL (or AWS_ENDPOINT_URL) and "})


class StorageError(UserError):
    """A file that could not be read or written. The message names the address, the cause and how to fix it."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message, by_machine=kind == "disk")
        self.kind = kind

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, Kind]]:
        return type(self), (str(self), self.kind)


@dataclass(frozen=True)
class ClientErrors:
    """Exceptions of a client's library that carry no HTTP status."""

    no_credentials: tuple[type[BaseException], ...] = ()
    invalid: tuple[type[BaseException], ...] = ()


def classify(error: BaseException, of_client: ClientErrors) -> tuple[Kind, str]:
    """Kind of a failure, and its cause in the library's words."""
    if isinstance(error, DamagedError):
        return "damaged", str(error)
    chain = list(_chain(error))
    for link in chain:
        cause = f"{type(link).__name__}: {link}"
        if isinstance(link, of_client.no_credentials):
            return "no credentials", cause
        if isinstance(link, OSError) and link.errno in _DISK_ERRORS:
            return "disk", str(link)
        status = _status(link)
        if status == 404 or isinstance(link, FileNotFoundError):
            return "absent", _text(link)
        if status in (400, 401, 403):
            return "refused", _text(link)
        if status is not None and 300 <= status < 500 and status not in (408, 429):
            return "invalid", _text(link)
        if isinstance(link, (ImportError, *of_client.invalid)):
            return "invalid", cause
    # What boto3 raises in the end says only that it has given up.
    return "transient", _text(next((link for link in chain if not hasattr(link, "last_exception")), error))


def failure(
    address: str, scheme: str, done: str, kind: Kind, cause: str, attempts: int = 1, seconds: float = 0.0
) -> StorageError:
    """The error "`address` cannot be `done`: ...", after so many attempts in so many seconds."""
    credentials = _CREDENTIALS.get(scheme, "the credentials")
    problem, fix = {
        "absent": ("it does not exist", "check the bucket and the folder in the address"),
        "no credentials": ("there are no usable credentials", f"set {credentials}"),
        "refused": ("access is refused", f"check {credentials} and their rights to the bucket"),
        "disk": ("the disk refuses", "free space (or set data.cache_limit), correct the rights, or use another folder"),
        "invalid": ("the request is not understood", "check the address, the region and the endpoint"),
        "damaged": (
            f"it arrived damaged {attempts} times",
            "upload it again, or remove the cache folder if the data set was rebuilt",
        ),
        "transient": (
            f"the storage failed {attempts} times in {seconds:.0f} s",
            f"check {_ENDPOINTS.get(scheme, '')}the network, or start again later",
        ),
    }[kind]
    if kind == "absent" and done == "opened":
        problem, fix = "the bucket does not exist", "create it, or correct the address"
    return StorageError(f"{address} cannot be {done}: {problem} ({cause}); {fix}", kind)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # The first is boto3's and google's way to keep the reason of the last attempt.
        last = getattr(error, "last_exception", None) or getattr(error, "cause", None)
        error = last if isinstance(last, BaseException) else error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of botocore, google-cloud-storage, azure-storage-blob or huggingface-hub."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for value in (getattr(error, "status_code", None), getattr(error, "code", None)):
        if isinstance(value, int):
            return int(value)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _text(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's own message names the operation, which our message does already
        entry = response.get("Error", {})
        return f"{entry.get('Code', '?')} {entry.get('Message', '')}".strip()
    return f"{type(error).__name__}: {error}"
