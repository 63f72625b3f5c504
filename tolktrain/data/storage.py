"""Whole files in a local folder or an object store, over the uploaders and downloaders of mosaicml-streaming.

Their environment variables apply: `S3_ENDPOINT_URL` (or `AWS_ENDPOINT_URL`), `AWS_ACCESS_KEY_ID` and so on for s3://,
`GCS_KEY` and `GCS_SECRET` or Google's own for gs://, `AZURE_ACCOUNT_NAME` and `AZURE_ACCOUNT_ACCESS_KEY` for azure://.

Failures pass three layers that try again: botocore (`AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`: errors of the server, lost
connections), s3transfer (bodies that break off), and around both the `retry` of mosaicml-streaming, which is told here
which errors are worth it.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tolktrain.config.data import DataConfig
from tolktrain.data.bounded import DamagedError, copy
from tolktrain.errors import UserError
from tolktrain.files.reading import read_bytes
from tolktrain.files.writing import naming, written_aside

Kind = Literal["absent", "no credentials", "refused", "disk", "invalid", "damaged", "transient"]
Result = TypeVar("Result")

SCHEMES = ("s3", "gs", "azure")
TEMPORARY_PREFIX = ".tolktrain-"
LARGEST_READ = 1 << 30  # bytes of a file that is read whole, unless said otherwise
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)",
    "gs": "GCS_KEY and GCS_SECRET (or GOOGLE_APPLICATION_CREDENTIALS)",
    "azure": "AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY",
}
_ENDPOINTS = {"s3": "S3_ENDPOINT_URL (or AWS_ENDPOINT_URL) and "}


class StorageError(UserError):
    """A file that could not be read or written. The message names the address, the cause and how to mend it."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message, by_machine=kind == "disk")
        self.kind = kind

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, Kind]]:
        return type(self), (str(self), self.kind)


@dataclass(frozen=True)
class Patience:
    """How long a storage that does not answer, or answers with errors, is waited for."""

    retries: int = 3  # further attempts, after 1, 2, 4, ... seconds
    timeout_seconds: float = 60.0  # longest silence of a storage

    @classmethod
    def of(cls, config: DataConfig) -> "Patience":
        """What the configuration of data says."""
        return cls(config.download_retries, config.download_timeout_seconds)

    @property
    def total_seconds(self) -> float:
        """After this time no further attempt is begun."""
        return self.timeout_seconds * (self.retries + 1)


class Storage:
    """The files below one address: a local folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or
    azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER.

    Names are relative, with `/` between folders. May be handed to other processes, forked ones too. All methods raise
    `StorageError`, a `UserError`.
    """

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        self.address = address.rstrip("/") or "/"
        self._patience = patience or Patience()
        self._scheme = scheme_of(self.address)
        self._clients: tuple[int, dict[str, Any]] = (0, {})  # the process that made them, and the library's objects

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clients": (0, {})}

    @property
    def is_local(self) -> bool:
        """Whether the address is a folder."""
        return not self._scheme

    def path_of(self, name: str) -> str:
        """Address of a file."""
        return f"{self.address.rstrip('/')}/{name}"

    def read(self, name: str, limit: int = LARGEST_READ) -> bytes | None:
        """Content of a file of at most `limit` bytes, None if there is none."""
        if self.is_local:
            with explained(self.path_of(name), "read"):
                return read_bytes(self.path_of(name), limit)
            return None
        try:
            return fetch(self.path_of(name), self._patience, bytes, limit=limit, downloader=self._downloader())
        except StorageError as error:
            if error.kind != "absent":
                raise
            # A missing bucket looks the same; this tells it.
            self._client()
            return None

    def download(self, name: str, path: Path, limit: int) -> None:
        """Copy a file of at most `limit` bytes, which must exist, to a local path, without holding it in memory."""
        address = self.path_of(name)
        if self.is_local:
            with explained(address, "written"):
                try:
                    copy(address, path, limit)
                except FileNotFoundError as error:
                    raise _failure(address, "fetched", "absent", str(error), 1, time.monotonic()) from error
                except DamagedError as error:
                    raise _failure(address, "fetched", "damaged", str(error), 1, time.monotonic()) from error
            return
        from tolktrain.data.downloads import download

        client = self._downloader()

        def act() -> None:
            path.unlink(missing_ok=True)
            download(client, address, path, self._patience.timeout_seconds, limit)

        patiently(act, address, "fetched", self._patience)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        if self.is_local:
            self._put(name, lambda aside: aside.write_bytes(content))
            return
        with _temporary_folder() as folder:
            source = Path(folder, "content")
            source.write_bytes(content)
            self.upload(source, name)

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        """Copy a local file to a name, whole or not at all."""
        if self.is_local:
            self._put(name, lambda aside: shutil.copyfile(path, aside))
            return
        with _temporary_folder() as staging:
            # The uploaders take the name of the object from the local file.
            link = Path(staging, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(path))
            uploader = self._client()

            def act() -> None:
                uploader.local = staging
                uploader.upload_file(name)

            patiently(act, self.path_of(name), "written", self._patience)

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin with a prefix, sorted; empty if the folder does not exist."""
        if self.is_local:
            found = [
                (Path(folder) / name).relative_to(self.address).as_posix()
                for folder, _, files in os.walk(self.address)
                for name in files
                if not name.startswith(TEMPORARY_PREFIX)
            ]
            return sorted(name for name in found if name.startswith(prefix))
        root = self._root
        uploader = self._client()

        def act() -> list[str]:
            if self._scheme == "azure":
                container = self._azure_container(uploader)
                return [blob.name for blob in container.list_blobs(name_starts_with=root + prefix)]
            return list(uploader.list_objects(prefix))

        found = patiently(act, self.path_of(prefix), "listed", self._patience)
        return sorted(key[len(root) :] for key in found if key.startswith(root + prefix))

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        if self.is_local:
            with explained(self.path_of(name), "deleted"):
                os.unlink(self.path_of(name))
            return
        uploader = self._client()
        try:
            patiently(lambda: self._delete(uploader, name), self.path_of(name), "deleted", self._patience)
        except StorageError as error:
            if error.kind != "absent":
                raise

    def _delete(self, uploader: Any, name: str) -> None:
        key, bucket = self._root + name, urllib.parse.urlparse(self.address).netloc
        if self._scheme == "azure":
            self._azure_container(uploader).delete_blob(key)
            return
        client = uploader.s3 if self._scheme == "s3" else uploader.gcs_client
        if hasattr(client, "delete_object"):  # gs:// is spoken to as S3 if GCS_KEY is set
            client.delete_object(Bucket=bucket, Key=key)
        else:
            client.bucket(bucket).delete_blob(key)

    def _put(self, name: str, fill: Callable[[Path], object]) -> None:
        target = Path(self.path_of(name))
        with explained(str(target), "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(target, TEMPORARY_PREFIX) as aside:
                fill(aside)

    @property
    def _root(self) -> str:
        """What keys begin with: the folder of the address, if it has one, and a slash."""
        path = urllib.parse.urlparse(self.address).path.strip("/")
        path = path.partition("/")[2] if self._scheme == "azure" else path
        return f"{path}/" if path else ""

    def _azure_container(self, uploader: Any) -> Any:
        return uploader.azure_service.get_container_client(self._container)

    @property
    def _container(self) -> str:
        return urllib.parse.urlparse(self.address).path.strip("/").partition("/")[0]

    def _own(self) -> dict[str, Any]:
        """The library's objects that this process made; connections must not be shared with a parent."""
        if self._clients[0] != os.getpid():
            self._clients = os.getpid(), {}
        return self._clients[1]

    def _downloader(self) -> Any:
        from tolktrain.data.downloads import downloader_of

        own = self._own()
        if "downloader" not in own:
            own["downloader"] = downloader_of(self.address)
        return own["downloader"]

    def _client(self) -> Any:
        """The uploader; made with a look at the bucket, which raises if that does not exist."""
        from streaming.base.storage.upload import CloudUploader

        own = self._own()
        if "uploader" not in own:
            # The library's downloader and uploader write Azure's addresses differently: with and without the account.
            remote = f"azure://{self._container}/{self._root}".rstrip("/") if self._scheme == "azure" else self.address
            with _temporary_folder() as local:
                own["uploader"] = patiently(
                    lambda: CloudUploader.get((local, remote), keep_local=True, retry=1, exist_ok=True),
                    self.address,
                    "opened",
                    self._patience,
                )
        return own["uploader"]


def scheme_of(address: str) -> str:
    """Scheme of an address, empty for a local folder. Raises `UserError` if it is no address of a storage."""
    parts = urllib.parse.urlparse(address)
    if not parts.scheme:
        return ""
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise UserError(
            f"{address!r} is no address of a storage; expected a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or"
            " azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER"
        )
    if parts.scheme == "azure" and (not parts.path.strip("/") or "AZURE_ACCOUNT_NAME" not in os.environ):
        raise UserError(
            f"{address!r} needs a container, as in azure://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER, and the"
            " environment variable AZURE_ACCOUNT_NAME"
        )
    return parts.scheme


def fetch(
    address: str,
    patience: Patience,
    accept: Callable[[bytes], Result],
    *,
    limit: int,
    folder: str | os.PathLike[str] | None = None,
    downloader: Any = None,
) -> Result:
    """Download one file and hand its content to `accept`, with retries.

    Args:
        address: File in a storage, or local.
        patience: How often and how long to try.
        accept: Makes the result of the content; raises `DamagedError` to have it fetched again.
        limit: Bytes that it may have; more are not fetched, and count as damage.
        folder: Where the file lies meanwhile, under a temporary name; the folder for temporary files if absent.
        downloader: One of `downloader_of` to keep using; one for this call if absent.

    Raises:
        StorageError: naming the address, the cause and how to mend it.
    """
    from tolktrain.data.downloads import download, downloader_of

    def act() -> Result:
        client = downloader or downloader_of(address)
        with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY_PREFIX) as place:
            path = os.path.join(place, "content")
            download(client, address, path, patience.timeout_seconds, limit)
            return accept(read_bytes(path, limit))

    return patiently(act, address, "fetched", patience)


class _TransientError(Exception):
    """Worth another attempt."""


def patiently(act: Callable[[], Result], address: str, done: str, patience: Patience) -> Result:
    """Result of `act`, tried again with exponential backoff while the storage may recover.

    Raises `StorageError`: "`address` cannot be `done`: ...".
    """
    from streaming.base.util import retry

    begin = time.monotonic()
    attempts = 0

    def attempt() -> Result:
        nonlocal attempts
        attempts += 1
        try:
            return act()
        except StorageError:
            raise
        except Exception as error:  # each storage raises its own kinds
            kind, cause = classify(error)
            if kind in ("transient", "damaged") and time.monotonic() - begin < patience.total_seconds:
                raise _TransientError from error
            raise _failure(address, done, kind, cause, attempts, begin) from error

    try:
        return retry(_TransientError, num_attempts=patience.retries + 1)(attempt)()
    except _TransientError as error:
        assert isinstance(error.__cause__, Exception)
        kind, cause = classify(error.__cause__)
        raise _failure(address, done, kind, cause, attempts, begin) from error.__cause__


@contextlib.contextmanager
def explained(address: str, done: str) -> Iterator[None]:
    """Turn errors of the local file system into `StorageError`; a missing file is no error."""
    try:
        yield
    except FileNotFoundError:
        if done == "written":
            raise
    except OSError as error:
        raise _failure(address, done, "disk", str(error), 1, time.monotonic()) from error


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    with (
        explained(tempfile.gettempdir(), "written"),
        tempfile.TemporaryDirectory(prefix="tolktrain-") as folder,
        naming(folder),
    ):
        yield folder


def classify(error: BaseException) -> tuple[Kind, str]:
    """Kind of a failure, and its cause in the words of the library that raised it."""
    from azure.core.exceptions import ClientAuthenticationError
    from botocore.exceptions import (  # type: ignore[import-untyped]
        CredentialRetrievalError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )
    from google.auth.exceptions import DefaultCredentialsError, RefreshError

    if isinstance(error, DamagedError):
        return "damaged", str(error)
    chain = list(_chain(error))
    for link in chain:
        cause = f"{type(link).__name__}: {link}"
        if isinstance(link, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
            return "no credentials", cause
        if isinstance(link, (DefaultCredentialsError, RefreshError, ClientAuthenticationError)):
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
        if isinstance(link, (ParamValidationError, ImportError)):
            return "invalid", cause
    # What boto3 raises in the end says only that it has given up.
    return "transient", _text(next((link for link in chain if not hasattr(link, "last_exception")), error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # The first is boto3's and google's way to keep the reason of the last attempt.
        last = getattr(error, "last_exception", None) or getattr(error, "cause", None)
        error = last if isinstance(last, BaseException) else error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status behind an error of botocore, google-cloud-storage or azure-storage-blob."""
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
    if isinstance(response, dict):  # the library overwrites the message of botocore with a guess of its own
        entry = response.get("Error", {})
        return f"{entry.get('Code', '?')} {entry.get('Message', '')}".strip()
    return f"{type(error).__name__}: {error}"


def _failure(address: str, done: str, kind: Kind, cause: str, attempts: int, begin: float) -> StorageError:
    scheme = urllib.parse.urlparse(address).scheme
    credentials = _CREDENTIALS.get(scheme, "the credentials")
    problem, mend = {
        "absent": ("it does not exist", "check the bucket and the folder in the address"),
        "no credentials": ("there are no usable credentials", f"set {credentials}"),
        "refused": ("access is refused", f"check {credentials} and their rights to the bucket"),
        "disk": ("the disk refuses", "free space (or set data.cache_limit), mend the rights, or take another folder"),
        "invalid": ("the request is not understood", "check the address, the region and the endpoint"),
        "damaged": (
            f"it arrived damaged {attempts} times",
            "upload it again, or remove the cache folder if the data set was rebuilt",
        ),
        "transient": (
            f"the storage failed {attempts} times in {time.monotonic() - begin:.0f} s",
            f"check {_ENDPOINTS.get(scheme, '')}the network, or start again later",
        ),
    }[kind]
    if kind == "absent" and done in ("opened", "listed", "written"):
        problem = "the bucket does not exist"
        mend = "create it, or correct the address"
    return StorageError(f"{address} cannot be {done}: {problem} ({cause}); {mend}", kind)
